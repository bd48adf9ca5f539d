"""What a run leaves where it was told to, and how soon it ends when it is asked to."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import pytest
import typer

from edgeclip import Bundle, make_classes
from edgeclip.cli import main
from edgeclip.cli.apart import with_outputs_apart
from edgeclip.cli.common import output_file, output_folder
from edgeclip.errors import InputError
from edgeclip.runtime.images import write_image

EDGECLIP = [sys.executable, "-m", "edgeclip"]


def started(*arguments: object, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """The command line in a process of its own."""
    command = [*EDGECLIP, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def ended(process: subprocess.Popen[str]) -> tuple[float, str, str]:
    """End a process as systemd and Docker do; how long that took, seconds, and what it said."""
    before = time.perf_counter()
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    return time.perf_counter() - before, out, err


@contextlib.contextmanager
def silent_server(first: bytes = b"") -> Iterator[tuple[int, list[socket.socket]]]:
    """A server that accepts and says nothing; with ``first``, that to the first caller, whom it then hangs up on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        held: list[socket.socket] = []

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    caller, _ = listener.accept()
                    held.append(caller)
                    if first and len(held) == 1:
                        caller.sendall(first)
                        caller.shutdown(socket.SHUT_RDWR)

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1], held
        for caller in held:
            caller.close()


