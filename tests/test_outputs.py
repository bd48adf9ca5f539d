"""Outputs go where their path leads: links, devices, pipes and mounted files are written, and nothing is replaced."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgeclip import files
from edgeclip.errors import InputError
from edgeclip.files import atomic_file, atomic_files, atomic_folder, cache_dir, cache_place, workshop, write_text
from edgeclip.outputs import check_folder_writable, check_writable, find_output, is_shared

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts and other users are for root")


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A program of its own, so that what it does to itself stays there."""
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, **environment},
    )


@pytest.fixture
def mount() -> Iterator[Callable[..., None]]:
    """``mount(*arguments)`` for the time of a test."""
    mounted: list[str] = []

    def add(*arguments: str) -> None:
        done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"nothing can be mounted here: {done.stderr}")
        if arguments[-1] not in mounted:
            mounted.append(arguments[-1])

    yield add
    for place in reversed(mounted):
        subprocess.run(["umount", "--lazy", place], check=True)


@pytest.fixture
def everyones() -> Iterator[Path]:
    """A folder that other users can reach, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


# --- where a path leads -----------------------------------------------------------------------------------------------


def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    real, link, second = tmp_path / "data" / "real.txt", tmp_path / "link.txt", tmp_path / "second.txt"
    real.write_text("old")
    link.symlink_to("data/real.txt")
    second.symlink_to("link.txt")
    write_text(second, "new")
    assert second.is_symlink()
    assert link.is_symlink()
    assert real.read_text() == "new"
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["real.txt"]


def test_a_link_that_leads_nowhere_yet_makes_its_target(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("later/real.txt")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "later" / "real.txt").read_text() == "new"
    assert (tmp_path / "link").is_symlink()


def test_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(InputError, match="cannot write"):
        check_writable(tmp_path / "a")


def test_a_link_to_a_folder_stays_when_the_folder_is_replaced(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    (real / "old").touch()
    link.symlink_to("real")
    with atomic_folder(link, overwrite=True) as folder:
        (folder / "new").touch()
    assert link.is_symlink()
    assert [path.name for path in real.iterdir()] == ["new"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


@pytest.mark.parametrize("name", ["/dev/null", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "LINK"])
def test_devices_and_descriptors_are_written_and_stay(tmp_path: Path, name: str) -> None:
    link = tmp_path / "link"
    link.symlink_to("/dev/stdout")
    path = str(link) if name == "LINK" else name
    code = f"from pathlib import Path; from edgeclip.files import write_text; write_text(Path({path!r}), 'x\\n')"
    done = python(f"print('first', flush=True); {code}; print('last')")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ("first\nlast\n" if name == "/dev/null" else "first\nx\nlast\n")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    assert link.is_symlink()


def test_standard_output_that_is_a_file_is_continued_and_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out.txt"
    code = "from pathlib import Path; from edgeclip.files import write_text; print('first', flush=True)\n"
    code += "write_text(Path('/dev/stdout'), 'x\\n'); print('last')"
    with out.open("wb") as stream:
        subprocess.run([sys.executable, "-c", code], stdout=stream, check=True)
    assert out.read_text() == "first\nx\nlast\n"


def test_a_named_pipe_is_written_and_stays(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()))
    reader.start()
    write_text(pipe, "x" * 200_000)  # more than a pipe holds
    reader.join(10)
    assert got == ["x" * 200_000]
    assert pipe.is_fifo()


@pytest.mark.parametrize("kind", ["folder", "below a file", "socket", "too long", "reading only"])
def test_what_cannot_be_written_is_found_before_the_work(tmp_path: Path, kind: str) -> None:
    import socket

    path = tmp_path / "x"
    if kind == "folder":
        path.mkdir()
    elif kind == "below a file":
        path.touch()
        path = path / "deeper" / "y"
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    elif kind == "too long":
        path = tmp_path / ("x" * 300)
    with (tmp_path / "readable").open("wb"), (tmp_path / "readable").open("rb") as readable:
        if kind == "reading only":
            path = Path(f"/dev/fd/{readable.fileno()}")
        with pytest.raises(InputError), atomic_file(path):
            pytest.fail("the work began")
    assert not list(tmp_path.glob(".*"))


def test_the_mode_of_a_file_that_is_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.touch(0o600)
    write_text(path, "secret")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    write_text(tmp_path / "new", "public")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o644


@as_root
def test_the_owner_of_a_file_that_is_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.touch()
    os.chown(path, 1234, 1235)
    write_text(path, "by root")
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 1235)


@as_root
def test_a_file_that_is_mounted_by_itself_is_written_in_place(tmp_path: Path, mount: Callable[..., None]) -> None:
    real, place = tmp_path / "real with blank", tmp_path / "inside" / "place here"
    real.write_text("old and longer than what comes")
    place.parent.mkdir()
    place.touch()
    mount("--bind", str(real), str(place))
    assert find_output(place).way == "in place"
    (place.parent / ".x.0123abcd.part").mkdir()  # of an earlier run, before the file was mounted
    number = real.stat().st_ino
    write_text(place, "new")
    assert real.read_text() == place.read_text() == "new"
    assert real.stat().st_ino == number
    assert [path.name for path in place.parent.iterdir()] == ["place here"]


@as_root
def test_a_folder_that_is_mounted_by_itself_gets_the_contents(tmp_path: Path, mount: Callable[..., None]) -> None:
    place = tmp_path / "volume"
    place.mkdir()
    mount("-t", "tmpfs", "none", str(place))
    (place / "old").touch()
    with workshop(place) as of_somebody_else:
        with atomic_folder(place, overwrite=True) as folder:
            (folder / "new").mkdir()
        assert of_somebody_else.exists()
    assert [path.name for path in place.iterdir()] == ["new"]


@as_root
def test_a_place_that_may_only_be_read_is_found_before_the_work(tmp_path: Path, mount: Callable[..., None]) -> None:
    place = tmp_path / "volume"
    place.mkdir()
    mount("-t", "tmpfs", "-o", "ro", "none", str(place))
    for refused in (check_writable, check_folder_writable):
        with pytest.raises(InputError, match="may not be written to"):
            refused(place / "deep" / "x")
    with pytest.raises(InputError), atomic_folder(place / "x"):
        pytest.fail("the work began")


@as_root
def test_a_file_that_is_ours_in_a_folder_that_is_not_is_written_in_place(everyones: Path) -> None:
    folder = everyones / "theirs"
    folder.mkdir()
    (folder / "x").write_text("old and longer")
    (folder / "x").chmod(0o666)
    code = "import os; from pathlib import Path; from edgeclip.files import write_text; os.setuid(12345)\n"
    done = python(code + f"write_text(Path({str(folder / 'x')!r}), 'new')")
    assert done.returncode == 0, done.stderr
    assert (folder / "x").read_text() == "new"


@pytest.mark.parametrize("there", [False, True])
def test_several_files_come_together_or_not_at_all(tmp_path: Path, there: bool) -> None:
    out = tmp_path / "out"
    if there:
        out.mkdir()
        (out / "a").write_text("old")
        (out / "other").write_text("other")

    def fail() -> None:
        with atomic_files(out) as folder:
            (folder / "a").write_text("new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert out.exists() == there
    if there:
        (tmp_path / "real").touch()
        (out / "a").unlink()
        (out / "a").symlink_to("../real")
    with atomic_files(out) as folder:
        (folder / "a").write_text("new")
    assert (out / "a").read_text() == "new"
    assert (out / "a").is_symlink() == there
    assert sorted(path.name for path in out.iterdir()) == (["a", "other"] if there else ["a"])


# --- no room ----------------------------------------------------------------------------------------------------------


@as_root
def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path, mount: Callable[..., None]) -> None:
    mount("-t", "tmpfs", "-o", "size=64k", "none", str(tmp_path))
    with pytest.raises(InputError, match=r"cannot write .*x \(No space left on device\): make room"):
        write_text(tmp_path / "x", "x" * 200_000)
    assert list(tmp_path.iterdir()) == []


def test_a_size_limit_is_one_sentence_whoever_meets_it(tmp_path: Path) -> None:
    code = f"""
