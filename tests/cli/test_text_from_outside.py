"""Names, paths and messages from outside reach the terminal as text: whatever verb prints them, and wherever in it."""

from __future__ import annotations

import ast
import io
import json
import logging
import re
import shutil
import signal
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from rich.table import Table
from rich.text import Text

from edgeclip import Bundle, PromptTable, make_classes
from edgeclip.cli import main
from edgeclip.cli.common import NoticesLog, SafeConsole, echo_json
from edgeclip.errors import EdgeclipError
from edgeclip.manifest import read_manifest, write_manifest
from edgeclip.prompts import unit_rows
from edgeclip.runtime.account import Account, SourceCount
from edgeclip.runtime.sinks.terminal import TerminalView, print_summary
from tests.conftest import WIDTH
from tests.sink_runs import Named, event, make_run, pixels, record

PACKAGE = Path(__file__).parents[2] / "edgeclip"
# Markup that ends what was never begun, a title for the window, a C1 control, an override of the writing's direction.
HOSTILE = "a[/b]\x1b]0;mine\x07\x9b31m\u202e:cat:"
RAW = ("\x1b", "\x9b", "\x07", "\u202e")


def is_text(shown: str) -> bool:
    """Whether nothing of it would do anything to a terminal."""
    return not any(control in shown for control in RAW)


