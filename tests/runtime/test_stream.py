"""The loop over real files with a real encoder: every frame is accounted for, in order, and says what it says alone."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

import edgeclip
from edgeclip import Bundle, PromptTable
from edgeclip.errors import EngineError, InputError, SourceError, TableError
from edgeclip.runtime.account import Account
from edgeclip.runtime.decision import DecisionOptions
from edgeclip.runtime.encoder import ImageEncoder
from edgeclip.runtime.engines.base import Engine, FloatArray
from edgeclip.runtime.records import Event, LabelledFrame
from edgeclip.runtime.regions import crop, parse_tiles
from edgeclip.runtime.scoring import Scorer
from edgeclip.runtime.sinks.base import Run, Sink
from edgeclip.runtime.sinks.video import OverlaySink
from edgeclip.runtime.sources.open import Frame, Source, open_source
from edgeclip.runtime.stream import Stream, StreamOptions
from tests.conftest import make_table
from tests.runtime.test_sources import encode

pytestmark = pytest.mark.usefixtures("all_cores")  # threads run beside each other here

FRAMES = 40


class Kept(Sink):
    """Keeps what it is given."""

    name = "kept"
    lossless = True

    def __init__(self) -> None:
        self.records: list[LabelledFrame] = []
        self.ended: list[tuple[str, list[Event], str]] = []
        self.complete: bool | None = None
        self.run: Run | None = None

    def open(self, run: Run) -> None:
        self.run = run

    def write(self, labelled: LabelledFrame, frame: Frame | None) -> None:
        assert frame is None, "nobody asked for pixels"
        self.records.append(labelled)

    def end(self, source: str, events: list[Event], reason: str) -> None:
        self.ended.append((source, events, reason))

    def close(self, *, complete: bool) -> None:
        self.complete = complete


class Frames(Source):
    """A source of given pictures, that may end badly."""

    def __init__(self, name: str, pictures: list[np.ndarray[Any, Any]], failure: Exception | None = None) -> None:
        super().__init__(name)
        self._pictures = pictures
        self._failure = failure
        self.given = 0
        self.closed = 0

    def describe(self) -> str:
        return self.name

    def __iter__(self) -> Iterator[Frame]:
        for index, picture in enumerate(self._pictures):
            self.given += 1
            yield Frame(index, index / 10, picture)
        if self._failure:
            raise self._failure

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


@pytest.fixture
def start(bundle: Bundle) -> Callable[..., Stream]:
    """A stream of sources or their texts over the tiny bundle's table."""

    def _start(
        *sources: Source | str | Path,
        sinks: tuple[Sink, ...] = (),
        tables: Any = None,
        engine: str = "onnxruntime",
        **options: Any,
    ) -> Stream:
        opened = [source if isinstance(source, Source) else open_source(str(source)) for source in sources]
        return Stream(bundle, opened, tables or [bundle.table()], StreamOptions(**options), sinks, engine=engine)

    return _start


def noise(count: int, seed: int = 0) -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (48, 64, 3), np.uint8) for _ in range(count)]


def settled(account: Account) -> bool:
    """Whether every frame that was read is accounted for, once."""
    return all(count.read == count.dropped + count.gated + count.encoded for count in account.sources.values())


@pytest.mark.parametrize("batch", [1, 3, 8, 64])
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_every_frame_of_a_file_is_labelled_once_in_order_whatever_the_batch(
    start: Callable[..., Stream], bundle: Bundle, video: Path, batch: int, engine: str
) -> None:
    pytest.importorskip(engine)
    kept = Kept()
    stream = start(video, sinks=(kept,), batch=batch, engine=engine)
    records = list(stream)
    assert [record.frame for record in records] == list(range(FRAMES))
    assert kept.records == records
    assert kept.complete is True
    assert stream.account.read == stream.account.encoded == FRAMES
    assert sum(stream.account.labels.values()) == FRAMES
    with open_source(str(video)) as source, ImageEncoder(bundle) as encoder:
        scorer = Scorer(bundle.table(), bundle.manifest.encoder)
        for frame, record in zip(source, records, strict=True):
            (scores,) = scorer.scores(encoder.encode([frame.pixels]))
            assert record.label == scorer.top(scores, 1)[0].label
            assert record.score == pytest.approx(scores.max(), abs=1e-3)
            assert record.latency_ms > 0
            assert record.encode_ms > 0
            assert (record.source, record.gated, record.views) == ("", False, [])