import resource, numpy as np
from pathlib import Path
from safetensors.numpy import save_file
from edgeclip.errors import InputError
from edgeclip.files import atomic_file
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    with atomic_file(Path({str(tmp_path / "x")!r})) as temporary:
        save_file({{"x": np.zeros(10_000)}}, temporary)
except InputError as error:
    print(error)
"""
    done = python(code)
    assert "(File too large): make room or choose another place" in done.stdout, done.stderr
    assert list(tmp_path.iterdir()) == []


# --- what a killed process left ---------------------------------------------------------------------------------------


def killed_while(code: str) -> None:
    """Run Python that prints a line when it is at work, and kill it there."""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout
    process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    process.stdout.close()


def test_what_a_killed_process_left_is_swept_by_the_next_run(tmp_path: Path) -> None:
    for what in ("atomic_file", "atomic_folder"):
        killed_while(
            f"import time; from pathlib import Path; from edgeclip.files import {what}\n"
            f"with {what}(Path({str(tmp_path / 'x')!r})) as place:\n"
            "    (place / 'y' if place.is_dir() else place).write_bytes(b'half'); print(flush=True); time.sleep(60)"
        )
        assert len(list(tmp_path.glob(".x.*.part"))) == 1  # the second swept what the first left
    write_text(tmp_path / "another", "whole")
    assert [path.name for path in tmp_path.iterdir()] == ["another"]


def test_what_a_living_process_works_on_is_not_swept(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "x") as temporary:
        temporary.write_text("under way")
        another = f"write_text(Path({str(tmp_path / 'y')!r}), '')"
        assert python(f"from pathlib import Path; from edgeclip.files import write_text; {another}").returncode == 0
        assert temporary.read_text() == "under way"
    assert (tmp_path / "x").read_text() == "under way"


def test_a_bundle_that_was_about_to_be_replaced_comes_back(tmp_path: Path) -> None:
    """A process that was killed between the two renames: what was there is in its folder, and nothing in its place."""
    left = tmp_path / ".x.0123abcd.part"
    (left / ".old" / "x").mkdir(parents=True)
    (left / ".old" / "x" / "precious").touch()
    (left / "x").mkdir()
    write_text(tmp_path / "another", "whole")
    assert (tmp_path / "x" / "precious").exists()
    assert not left.exists()


def test_other_peoples_hidden_files_stay(tmp_path: Path) -> None:
    kept = [".x.part", ".x.0123abcd.part.bak", "x.0123abcd.part", ".x.0123abcd.tmp"]
    for name in kept:
        (tmp_path / name).mkdir()
    (tmp_path / ".y.0123abcd.part").write_text("no folder of ours")
    (tmp_path / ".z.0123abcd.part").symlink_to(tmp_path / "x.0123abcd.part")
    write_text(tmp_path / "another", "whole")
    assert {path.name for path in tmp_path.iterdir()} == {*kept, ".y.0123abcd.part", ".z.0123abcd.part", "another"}


def test_nothing_is_swept_where_other_machines_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = tmp_path / ".x.0123abcd.part"
    left.mkdir()
    mounts = [("/", "ext4"), (str(tmp_path), "nfs4")]
    monkeypatch.setattr("edgeclip.outputs._mounts", lambda: mounts)
    assert is_shared(tmp_path)
    write_text(tmp_path / "another", "whole")
    assert left.exists()


# --- no cache ---------------------------------------------------------------------------------------------------------

KEEPS = "from edgeclip.files import cache_dir, keep_json\nplace = cache_dir('proofs')\nkeep_json(place / 'x', [1])\n"
KEEPS += "print(place); print((place / 'x').read_text()); cache_dir('bundles', 'y')"


@as_root
@pytest.mark.parametrize("home", [None, "/", "", "/nonexistent", "relative"])
def test_a_user_without_home_name_or_rights_goes_on_without_a_cache(everyones: Path, home: str | None) -> None:
    environment = {key: value for key, value in os.environ.items() if "CACHE" not in key and key != "HOME"}
    if home is not None:
        environment["HOME"] = home
    done = subprocess.run(
        [sys.executable, "-c", f"import os, edgeclip.files; os.chdir('/'); os.setuid(54321)\n{KEEPS}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=environment | {"TMPDIR": str(everyones)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("EDGECLIP_CACHE") == 1
    assert '"value":[1]' in done.stdout
    assert str(everyones) in done.stdout
    assert list(everyones.iterdir()) == []  # what stood in for it went with the process


@as_root
def test_a_library_that_looks_for_a_home_is_loaded_without_one() -> None:
    """OpenVINO does when it is imported; only the user's name is another here, so that its files can be read."""
    pytest.importorskip("openvino")
    code = "import os, edgeclip.extras; os.environ.pop('HOME', None); os.setreuid(54321, 0)\n"
    done = python(code + "print(edgeclip.extras.require('openvino', purpose='test').__name__)")
    assert done.stdout == "openvino\n", done.stderr