@pytest.fixture
def edgeclip(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """The command line in this process: what it, and the libraries below it, wrote to the terminal."""
    handlers = list(logging.getLogger().handlers)
    terminate = signal.getsignal(signal.SIGTERM)

    def run(*arguments: object, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["edgeclip", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        assert ended.value.code == code, out + err
        assert "Traceback" not in out + err
        assert is_text(out + err), repr(out + err)
        return out + err

    yield run
    logging.captureWarnings(capture=False)
    logging.getLogger().handlers = handlers
    signal.signal(signal.SIGTERM, terminate)


@pytest.fixture
def hostile_bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A bundle whose folder, model, classes and tools have such names, as one from a stranger may."""
    bundle = Bundle.open(tiny_bundle)
    rows = unit_rows(np.random.default_rng(1).standard_normal((2, WIDTH)).astype(np.float32))
    table = PromptTable("names", make_classes([HOSTILE, "cat"]), rows, ("{}",), bundle.manifest.model.id)
    bundle.add_table(table)
    manifest = read_manifest(tiny_bundle)
    model = msgspec.structs.replace(manifest.model, name=HOSTILE)
    write_manifest(tiny_bundle, msgspec.structs.replace(manifest, model=model, tools={HOSTILE: HOSTILE}))
    return Path(shutil.move(tiny_bundle, placed(tmp_path / f"{HOSTILE}.edgeclip")))


def placed(path: Path) -> Path:
    """The path, whose folder is there: a slash may be in the middle of a name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_names_in_a_bundle_are_text(
    edgeclip: Callable[..., str], hostile_bundle: Path, video: Path, tmp_path: Path
) -> None:
    assert r"a[/b]\x1b]0;mine" in edgeclip("inspect", hostile_bundle)
    assert "files match" in edgeclip("verify", hostile_bundle)
    film = placed(tmp_path / f"film{HOSTILE}.mp4")
    shutil.copy(video, film)
    outputs = [part for suffix in ("jsonl", "csv") for part in (f"--{suffix}", f"{film}.{suffix}")]
    said = edgeclip("label", hostile_bundle, film, film, "--table", "names", "--limit", 3, *outputs)
    assert r"a[/b]\x1b]0;mine" in said


@pytest.mark.parametrize(
    "arguments",
    [
        ["label", "BUNDLE", "NAME"],
        ["label", "BUNDLE", "NAME://x"],
        ["label", "BUNDLE", "http://127.0.0.1:9/NAME"],
        ["label", "BUNDLE", "rtsp://127.0.0.1:9/x#NAME=NAME"],
        ["label", "BUNDLE", "gst:NAME ! NAME"],
        ["label", "BUNDLE", "csi://NAME"],
        ["label", "BUNDLE", "/dev/videoNAME"],
        ["label", "BUNDLE", "BROKEN.jpg"],
        ["label", "BUNDLE", "BROKEN.mp4"],
        ["label", "BUNDLE", "FOLDER"],
        ["label", "BUNDLE", "VIDEO", "--table", "NAME"],
        ["label", "BUNDLE", "VIDEO", "--table", "BROKEN.safetensors"],
        ["label", "BUNDLE", "VIDEO", "--tiles", "NAME"],
        ["label", "BUNDLE", "VIDEO", "--regions", "BROKEN.json"],
        ["label", "BUNDLE", "VIDEO", "--variant", "NAME"],
        ["label", "BUNDLE", "VIDEO", "--engine", "NAME"],
        ["label", "BUNDLE", "VIDEO", "--preprocess", "NAME"],
        ["label", "BUNDLE", "VIDEO", "--top", "NAME"],
        ["label", "BUNDLE", "VIDEO", "--mqtt", "mqtt://h/NAME+"],
        ["label", "BUNDLE", "VIDEO", "--prometheus", "NAME"],
        ["label", "BUNDLE", "VIDEO", "--prometheus", "NAME:0"],
        ["label", "BUNDLE", "VIDEO", "--webhook", "NAME://x"],
        ["label", "BUNDLE", "VIDEO", "--web", "--web-address", "NAME:1"],
        ["label", "BUNDLE", "VIDEO", "--overlay", "NAME.gif"],
        ["label", "NAME", "VIDEO"],
        ["label", "BROKEN.tar", "VIDEO"],
        ["inspect", "NAME"],
        ["inspect", "BUNDLE", "NAME"],
        ["inspect", "--NAME"],
        ["verify", "BROKEN.tar"],
        ["NAME"],
        ["devices", "NAME"],
        ["devices", "show", "NAME"],
        ["doctor", "--root", "NAME"],
        ["plan", "NAME", "--device", "NAME"],
        ["prompts", "build", "BUNDLE", "--name", "NAME", "--classes", "a, b"],
        ["eval", "BUNDLE", "--data", "NAME"],
        ["eval", "BUNDLE", "--data", "FOLDER"],
        ["bench", "NAME"],
        ["bench", "BUNDLE", "--engines", "NAME"],
        ["calibrate", "images", "FOLDER", "--output", "NAME"],
        ["calibrate", "images", "NAME", "--output", "new"],
        ["calibrate", "drift", "NAME", "NAME"],
        ["train", "NAME.yaml"],
        ["train", "BROKEN.yaml"],
        ["fewshot", "NAME"],
        ["robustness", "NAME"],
        ["tradeoff", "NAME"],
    ],
    ids=" ".join,
)
def test_words_of_the_command_line_and_names_of_files_are_text(
    edgeclip: Callable[..., str],
    tiny_bundle: Path,
    video: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for suffix in ("jpg", "mp4", "safetensors", "json", "yaml"):
        placed(tmp_path / f"BROKEN{HOSTILE}.{suffix}").write_text(f"{{{HOSTILE}: [{HOSTILE}\n")
    with tarfile.open(tmp_path / f"BROKEN{HOSTILE}.tar", "w") as tar:
        tar.add(video, arcname=f"../{HOSTILE}")
    placed(tmp_path / f"FOLDER{HOSTILE}" / HOSTILE / f"{HOSTILE}.jpg").write_text("no picture")
    words = [
        word.replace("NAME", HOSTILE)
        .replace("BROKEN", f"BROKEN{HOSTILE}")
        .replace("FOLDER", f"FOLDER{HOSTILE}")
        .replace("BUNDLE", str(tiny_bundle))
        .replace("VIDEO", str(video))
        for word in arguments
    ]
    edgeclip(*words, code=2)


@pytest.mark.parametrize(
    "arguments",
    [
        ["label", "SECRET", "x"],
        ["label", "BUNDLE", "VIDEO", "--table", "SECRET"],
        ["label", "BUNDLE", "VIDEO", "--prometheus=SECRET"],
        ["label", "BUNDLE", "VIDEO", "--overlay", "SECRET"],
        ["label", "BUNDLE", "VIDEO", "--engine", "SECRET"],
        ["label", "BUNDLE", "VIDEO", "--top", "SECRET"],
        ["inspect", "BUNDLE", "SECRET"],
        ["verify", "SECRET"],
        ["devices", "show", "SECRET"],
        ["doctor", "--root", "SECRET"],
        ["eval", "BUNDLE", "--data", "SECRET"],
    ],
    ids=" ".join,
)
def test_an_address_in_anothers_place_is_told_without_its_secret(
    edgeclip: Callable[..., str], tiny_bundle: Path, video: Path, arguments: list[str]
) -> None:
    secret = "rtsp://admin:zq7k/wx9j@127.0.0.1:9/live?pwd=zq7k"
    stand_ins = {"BUNDLE": str(tiny_bundle), "VIDEO": str(video)}
    said = edgeclip(*(stand_ins.get(word, word).replace("SECRET", secret) for word in arguments), code=2)
    assert "zq7k" not in said
    assert "wx9j" not in said


def test_what_goes_wrong_unforeseen_is_told_as_text(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of ours is a traceback, whose message may hold a name."""

    def fails() -> None:
        raise KeyError(HOSTILE)

    monkeypatch.setattr(sys, "argv", ["edgeclip", "inspect", "x"])
    monkeypatch.setattr("edgeclip.cli.verbs.app", fails)
    handlers, terminate = list(logging.getLogger().handlers), signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        main()
    logging.captureWarnings(capture=False)
    logging.getLogger().handlers = handlers
    signal.signal(signal.SIGTERM, terminate)
    said = capfd.readouterr().err
    assert ended.value.code == 1
    assert "Traceback" in said
    assert "KeyError" in said
    assert is_text(said)


# --- what draws on a terminal -----------------------------------------------------------------------------------------


@pytest.fixture
def screen() -> SafeConsole:
    """A console that takes its file for a terminal."""
    return SafeConsole(file=io.StringIO(), force_terminal=True, width=200, color_system=None)


def drawn(console: SafeConsole) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def harmless(shown: str) -> bool:
    """Whether nothing of the hostile name is raw; a terminal's own controls are there."""
    return not any(part in shown for part in ("\x1b]0", "\x07", "\x9b", "\u202e", "🐱")) and "a[/b]" in shown


def test_tables_titles_and_texts_are_safe(screen: SafeConsole) -> None:
    table = Table(HOSTILE, title=HOSTILE, caption=HOSTILE)
    table.add_row(HOSTILE)
    table.add_row(Text(HOSTILE))
    for what in (table, HOSTILE, Text(HOSTILE), [HOSTILE], {HOSTILE: 1}):
        screen.print(what)
    screen.rule(HOSTILE)
    screen.log(HOSTILE)
    assert harmless(drawn(screen))


def test_status_and_progress_are_safe(screen: SafeConsole, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeclip.cli.common.notices", screen)
    from edgeclip.cli.common import changing_bar, named_bars

    with screen.status(HOSTILE) as status:
        status.update(HOSTILE)
        status.update(spinner="line")
    with named_bars() as bars:
        bars(HOSTILE, 1, 2)
    with changing_bar(HOSTILE) as bar:
        bar(HOSTILE, 1, 2)
    assert harmless(drawn(screen))


def test_logged_lines_are_safe_and_never_raise(screen: SafeConsole, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeclip.cli.common.notices", screen)
    log = logging.getLogger("edgeclip.test")
    log.addHandler(handler := NoticesLog())
    try:
        log.warning("%s: %s", HOSTILE, EdgeclipError(HOSTILE))
        log.info("quiet")
    finally:
        log.removeHandler(handler)
    assert harmless(drawn(screen))
    assert "quiet" not in drawn(screen)


def test_the_terminal_view_and_the_summary_are_safe(screen: SafeConsole, tiny_bundle: Path) -> None:
    run = make_run(tiny_bundle, Named(HOSTILE), Named("yard"))
    view = TerminalView(screen)
    view.open(run)
    view.write(record(0, HOSTILE, source=HOSTILE, present=[HOSTILE], events=[event(0, label=HOSTILE)]), pixels(0))
    view.end(HOSTILE, [], HOSTILE)
    view.close(complete=True)
    account = Account(sources={HOSTILE: SourceCount(read=1, encoded=1), "b": SourceCount()})
    account.count_label(HOSTILE)
    account.sink_failed[HOSTILE] = HOSTILE
    print_summary(account, screen)
    assert harmless(drawn(screen))


def test_an_undecodable_file_name_can_be_printed() -> None:
    console = SafeConsole(file=io.TextIOWrapper(raw := io.BytesIO(), encoding="utf-8"), width=200)
    console.print(b"caf\xe9.jpg".decode("utf-8", "surrogateescape"))
    console.file.flush()
    assert raw.getvalue() == rb"caf\udce9.jpg" + b"\n"


def test_json_is_escaped_where_it_lets_controls_through(capsys: pytest.CaptureFixture[str]) -> None:
    echo_json(json.dumps({HOSTILE: "Straße 😀\n\ud800"}, ensure_ascii=False))
    said = capsys.readouterr().out
    assert is_text(said)
    assert json.loads(said) == {HOSTILE: "Straße 😀\n\ud800"}


def test_no_verb_has_a_console_of_its_own_or_prints_past_it() -> None:
    """JSON goes by a function of its own, with its own escapes."""
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)) if re.search(r"(print|Console|write|echo)\(", text) else ():
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            where = f"{path.relative_to(PACKAGE)}:{node.lineno}"
            if called == "print" and path == PACKAGE / "cli" / "__init__.py":  # where rich itself does not load
                assert "printable(" in ast.unparse(node), where
                continue
            assert called not in {"print", "Console", "rich.print", "sys.stdout.write", "sys.stderr.write"}, where
            assert called != "typer.echo" or where.startswith("cli/common.py"), where
