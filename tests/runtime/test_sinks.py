"""Sinks write what they were given, whole; one that fails, hangs or fills the disk is named and harms no other."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest

from edgeclip.errors import InputError
from edgeclip.runtime.records import LabelledFrame, Scored, View
from edgeclip.runtime.sinks.base import Sink, SinkThread, close_sinks, slugs
from edgeclip.runtime.sinks.files import COLUMNS, CsvSink, JsonlSink
from edgeclip.runtime.sinks.make import SinkOptions, make_sinks
from edgeclip.runtime.sinks.video import OverlaySink
from edgeclip.runtime.sources.open import Frame
from tests.sink_runs import Named, event, happens, make_run, pixels, push, record


def frames_in(path: Path) -> list[int]:
    return [json.loads(line)["frame"] for line in path.read_text().splitlines()]


# --- files ------------------------------------------------------------------------------------------------------------


def test_jsonl_holds_every_record_as_it_was(tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "out" / "labels.jsonl"
    records = [record(index, events=[event(index)], present=["cat"]) for index in range(3000)]
    push(make_run(tiny_bundle), [JsonlSink(path)], records)
    assert [msgspec.json.decode(line, type=LabelledFrame) for line in path.read_bytes().splitlines()] == records


def test_a_file_of_a_files_run_is_whole_or_absent(tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    sinks = [JsonlSink(out / "a.jsonl"), CsvSink(out / "b.csv"), OverlaySink(out / "c.mp4")]
    threads = [SinkThread(sink, run) for run in [make_run(tiny_bundle)] for sink in sinks]
    for thread in threads:
        thread.put(record(0), pixels(0))
    assert not [path for path in out.iterdir() if not path.name.startswith(".")]
    close_sinks(threads, complete=False)
    assert list(out.iterdir()) == []


def test_an_earlier_file_survives_a_failed_run(tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text("precious\n")
    push(make_run(tiny_bundle), [JsonlSink(path)], [record(0)], complete=False)
    assert path.read_text() == "precious\n"


def test_a_file_of_a_camera_can_be_followed(tiny_bundle: Path, tmp_path: Path) -> None:
    path, rows = tmp_path / "labels.jsonl", tmp_path / "labels.csv"
    run = make_run(tiny_bundle, Named(live=True))
    jsonl, table = JsonlSink(path), CsvSink(rows)
    for sink in (jsonl, table):
        sink.open(run)
    for index in range(5):
        jsonl.write(record(index), None)
        table.write(record(index), None)
        assert frames_in(path) == list(range(index + 1))
        assert len(rows.read_text().splitlines()) == index + 2
    for sink in (jsonl, table):
        sink.close(complete=False)  # a run that failed keeps what was seen
    assert frames_in(path) == list(range(5))


def test_rotation_splits_no_line_and_keeps_so_many(tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text('{"frame": -1}\n')
    push(
        make_run(tiny_bundle, Named(live=True)),
        [JsonlSink(path, rotate_mb=0.001, keep=3)],
        [record(index) for index in range(40)],
    )
    files = [path, *(path.with_name(f"labels.jsonl.{number}") for number in (1, 2, 3))]
    assert sorted(tmp_path.glob("labels*")) == files
    assert all(file.stat().st_size <= 1000 for file in files)
    kept = [frame for file in reversed(files) for frame in frames_in(file)]
    assert kept == list(range(kept[0], 40))
    assert len(kept) > 20


def test_rotation_keeps_what_an_earlier_run_left(tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text('{"frame": -1}\n')
    push(make_run(tiny_bundle, Named(live=True)), [JsonlSink(path, rotate_mb=1)], [record(0)])
    assert frames_in(tmp_path / "labels.jsonl.1") == [-1]
    assert frames_in(path) == [0]


def test_files_are_not_rotated_in_a_files_run(tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    push(make_run(tiny_bundle), [JsonlSink(path, rotate_mb=0.001)], [record(index) for index in range(40)])
    assert frames_in(path) == list(range(40))


def test_csv_has_a_row_a_frame_and_view(tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    views = [View("things", "gate", "cup | mug", 0.5, [Scored("cup | mug", 0.5)], ["cup | mug", 'a "b", c'])]
    views.append(View("weather", "gate", "line\nbreak", 0.25, [Scored("x", 0.25)]))
    push(make_run(tiny_bundle), [CsvSink(path)], [record(0), record(1, views=views, gated=True, source="street")])
    rows = list(csv.DictReader(io.StringIO(path.read_text(), newline="")))
    assert tuple(rows[0]) == COLUMNS
    assert [(row["source"], row["frame"], row["table"], row["region"], row["gated"]) for row in rows] == [
        ("yard", "0", "things", "", "0"),
        ("street", "1", "things", "gate", "1"),
        ("street", "1", "weather", "gate", "1"),
    ]
    assert [row["label"] for row in rows] == ["cat", "cup | mug", "line\nbreak"]
    assert [json.loads(row["present"]) for row in rows] == [[], ["cup | mug", 'a "b", c'], []]
    assert (float(rows[0]["score"]), float(rows[0]["encode_ms"]), float(rows[0]["latency_ms"])) == (0.75, 12.5, 20.25)


def test_a_pipe_is_written_to_as_it_is(tiny_bundle: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(pipe.read_text().splitlines()))
    reader.start()
    push(make_run(tiny_bundle), [JsonlSink(pipe)], [record(index) for index in range(10)])
    reader.join(10)
    assert [json.loads(line)["frame"] for line in lines] == list(range(10))
    assert pipe.is_fifo()


# --- options ----------------------------------------------------------------------------------------------------------


def test_every_option_makes_its_sink(tmp_path: Path) -> None:
    options = SinkOptions(
        jsonl=tmp_path / "a.jsonl",
        csv=tmp_path / "a.csv",
        overlay=tmp_path / "a.mp4",
        mqtt="mqtt://localhost/a",
        prometheus="9100",
        webhook="http://localhost/a",
    )
    names = [sink.name for sink in make_sinks(options)]
    assert names == ["jsonl", "csv", "overlay", "mqtt", "prometheus", "webhook"]
    assert make_sinks(SinkOptions()) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overlay": Path("x.gif")}, r"\.mp4"),
        ({"jsonl": Path("/")}, "folder"),
        ({"csv": Path(__file__) / "x.csv"}, "not a folder"),
        ({"jsonl": Path("a" * 300)}, "too long"),
        ({"jsonl": Path("a"), "csv": Path("./a")}, "for two"),
        ({"jsonl": Path("a"), "jsonl_rotate_mb": 0.0}, "above 0"),
        ({"jsonl_rotate_mb": 5.0}, "expected a file `jsonl`"),
        ({"mqtt": "http://u:hunter2@localhost"}, "expected an MQTT address"),
        ({"mqtt": "mqtt://u:hunter2@localhost:port/x"}, "cannot be read"),
        ({"mqtt": "mqtt://u:hunter2@localhost/a/+"}, "cannot be published"),
        ({"mqtt": "mqtt:///base"}, "no host"),
        ({"prometheus": "metrics"}, "expected a port"),
        ({"prometheus": "127.0.0.1:99999"}, "expected a port"),
        ({"webhook": "ftp://u:hunter2@localhost/x"}, "another scheme"),
        ({"webhook": "https:///hunter2"}, "no host"),
        ({"webhook": "https://host/hunter2 b"}, "blanks"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_loaded(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        make_sinks(SinkOptions(**options))
    assert "hunter2" not in str(refused.value)


def test_a_folder_that_may_not_be_written_to_is_refused(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="may not be written"):
        make_sinks(SinkOptions(jsonl=tmp_path / "new" / "a.jsonl"))


def test_slugs_are_fit_for_topics_and_differ() -> None:
    made = slugs(["yard", "rtsp://cam/1", "rtsp:/cam/1", "", "Straße +#"])
    assert made["yard"] == "yard"
    assert len(set(made.values())) == 5
    assert all(value and set(value).isdisjoint("/+# ß") for value in made.values())


def test_a_slug_follows_its_name_and_not_the_order() -> None:
    names = ["front door", "front/door", "front_door", "Cat", "cat", "x" * 200, "x" * 201, "é", "ü"]
    made = slugs(names)
    assert len({own.casefold() for own in made.values()}) == len(names)
    assert slugs(reversed(names)) == made
    assert (made["front_door"], made["cat"]) == ("front_door", "cat")
    assert slugs([*names, made["front door"]])[made["front door"]] == made["front door"]
    assert len(set(slugs([*names, made["front door"]]).values())) == len(names) + 1
    assert max(map(len, made.values())) < 100


# --- isolation --------------------------------------------------------------------------------------------------------


class Raising(Sink):
    """Takes some records and then raises, in ``write`` and again in ``close``."""

    name = "raising"

    def __init__(self, after: int, *, lossless: bool = False) -> None:
        self.taken = 0
        self._after = after
        self.lossless = lossless  # type: ignore[misc]

    def write(self, labelled: LabelledFrame, frame: Frame | None) -> None:
        self.taken += 1
        if self.taken > self._after:
            raise ValueError("the cable is out")

    def close(self, *, complete: bool) -> None:
        raise OSError("and cannot be closed")


class Hanging(Sink):
    """Never returns from its first ``write`` until it is let go."""

    name = "hanging"

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.closed: list[bool] = []

    def write(self, labelled: LabelledFrame, frame: Frame | None) -> None:
        self.let_go.wait(60)

    def close(self, *, complete: bool) -> None:
        self.closed.append(complete)


@pytest.mark.parametrize("lossless", [False, True])
def test_a_sink_that_raises_mid_run_is_named_and_the_others_are_complete(
    tiny_bundle: Path, tmp_path: Path, lossless: bool
) -> None:
    run, raising = make_run(tiny_bundle), Raising(5, lossless=lossless)
    push(run, [raising, JsonlSink(tmp_path / "a.jsonl")], [record(index) for index in range(5000)])
    assert frames_in(tmp_path / "a.jsonl") == list(range(5000))
    assert run.account.sink_failed == {"raising": "ValueError: the cable is out"}
    assert raising.taken == 6


def test_a_sink_that_hangs_drops_and_holds_up_nobody(tiny_bundle: Path, tmp_path: Path) -> None:
    run, hanging = make_run(tiny_bundle), Hanging()
    threads = [SinkThread(sink, run) for sink in (hanging, JsonlSink(tmp_path / "a.jsonl"))]
    for index in range(3000):
        for thread in threads:
            thread.put(record(index), pixels(index))
    close_sinks(threads, complete=True, timeout_s=2.0)
    assert frames_in(tmp_path / "a.jsonl") == list(range(3000))
    assert run.account.sink_failed == {"hanging": "did not end within 2 s"}
    assert run.account.sink_dropped["hanging"] in (3000 - 1024, 3000 - 1025)  # one may be in its hands
    hanging.let_go.set()
    assert happens(lambda: hanging.closed == [False])


def test_a_lossless_sink_is_waited_for_but_not_for_ever(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeclip.runtime.sinks.base._STUCK_S", 0.5)
    run, hanging = make_run(tiny_bundle), Hanging()
    hanging.lossless = True  # type: ignore[misc]
    threads = [SinkThread(sink, run) for sink in (hanging, JsonlSink(tmp_path / "a.jsonl"))]
    for index in range(1100):
        for thread in threads:
            thread.put(record(index), pixels(index))
    assert run.account.sink_failed == {"hanging": "took nothing for 0.5 s"}
    hanging.let_go.set()
    close_sinks(threads, complete=True)
    assert frames_in(tmp_path / "a.jsonl") == list(range(1100))
    assert hanging.closed == [False]


class Holding(Raising):
    """Holds the queue up until it is let go, and then raises."""

    def __init__(self) -> None:
        super().__init__(0, lossless=True)
        self.let_go = threading.Event()

    def write(self, labelled: LabelledFrame, frame: Frame | None) -> None:
        self.let_go.wait(60)
        super().write(labelled, frame)


def test_a_sink_that_dies_frees_whoever_waits_for_it(tiny_bundle: Path) -> None:
    run, holding = make_run(tiny_bundle), Holding()
    thread = SinkThread(holding, run)
    producer = threading.Thread(target=lambda: [thread.put(record(index), pixels(index)) for index in range(3000)])
    producer.start()
    assert happens(thread._queue.full)
    holding.let_go.set()
    producer.join(15)
    assert not producer.is_alive()
    thread.close(complete=True)
    assert run.account.sink_failed == {"raising": "ValueError: the cable is out"}
    assert holding.taken == 1


def test_a_sink_that_is_behind_at_the_end_takes_what_is_queued(tiny_bundle: Path) -> None:
    run, slow = make_run(tiny_bundle), Hanging()
    thread = SinkThread(slow, run)
    for index in range(1100):
        thread.put(record(index), pixels(index))
    letting_go = threading.Timer(0.5, slow.let_go.set)
    letting_go.start()
    close_sinks([thread], complete=True, timeout_s=15.0)
    assert run.account.sink_failed == {}
    assert slow.closed == [True]


def test_a_folder_that_vanishes_is_named(tiny_bundle: Path, tmp_path: Path) -> None:
    for live in (False, True):
        folder = tmp_path / "gone"
        run = make_run(tiny_bundle, Named(live=live))
        threads = [SinkThread(JsonlSink(path), run) for path in (folder / "a.jsonl",)]
        threads.append(SinkThread(CsvSink(tmp_path / "b.csv"), run))
        shutil.rmtree(folder)
        for thread in threads:
            thread.put(record(0), pixels(0))
        close_sinks(threads, complete=True)
        assert "a.jsonl" in run.account.sink_failed.pop("jsonl")
        assert run.account.sink_failed == {}
        assert len((tmp_path / "b.csv").read_text().splitlines()) == 2


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from edgeclip.runtime.sinks.files import CsvSink, JsonlSink
from edgeclip.runtime.sinks.terminal import print_summary
from rich.console import Console
from tests.sink_runs import Named, make_run, push, record
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
bundle, out, live = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "live"
run = make_run(bundle, Named(live=live))
push(run, [JsonlSink(out / "a.jsonl"), CsvSink(out / "b.csv")], [record(index) for index in range(1000)])
print_summary(run.account, Console(width=200))
"""


@pytest.mark.parametrize("live", ["live", "files"])
def test_a_full_disk_ends_one_sink_without_half_a_line(tiny_bundle: Path, tmp_path: Path, live: str) -> None:
    """A limit on the size of files stands for the disk: JSON lines pass it, rows of the table do not."""
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tiny_bundle), str(out), live],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    assert "jsonl failed: cannot write" in done.stdout
    assert "csv" not in done.stdout
    assert len((out / "b.csv").read_text().splitlines()) == 1001
    if live == "live":
        seen = frames_in(out / "a.jsonl")
        assert seen == list(range(len(seen)))
        assert len(seen) > 300
    else:
        assert [path.name for path in out.iterdir()] == ["b.csv"]


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("name", ["file/a.jsonl", "a" * 300])
def test_a_sink_that_cannot_open_lets_nothing_start(tiny_bundle: Path, tmp_path: Path, name: str, live: bool) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot"):
        SinkThread(JsonlSink(tmp_path / name), make_run(tiny_bundle, Named(live=live)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "tiny.edgeclip"]