def test_a_file_as_a_camera_drops_what_is_late_and_counts_it(start: Callable[..., Stream], video: Path) -> None:
    stream = start(open_source(str(video), realtime=True))
    taken = []
    for record in stream:
        taken.append(record.frame)
        time.sleep(0.12)  # a consumer that takes longer than the 50 ms between frames
    account = stream.account
    assert taken == sorted(set(taken))
    assert account.encoded == len(taken) < FRAMES
    assert account.dropped > 0
    assert account.read == FRAMES == account.dropped + account.encoded


def test_cameras_share_the_encoder_and_keep_their_own_order(start: Callable[..., Stream]) -> None:
    pictures = {name: noise(30, seed) for seed, name in enumerate(("yard", "gate", "hall"))}
    together = list(start(*(Frames(name, shown) for name, shown in pictures.items()), batch=4))
    for name, shown in pictures.items():
        alone = list(start(Frames(name, shown)))
        own = [record for record in together if record.source == name]
        assert [record.frame for record in own] == list(range(30))
        assert [record.label for record in own] == [record.label for record in alone]
        np.testing.assert_allclose([record.score for record in own], [record.score for record in alone], atol=1e-4)


def test_two_sources_of_one_name_are_told_apart(start: Callable[..., Stream]) -> None:
    stream = start(Frames("yard", noise(2)), Frames("yard", noise(3)))
    assert {record.source for record in stream} == {"yard", "yard 2"}
    assert [count.encoded for count in stream.account.sources.values()] == [2, 3]


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (["a", "a", "a 2"], ["a", "a 3", "a 2"]),
        (["a 2", "a", "a"], ["a 2", "a", "a 3"]),
        (["a", "a 2", "a", "a 2"], ["a", "a 2", "a 3", "a 2 2"]),
        (["a", "a", "a 2", "a 3", "a"], ["a", "a 4", "a 2", "a 3", "a 5"]),
        (["", "", "unnamed"], ["unnamed", "unnamed 2", "unnamed 3"]),
        (["", "unnamed 2", "", "x"], ["unnamed", "unnamed 2", "unnamed 3", "x"]),
    ],
)
def test_every_source_has_its_own_name_and_count(
    start: Callable[..., Stream], given: list[str], names: list[str]
) -> None:
    stream = start(*(Frames(name, noise(frames)) for frames, name in enumerate(given, start=1)))
    labelled = Counter(record.source for record in stream)
    assert [source.name for source in stream._sources] == names
    assert labelled == {name: frames for frames, name in enumerate(names, start=1)}
    assert {name: count.encoded for name, count in stream.account.sources.items()} == labelled


def test_one_source_twice_is_refused(start: Callable[..., Stream]) -> None:
    source = Frames("yard", noise(2))
    with pytest.raises(InputError, match="each source once"):
        start(source, source)
    assert source.closed


def test_one_source_that_fails_does_not_end_the_others(start: Callable[..., Stream]) -> None:
    kept, broken, whole = Kept(), Frames("broken", noise(2), SourceError("cut off")), Frames("whole", noise(20))
    account = start(broken, whole, sinks=(kept,)).run()
    assert [count.encoded for count in account.sources.values()] == [2, 20]
    assert sorted((name, reason) for name, _, reason in kept.ended) == [("broken", "cut off"), ("whole", "")]
    assert kept.complete is True
    assert broken.closed
    assert whole.closed


def test_the_only_source_that_fails_ends_the_run(start: Callable[..., Stream]) -> None:
    kept = Kept()
    with pytest.raises(SourceError, match="cut off"):
        start(Frames("broken", noise(2), SourceError("cut off")), sinks=(kept,)).run()
    assert len(kept.records) == 2
    assert kept.complete is False


