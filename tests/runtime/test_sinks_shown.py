"""Labels drawn into a video and shown in a terminal: in time, at their place, legible on any size."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from rich.console import Console

from edgeclip.runtime.account import Account, SourceCount
from edgeclip.runtime.records import LabelledFrame, View
from edgeclip.runtime.regions import Region, parse_tiles
from edgeclip.runtime.sinks.base import Run
from edgeclip.runtime.sinks.overlay import draw_labels, draw_record
from edgeclip.runtime.sinks.terminal import TerminalView, print_summary
from edgeclip.runtime.sinks.video import OverlaySink
from tests.sink_runs import Named, event, make_run, push, record

# --- overlay ----------------------------------------------------------------------------------------------------------


def decoded(path: Path) -> list[tuple[float, np.ndarray]]:
    with av.open(str(path)) as container:
        return [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


def test_the_overlay_keeps_time_where_a_camera_lost_frames(tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "overlay.mp4"
    seen = [0, 1, 2, 10, 11, 40]
    push(make_run(tiny_bundle, Named(fps=20.0)), [OverlaySink(path)], [record(index) for index in seen])
    frames = decoded(path)
    assert [round(time_s * 20) for time_s, _ in frames] == seen
    corner, rest = np.s_[:20, :80], np.s_[90:, 120:]
    assert np.abs(frames[3][1][corner].astype(int) - 90).mean() > 20
    assert np.abs(frames[3][1][rest].astype(int) - 90).mean() < 4


def test_several_sources_get_an_overlay_each(tiny_bundle: Path, tmp_path: Path) -> None:
    run = make_run(tiny_bundle, Named("yard"), Named("front door"))
    records = [record(index, source=name) for index in range(3) for name in ("yard", "front door")]
    push(run, [OverlaySink(tmp_path / "o.mkv")], [*records, record(3, source="yard")])
    assert len(decoded(tmp_path / "o-yard.mkv")) == 4
    assert len(decoded(tmp_path / "o-front_door.mkv")) == 3


def test_an_overlay_without_a_frame_is_said_and_not_written(tiny_bundle: Path, tmp_path: Path) -> None:
    run = make_run(tiny_bundle)
    push(run, [OverlaySink(tmp_path / "o.mp4")], [])
    assert "no frame" in run.account.sink_failed["overlay"]
    assert not list(tmp_path.glob("*o*.mp4"))


@pytest.mark.parametrize("shape", [(1, 1), (20, 30), (480, 640), (2160, 3840)])
def test_records_are_drawn_on_any_size(shape: tuple[int, int]) -> None:
    image = np.full((*shape, 3), 200, np.uint8)
    views = [View("t", f"tile {n}", "Straße", 0.5, []) for n in range(20)]
    before = image.copy()
    drawn = draw_record(image, record(0, present=["cat", "Straße"], views=views))
    assert drawn.shape == image.shape
    np.testing.assert_array_equal(image, before)


def test_what_is_present_and_other_views_are_drawn_below_the_bars() -> None:
    image = np.full((480, 640, 3), 200, np.uint8)
    views = [View("t", name, "cat", 0.5, []) for name in ("left", "right")]
    bars = draw_labels(image, record(0).top)
    present = draw_record(image, record(0, present=["cat"]))
    several = draw_record(image, record(0, present=["cat"], views=views))
    darkened = [int((drawn.min(axis=(1, 2)) < 150).sum()) for drawn in (bars, present, several)]  # rows of the panel
    assert darkened[0] < darkened[1] < darkened[2]


TRIANGLE = Region("edge", ((1.0, 0.2), (1.0, 1.0), (0.6, 1.0)))


def views_of(regions: tuple[Region, ...], table: str = "things") -> list[View]:
    return [View(table, region.name, "cat", 0.93, []) for region in regions]


def test_regions_are_outlined_and_tagged_in_place_of_bars_and_lines() -> None:
    regions = parse_tiles("3x2")
    image = np.full((480, 640, 3), 90, np.uint8)
    drawn = draw_record(image, record(0, views=views_of(regions)), regions)
    changed = (drawn != image).any(axis=2)
    for x0, y0, x1, y1 in (region.box for region in regions):
        left, top, right, bottom = round(x0 * 640), round(y0 * 480), round(x1 * 640), round(y1 * 480)
        assert changed[top : top + 20, left + 4 : left + 60].mean() > 0.9  # the tag
        assert not changed[top + 60 : bottom - 8, left + 8 : right - 8].any()  # the picture
        assert changed[top + 60 : bottom - 8, min(right, 637)].all()  # the outline


@pytest.mark.parametrize("ground", [0, 128, 255])
def test_an_outline_stands_out_from_any_ground(ground: int) -> None:
    image = np.full((480, 640, 3), ground, np.uint8)
    drawn = draw_record(image, record(0), (TRIANGLE,)).astype(int)
    assert np.abs(drawn[400, 560:] - ground).max() >= 100


def test_a_tag_stays_beside_a_region_at_the_edge() -> None:
    image = np.full((480, 640, 3), 90, np.uint8)
    changed = (draw_record(image, record(0), (TRIANGLE,)) != image).any(axis=2)
    assert not changed[:90].any()
    assert not changed[:, :370].any()


def test_lines_remain_for_what_other_tables_say() -> None:
    regions = parse_tiles("2x2")
    image = np.full((480, 640, 3), 90, np.uint8)
    one = draw_record(image, record(0, views=views_of(regions)), regions)
    two = draw_record(image, record(0, views=views_of(regions) + views_of(regions, "weather")), regions)
    rows = np.flatnonzero((one != two).any(axis=(1, 2)))
    assert rows.min() > 300
    assert rows.max() == 479


@pytest.mark.parametrize("shape", [(1, 1), (20, 30), (480, 640), (2160, 3840)])
def test_regions_are_drawn_on_any_size(shape: tuple[int, int]) -> None:
    image = np.full((*shape, 3), 200, np.uint8)
    regions = (*parse_tiles("16x16"), TRIANGLE)
    before = image.copy()
    assert draw_record(image, record(0, views=views_of(regions)), regions).shape == image.shape
    np.testing.assert_array_equal(image, before)


def test_the_overlay_draws_the_regions_of_the_run(tiny_bundle: Path, tmp_path: Path) -> None:
    run = replace(make_run(tiny_bundle), regions=(TRIANGLE,))
    push(run, [OverlaySink(tmp_path / "o.mp4")], [record(0)])
    [(_, drawn)] = decoded(tmp_path / "o.mp4")
    change = np.abs(drawn.astype(int) - 90).max(axis=2)
    assert change[:20, :80].max() < 20
    assert change[60:, 90:].max() > 60


# --- terminal ---------------------------------------------------------------------------------------------------------


def shown(run: Run, records: list[LabelledFrame], *, terminal: bool, width: int = 100) -> str:
    text = io.StringIO()
    push(run, [TerminalView(Console(file=text, force_terminal=terminal, width=width, height=40))], records)
    return text.getvalue()


def test_the_terminal_shows_each_source(tiny_bundle: Path) -> None:
    run = make_run(tiny_bundle, Named("yard [1]", live=True), Named("street", live=True))
    run.account.sources["yard [1]"].dropped = 7
    run.account.latency_ms.extend([10.0, 20.0])
    first = record(41, source="yard [1]", present=["cup | mug"], events=[event(41, label="cup | mug")])
    text = shown(run, [first], terminal=True)
    for part in ("yard [1]", "frame 42", "dropped 7", "0.75", "present: cup | mug", "p50 15.0 ms", "+", "street"):
        assert part in text
    assert "waiting for the first frame" in text


def test_off_a_terminal_nothing_is_drawn(tiny_bundle: Path) -> None:
    assert shown(make_run(tiny_bundle), [record(index) for index in range(50)], terminal=False) == ""


def test_a_thousand_frames_are_drawn_only_now_and_then(tiny_bundle: Path) -> None:
    text = shown(make_run(tiny_bundle), [record(index) for index in range(1000)], terminal=True)
    drawn = text.count("encode") + text.count("latency p50")
    assert 1 <= drawn < 100


def test_the_summary_accounts_for_everything() -> None:
    account = Account(elapsed_s=2.0, interrupted=True, events=4)
    account.sources = {"a": SourceCount(10, 2, 3, 5, 1, 0), "b [x]": SourceCount(6, 0, 0, 6, 0, 2)}
    account.latency_ms.extend(range(1, 101))
    account.labels.update({"mug [red]": 10, "cup": 4})
    account.sink_dropped["web"] = 12
    account.sink_failed["mqtt"] = "no connection to [::1]"
    console = Console(width=60)
    with console.capture() as capture:
        print_summary(account, console)
    text = capture.get()
    for line in (
        "14 frames labelled in 2.0 s (7.0 frames/s); stopped",
        "a: 10 read, 2 dropped, 3 gated, 5 encoded, 1 failed",
        "b [x]: 6 read, 0 dropped, 0 gated, 6 encoded, 0 failed, 2 reconnects",
        "together: 16 read, 2 dropped, 3 gated, 11 encoded, 1 failed, 2 reconnects",
        "latency p50 50.5 ms, p90 90.1 ms, p99 99.0 ms",
        "web was too slow for 12 records",
        "mqtt failed: no connection to [::1]",
    ):
        assert line in text.splitlines()
    assert "mug [red]" in text
    assert "71.4%" in text


def test_the_summary_of_a_run_without_frames() -> None:
    console = Console(width=60)
    with console.capture() as capture:
        print_summary(Account(), console)
    assert capture.get().splitlines() == ["0 frames labelled in 0.0 s (0.0 frames/s)"]