@as_root
def test_a_cache_that_may_only_be_read_is_read(tmp_path: Path, mount: Callable[..., None]) -> None:
    real, place = tmp_path / "real", tmp_path / "cache"
    (real / "proofs").mkdir(parents=True)
    (real / "proofs" / "known").write_text("proved")
    place.mkdir()
    mount("--bind", str(real), str(place))
    mount("-o", "remount,bind,ro", str(place))
    done = python(f"{KEEPS}; print((cache_dir('proofs') / 'known').read_text())", EDGECLIP_CACHE=str(place))
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("proved\n")
    assert done.stderr.count("may not be written to") == 1


def test_no_place_at_all_names_the_variable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = python(
        f"import tempfile; tempfile.tempdir = '/proc/1'\n{KEEPS}", EDGECLIP_CACHE=str(tmp_path / "file" / "cache")
    )
    assert "InputError" in done.stderr
    assert "set EDGECLIP_CACHE" in done.stderr


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGECLIP_CACHE", str(tmp_path / "own"))
    assert cache_dir("x") == tmp_path / "own" / "x"
    monkeypatch.delenv("EDGECLIP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir("x") == tmp_path / "edgeclip" / "x"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, by its specification
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert cache_dir("x") == tmp_path / "me" / ".cache" / "edgeclip" / "x"


def test_a_home_is_put_in_where_no_shell_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    for named, place in (("~/c", "me/c"), ("~", "me"), ("./~/c", "~/c"), ("a~", "a~")):
        monkeypatch.setenv("EDGECLIP_CACHE", named)
        assert cache_place() == tmp_path / place
    monkeypatch.setenv("EDGECLIP_CACHE", "~nobody-of-this-name/c")
    with pytest.raises(InputError, match="no home folder"):
        cache_place()


def test_a_workshop_of_a_long_name_can_be_made(tmp_path: Path) -> None:
    path = tmp_path / ("ü" * 120 + ".txt")
    write_text(path, "x")
    assert path.read_text() == "x"
    with workshop() as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not folder.exists()
    assert files._SWEPT