def test_an_engine_that_fails_ends_the_run_and_closes_everything(
    start: Callable[..., Stream], monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeclip.runtime.engines.onnxruntime import OrtEngine

    healthy = OrtEngine._infer

    def breaks(engine: Engine, images: FloatArray) -> FloatArray:
        return healthy(engine, images) * np.nan

    kept, source = Kept(), Frames("yard", noise(50))
    stream = start(source, sinks=(kept,))
    monkeypatch.setattr(OrtEngine, "_infer", breaks)
    with pytest.raises(EngineError, match="not finite"):
        stream.run()
    assert kept.complete is False
    assert source.closed


def test_a_slow_consumer_holds_back_a_file_and_no_more_than_a_few_frames_wait(start: Callable[..., Stream]) -> None:
    source = Frames("long", noise(200))
    stream = start(source, batch=2, parallel=2)
    for seen, _record in enumerate(stream, start=1):
        time.sleep(0.002)
        assert source.given - seen <= 2 * 3 + 1  # places for three batches, and the frame in the source's thread


@pytest.mark.parametrize("after", [1, 13])
def test_stopping_labels_what_was_taken_and_keeps_the_output(start: Callable[..., Stream], after: int) -> None:
    kept, source = Kept(), Frames("endless", noise(4) * 10_000)
    stream = start(source, sinks=(kept,))
    for seen, _record in enumerate(stream, start=1):
        if seen == after:
            threading.Thread(target=stream.stop, kwargs={"interrupted": True}).start()
    account = stream.account
    assert account.interrupted
    assert settled(account)
    assert after <= account.encoded < 40_000
    assert len(kept.records) == account.encoded
    assert kept.complete is True


class Lost(Kept):
    """Fails at its third record."""

    name = "lost"

    def write(self, labelled: LabelledFrame, frame: Frame | None) -> None:
        super().write(labelled, frame)
        if len(self.records) == 3:
            raise BrokenPipeError("nobody reads")


class Shown(Kept):
    """One that only shows what passes."""

    name = "shown"
    only_shows = True


@pytest.mark.parametrize("shown", [False, True])
def test_a_run_ends_once_every_output_has_failed(start: Callable[..., Stream], shown: bool) -> None:
    source = Frames("yard", noise(400))
    account = start(source, sinks=(Lost(), *([Shown()] if shown else []))).run()
    assert account.sink_failed == {"lost": "BrokenPipeError: nobody reads"}
    assert 3 <= account.labelled < 400
    assert source.given < 400


def test_a_run_goes_on_for_an_output_that_is_left_and_for_whoever_iterates(start: Callable[..., Stream]) -> None:
    assert start(Frames("yard", noise(60)), sinks=(Lost(), Kept())).run().labelled == 60
    assert start(Frames("yard", noise(60)), sinks=(Shown(),)).run().labelled == 60
    assert start(Frames("yard", noise(60))).run().labelled == 60
    assert sum(1 for _ in start(Frames("yard", noise(60)), sinks=(Lost(),))) == 60


def test_a_silent_camera_can_be_stopped(start: Callable[..., Stream], video: Path) -> None:
    """The first frame of the file is due at once, the second in 20 s."""
    slow = video.with_name("slow.mp4")
    with av.open(str(video)) as original, av.open(str(slow), "w") as copy:
        stream = copy.add_stream_from_template(original.streams.video[0])
        for packet in original.demux(original.streams.video[0]):
            if packet.dts is not None:
                packet.pts, packet.dts = packet.pts * 400, packet.dts * 400
                packet.stream = stream
                copy.mux(packet)
    loop = start(open_source(str(slow), realtime=True))
    frames = iter(loop)
    assert next(frames).frame == 0
    threading.Thread(target=loop.stop).start()
    began = time.perf_counter()
    assert list(frames) == []
    assert time.perf_counter() - began < 10
    assert settled(loop.account)


def test_leaving_a_stream_early_closes_its_sources_and_sinks(start: Callable[..., Stream]) -> None:
    kept, source = Kept(), Frames("endless", noise(4) * 10_000)
    for _record in start(source, sinks=(kept,)):
        break
    assert source.closed
    assert kept.complete is False
    assert not [
        thread for thread in threading.enumerate() if thread.name.startswith(("edgeclip-source", "edgeclip-batch"))
    ]


def test_the_limit_is_for_each_source(start: Callable[..., Stream], video: Path) -> None:
    assert start(video, limit=7).run().read == 7
    assert [c.read for c in start(video, Frames("x", noise(9)), limit=5).run().sources.values()] == [5, 5]


# Scene gating, regions, tables


def test_unchanged_frames_are_not_encoded_and_say_what_the_last_one_did(start: Callable[..., Stream]) -> None:
    first, second = (np.full((96, 128, 3), level, np.uint8) for level in (40, 40))
    second[20:60, 30:80] = 220
    shown = [first] * 20 + [second] * 20 + [first] * 5
    stream = start(Frames("still", shown), gate=6.0)
    records = list(stream)
    assert [record.frame for record in records if not record.gated] == [0, 20, 40]
    assert (stream.account.encoded, stream.account.gated, stream.account.read) == (3, 42, 45)
    every = list(start(Frames("still", shown)))
    assert [record.label for record in records] == [record.label for record in every]
    assert all(record.encode_ms == 0 for record in records if record.gated)


def test_tiles_say_what_their_crops_say(start: Callable[..., Stream], photographs_dir: Path) -> None:
    path = photographs_dir / "astronaut.jpg"
    tiles = parse_tiles("3x2")
    (record,) = start(path, regions=tiles)
    with open_source(str(path)) as source:
        (frame,) = source
    assert [view.region for view in record.views] == [tile.name for tile in tiles]
    for view, tile in zip(record.views, tiles, strict=True):
        (alone,) = start(Frames("crop", [np.ascontiguousarray(crop(frame.rgb(), tile))]))
        assert view.label == alone.label
        assert view.score == pytest.approx(alone.score, abs=1e-3)
    assert record.label == record.views[0].label


def test_a_video_that_becomes_too_small_for_a_while_goes_on(start: Callable[..., Stream], tmp_path: Path) -> None:
    """As a camera that falls back to a substream: what is below the least region counts as failed."""
    path = encode(tmp_path / "drops.ts", [(160, 120), (40, 32), (160, 120)], frames=10)
    overlay = tmp_path / "shown.mp4"
    stream = start(path, regions=parse_tiles("6x5"), sinks=(OverlaySink(overlay),))
    assert [record.frame for record in stream] == [*range(10), *range(20, 30)]
    assert (stream.account.read, stream.account.failed) == (20, 10)
    with open_source(str(overlay)) as shown:
        assert sum(1 for _ in shown) == 20


def test_several_tables_come_from_one_pass(start: Callable[..., Stream], bundle: Bundle, video: Path) -> None:
    other = make_table("other", model_id=bundle.manifest.model.id, seed=5)
    stream = start(video, tables=[bundle.table(), other], limit=6)
    records = list(stream)
    assert stream.account.encoded == 6
    for table in (bundle.table(), other):
        alone = list(start(video, tables=[table], limit=6))
        views = [next(view for view in record.views if view.table == table.name) for record in records]
        assert [view.label for view in views] == [record.label for record in alone]


def test_a_table_is_replaced_between_two_frames_and_none_is_lost(start: Callable[..., Stream], bundle: Bundle) -> None:
    table = bundle.table()
    mirrored = PromptTable("things", table.classes, -table.embeddings, table.templates, table.model_id)
    stream = start(Frames("yard", noise(60)), batch=4)
    labels = {}
    for seen, record in enumerate(stream, start=1):
        labels[record.frame] = record.label
        if seen == 20:
            stream.tables.replace("things", mirrored)
    expected = {
        which: {record.frame: record.label for record in start(Frames("yard", noise(60)), tables=[rows])}
        for which, rows in (("before", table), ("after", mirrored))
    }
    assert len(labels) == 60
    change = next((f for f in range(60) if labels[f] != expected["before"][f]), 60)
    assert 20 <= change < 60
    assert all(labels[frame] == expected["after"][frame] for frame in range(change, 60))
    with pytest.raises(TableError, match="made for model"):
        stream.tables.replace("things", make_table("things", model_id="0" * 16))


def test_events_are_given_as_they_come_also_those_of_the_end(start: Callable[..., Stream]) -> None:
    kept = Kept()
    shown = noise(1, seed=3) * 30
    decision = DecisionOptions(enter=0.2, leave=0.1)
    events = list(start(Frames("yard", shown), sinks=(kept,), decision=decision).events())
    assert {event.kind for event in events} == {"enter", "leave"}
    entered = [event for event in events if event.kind == "enter"]
    left = [event for event in events if event.kind == "leave"]
    assert sorted(event.label for event in entered) == sorted(event.label for event in left)
    assert all(event.end_s == pytest.approx(2.9) for event in left)
    assert kept.ended == [("yard", left, "")]


# Refusals and the short way in


@pytest.mark.parametrize("option", ["parallel", "batch", "limit", "top_k"])
def test_options_out_of_range_are_refused(option: str) -> None:
    with pytest.raises(InputError, match=f"expected {option} of at least 1, got 0"):
        StreamOptions(**{option: 0})


def test_threads_out_of_range_are_refused(bundle: Bundle, video: Path) -> None:
    with pytest.raises(InputError, match="expected threads of at least 1, got 0"):
        Stream(bundle, [open_source(str(video))], [bundle.table()], threads=0)


@pytest.mark.parametrize("option", [{"variant": "fp32"}, {"engine": "onnxruntime"}, {"threads": 1}])
def test_what_runs_is_chosen_when_a_bundle_is_opened_and_not_by_a_streams_options(option: dict[str, Any]) -> None:
    """They were taken there once, and ignored."""
    with pytest.raises(TypeError, match="unexpected keyword"):
        StreamOptions(**option)


def test_a_stream_is_iterated_over_once(start: Callable[..., Stream]) -> None:
    stream = start(Frames("yard", noise(2)))
    assert len(list(stream)) == 2
    for again in (iter(stream), stream.events()):
        with pytest.raises(InputError, match="nobody has iterated over"):
            next(again)
    with pytest.raises(InputError, match="nobody has iterated over"):
        stream.run()


def test_no_source_and_a_strange_table_are_refused(start: Callable[..., Stream], video: Path) -> None:
    with pytest.raises(InputError, match="at least one source"):
        start()
    with pytest.raises(TableError, match="made for model"):
        start(video, tables=[make_table(model_id="0" * 16)])


def test_a_sink_that_cannot_be_opened_leaves_nothing_open(start: Callable[..., Stream]) -> None:
    class Refuses(Kept):
        name = "refuses"

        def open(self, run: Run) -> None:
            raise InputError("no such place")

    kept, source = Kept(), Frames("yard", noise(2))
    with pytest.raises(InputError, match="no such place"):
        start(source, sinks=(kept, Refuses()))
    assert source.closed
    assert kept.complete is False


def test_the_short_way_from_a_bundle_to_frames(golden_bundle: Path, video: Path) -> None:
    opened = edgeclip.open(str(golden_bundle), engine="onnxruntime")
    with opened.stream(str(video), table="things", options=StreamOptions(limit=4)) as stream:
        assert len(list(stream)) == 4
    assert len(list(opened.stream(video, table="things", options=StreamOptions(limit=2)))) == 2  # a Path
    with pytest.raises(SourceError, match="no such file"):
        opened.stream("nowhere.mp4")
    with pytest.raises(TableError):
        opened.stream(str(video), table="nothing")


def test_importing_the_runtime_is_quick_because_it_loads_little() -> None:
    code = "import edgeclip.runtime, sys; print(len(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 400


class _Spoiled(Scorer):
    """A table's scorer that fails from some call on, or always: what a table may do that no check foresaw."""

    def __init__(self, scorer: Scorer, spoil: Callable[[np.ndarray[Any, Any]], Any]) -> None:
        self.__dict__.update(scorer.__dict__)
        self._spoil = spoil

    def scores(self, embeddings: np.ndarray[Any, Any]) -> Any:
        return self._spoil(super().scores(embeddings))


def _fail(_scores: object) -> object:
    raise IndexError("index 7 is out of bounds")


@pytest.mark.parametrize("spoil", [_fail, lambda scores: scores[:, :0]], ids=["scoring", "deciding"])
@pytest.mark.parametrize("batch", [1, 4])
def test_a_table_that_fails_at_its_first_frame_is_taken_back(
    start: Callable[..., Stream], bundle: Bundle, batch: int, spoil: Callable[[Any], Any]
) -> None:
    stream = start(Frames("yard", noise(40)), batch=batch)
    good, frames = stream.tables.current(), []
    for record in stream:
        frames.append(record.frame)
        if len(frames) == 12:
            stream.tables._scorers = tuple(_Spoiled(scorer, spoil) for scorer in good)
    count = stream.account.sources["yard"]
    assert stream.tables.current() is good
    assert count.encoded == len(frames)
    assert count.encoded + count.failed == count.read == 40
    assert count.failed == 0 if spoil is _fail else 1 <= count.failed <= batch


def test_a_frame_that_cannot_be_scored_is_counted_and_the_others_go_on(
    start: Callable[..., Stream], bundle: Bundle
) -> None:
    stream = start(Frames("yard", noise(20)), batch=4)
    calls = iter(range(1000))
    (scorer,) = stream.tables.current()
    stream.tables._scorers = (_Spoiled(scorer, lambda scores: _fail(scores) if next(calls) in {2, 3} else scores),)
    kept = [record.frame for record in stream]
    count = stream.account.sources["yard"]
    assert (len(kept), count.failed, count.read) == (19, 1, 20)  # call 2 was a batch, call 3 one frame of it


def test_a_stream_that_labels_nothing_says_why(start: Callable[..., Stream]) -> None:
    stream = start(Frames("yard", noise(5)))
    (scorer,) = stream.tables.current()
    stream.tables._scorers = (_Spoiled(scorer, _fail),)
    with pytest.raises(TableError, match="none of the frames"):
        stream.run()
    assert stream.account.failed == 5