def until(happened: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Wait for something outside."""
    deadline = time.monotonic() + 60
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("scheme", ["http", "rtsp"])
def test_a_camera_that_hangs_in_open_does_not_hold_the_end_back(tiny_bundle: Path, scheme: str) -> None:
    with silent_server() as (port, callers):
        process = started("label", tiny_bundle, f"{scheme}://127.0.0.1:{port}/stream")
        until(lambda: callers, process)
        took_s, _, err = ended(process)
    assert took_s < 2.0
    assert process.returncode == 130
    assert "Traceback" not in err


def mjpeg(tmp_path: Path, frames: int) -> bytes:
    """The answer of a small camera."""
    from skimage import data

    write_image(tmp_path / "one.jpg", data.astronaut())
    jpeg = (tmp_path / "one.jpg").read_bytes()
    part = b"--x\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s\r\n" % (len(jpeg), jpeg)
    return b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=x\r\n\r\n" + part * frames


def test_cameras_that_hang_when_they_are_opened_again_do_not_hold_the_end_back(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    answer, jsonl = mjpeg(tmp_path, 20), tmp_path / "labels.jsonl"
    with silent_server(answer) as (one, to_one), silent_server(answer) as (two, to_two):
        addresses = [f"http://127.0.0.1:{port}/stream" for port in (one, two)]
        process = started("label", tiny_bundle, *addresses, "--jsonl", jsonl)
        until(lambda: len(to_one) > 1 and len(to_two) > 1, process)
        took_s, out, err = ended(process)
    assert took_s < 3.0
    assert process.returncode == 0, err
    assert "stopped" in out
    assert jsonl.read_text()


def test_a_pipe_that_nobody_reads_does_not_hold_the_end_back(tiny_bundle: Path, tmp_path: Path, video: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    process = started("label", tiny_bundle, video, "--loop", 0, "--jsonl", pipe)
    with pipe.open("rb", buffering=0) as held:
        fcntl.fcntl(held, fcntl.F_SETPIPE_SZ, 4096)
        assert held.read(1) == b"{"
        time.sleep(0.5)  # it fills
        took_s, out, err = ended(process)
    assert took_s < 6.0
    assert process.returncode == 1
    assert "jsonl failed" in out
    assert "Traceback" not in err
    assert pipe.is_fifo()


def test_a_pipe_whose_reader_never_comes_is_said_and_waited_for(tiny_bundle: Path, tmp_path: Path, video: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    process = started("label", tiny_bundle, video, "--jsonl", tmp_path / "pipe")
    assert process.stderr
    while "waiting for somebody to read" not in (line := process.stderr.readline()):
        assert line
    took_s, _, _ = ended(process)
    assert took_s < 2.0


def test_standard_output_as_an_output_has_nothing_else(tiny_bundle: Path, video: Path) -> None:
    process = started("label", tiny_bundle, video, "--jsonl", "/dev/stdout", "--limit", 3)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert [json.loads(line)["frame"] for line in out.splitlines()] == [0, 1, 2]
    assert "3 frames labelled" in err


def test_a_run_that_nobody_reads_any_more_ends(tiny_bundle: Path, video: Path) -> None:
    process = started("label", tiny_bundle, video, "--loop", 0, "--jsonl", "/dev/stdout")
    assert process.stdout
    assert process.stderr
    assert json.loads(process.stdout.readline())["frame"] == 0
    process.stdout.close()
    assert "every output has failed: the run ends" in process.stderr.read()
    assert process.wait(timeout=60) == 1


def test_an_output_that_was_lost_is_an_exit_code(tiny_bundle: Path, video: Path, tmp_path: Path) -> None:
    process = started("label", tiny_bundle, video, "--jsonl", "/dev/full", "--csv", tmp_path / "labels.csv")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "jsonl failed: cannot write /dev/full (No space left on device)" in out
    assert len((tmp_path / "labels.csv").read_text().splitlines()) == 41


# --- terminals that know ASCII only, and too little memory ------------------------------------------------------------


@pytest.mark.parametrize("verb", [(), ("label",), ("calibrate", "decisions")])
def test_help_is_shown_on_a_terminal_that_knows_ascii_only(verb: tuple[str, ...]) -> None:
    environment = {**os.environ, "LANG": "C", "PYTHONIOENCODING": "ascii"}
    out, err = started(*verb, "--help", env=environment).communicate(timeout=60)
    assert "Usage" in out
    assert not err


def test_labels_beyond_ascii_are_written_out_where_the_terminal_has_ascii_only(tiny_bundle: Path, video: Path) -> None:
    opened = Bundle.open(tiny_bundle)
    of_ascii = opened.table("things")
    table = replace(of_ascii, name="named", classes=make_classes(["кошка", "猫", "cat"]))
    opened.add_table(table)
    environment = {**os.environ, "LANG": "C", "PYTHONIOENCODING": "ascii"}
    process = started("label", tiny_bundle, video, "--table", "named", "--limit", 2, env=environment)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "\\u732b" in out or "\\u043a" in out


@pytest.mark.parametrize("megabytes", [130, 150, 170, 190])
def test_too_small_an_address_space_is_one_sentence(megabytes: int) -> None:
    """Where a library itself gives up (OpenBLAS does), its own words are all there is."""
    code = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({megabytes << 20},) * 2); import sys\n"
    code += "sys.argv = ['edgeclip', '--help']; from edgeclip.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert done.returncode == 0 or "memory" in done.stderr.lower()


def test_importing_the_package_and_its_command_line_loads_no_library() -> None:
    code = "import sys, edgeclip.cli; print({'numpy', 'msgspec', 'rich', 'typer', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def contents(folder: Path) -> dict[Path, bytes]:
    """Every file below a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "words",
    [
        "label BUNDLE in.png --jsonl in.png",
        "label BUNDLE in.mp4 --overlay in.mp4",
        "label BUNDLE in.mp4 --overlay link.mp4",
        "label BUNDLE link.mp4 --overlay in.mp4",
        "label BUNDLE in.png --jsonl new.jsonl --csv in.png",
        "label BUNDLE photos --jsonl photos/a.png",
        "label BUNDLE photos/*.png --jsonl photos/a.png",
        "label BUNDLE in.png --table table.safetensors --jsonl table.safetensors",
        "label BUNDLE in.png --regions regions.json --jsonl ./regions.json",
        "label BUNDLE in.png --classes classes.txt --csv classes.txt",
        "label BUNDLE in.png --jsonl BUNDLE/manifest.json",
        "label BUNDLE in.png --jsonl BUNDLE/new.jsonl",
        "label way in.png --jsonl BUNDLE/new.jsonl",
        "bench BUNDLE --json BUNDLE/fp32.json",
        "eval BUNDLE --data data.jsonl --json data.jsonl",
        "prompts build BUNDLE --classes classes.txt --name x -o classes.txt",
        "prompts study BUNDLE --data photos --names names.json --json names.json --overwrite",
        "calibrate images photos -o photos --overwrite",
        "calibrate images photos/deep/b.png -o photos --overwrite",
        "doctor --root machine.tar --record machine.tar",
    ],
)
def test_an_output_that_is_read_is_refused_before_any_work(
    words: str, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there = tmp_path / "there"
    (there / "photos" / "deep").mkdir(parents=True)
    for name in ("in.png", "in.mp4", "photos/a.png", "photos/deep/b.png", "table.safetensors", "regions.json"):
        (there / name).write_bytes(name.encode())
    for name in ("classes.txt", "data.jsonl", "names.json", "machine.tar"):
        (there / name).write_bytes(name.encode())
    (there / "link.mp4").symlink_to("in.mp4")
    (there / "way").symlink_to(tiny_bundle)
    monkeypatch.chdir(there)
    before = contents(there) | contents(tiny_bundle)
    monkeypatch.setattr(sys, "argv", ["edgeclip", *words.replace("BUNDLE", str(tiny_bundle)).split()])
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        main()
    signal.signal(signal.SIGTERM, handler)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: expected an output apart from what is read, got ")
    assert contents(there) | contents(tiny_bundle) == before


def writes(
    *,
    said: str,
    file: Annotated[Path | None, typer.Option(callback=output_file)] = None,
    output: Annotated[Path | None, typer.Option(callback=output_folder)] = None,
    **_others: object,
) -> str:
    """A verb with a file and a folder to write."""
    return f"{said} {file} {output}"


@pytest.mark.parametrize(
    "options",
    [
        {"source": ["photos"], "file": Path("photos/old.jsonl")},  # the last run's
        {"source": ["photos"], "file": Path("photos/new.png")},
        {"source": ["photos/*.png", "*.png"], "file": Path("same")},
        {"source": ["photos"], "classes": "/dev/null", "file": Path("/dev/null")},
        {"source": ["photos"], "file": Path("/dev/stdout")},
        {"name": "same", "file": Path("same")},
        {"root": Path("/"), "file": Path("old.tar")},
        {"source": ["photos/deep"], "output": Path("calib"), "overwrite": True},
        {"bundle": "BUNDLE", "output": Path(), "overwrite": False},
        {"classes": "a" * 5000, "templates": "a\0b [", "file": Path("same")},
    ],
)
def test_an_output_beside_what_is_read_is_taken(
    options: dict[str, object], tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("photos/deep", "calib"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("photos/old.jsonl", "photos/a.png", "same", "old.tar"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    given = {name: str(tiny_bundle) if value == "BUNDLE" else value for name, value in options.items()}
    assert with_outputs_apart(writes)(said="done", **given).startswith("done ")


def test_a_table_may_be_written_over_itself_where_that_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "t").touch()
    both = {"table": str(tmp_path / "t"), "output": tmp_path / "t"}
    assert with_outputs_apart(writes)(said="done", overwrite=True, **both)
    with pytest.raises(InputError, match="is read"):
        with_outputs_apart(writes)(said="done", overwrite=False, **both)
