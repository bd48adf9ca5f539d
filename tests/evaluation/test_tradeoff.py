"""Trade-offs: noise beats nobody, limits are kept, the page gives the same answer, and the runtime does as advised."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import numpy as np
import pytest
from scipy import stats

from edgeclip import Bundle
from edgeclip.devices.machine.cpu import read_cpu
from edgeclip.devices.machine.probe import describe_machine
from edgeclip.devices.machine.tree import Tree
from edgeclip.devices.sensors.measurement_conditions import MeasurementConditions
from edgeclip.errors import InputError
from edgeclip.evaluation.bench.records import load_result
from edgeclip.evaluation.statistics.rounds import Interval
from edgeclip.evaluation.tradeoff.decide import decide, misses
from edgeclip.evaluation.tradeoff.measure import MeasuredPoint, compare_runs
from edgeclip.evaluation.tradeoff.records import (
    Comparison,
    SetAccuracy,
    Tradeoff,
    TradeoffLimits,
    TradeoffPoint,
    load_tradeoff,
)
from edgeclip.evaluation.tradeoff.report import tradeoff_page
from edgeclip.manifest import read_manifest, write_manifest
from edgeclip.runtime.images import write_image
from edgeclip.runtime.proof.choose import (
    FILE,
    choose,
)
from tests.chromium import Chromium
from tests.command_line import edgeclip, refused

IMAGES = 1000
# Two points on any CPU: FP32 and INT8, or, where INT8 would overflow, FP32 on two engines.
ENGINES = ("--engines", "onnxruntime" if read_cpu(Tree()).adds_int8_exactly else "onnxruntime, openvino")


class World:
    """Points with made-up times and hits, compared as measured ones are."""

    def __init__(self) -> None:
        self.runs: list[MeasuredPoint] = []
        self._random = np.random.default_rng(0)

    def add(
        self, label: str, ms: float, right: int, *, mb: float | None = 100.0, joules: float | None = None, noise=0.0
    ) -> MeasuredPoint:
        """A point whose first ``right`` images of 1000 are right; rounds differ by ``noise``, a share."""
        rounds = [ms * float(np.exp(self._random.normal(scale=noise))) for _ in range(5)]
        top1 = right / IMAGES
        accuracy = SetAccuracy(data="made", top1=top1, ci95=(top1 - 0.03, top1 + 0.03), n=IMAGES)
        point = TradeoffPoint(
            label=label,
            bundle="b",
            model="m",
            size=(8, 8),
            variant=label,
            engine="e",
            latency_ms=Interval(float(np.mean(rounds)), min(rounds), max(rounds)),
            p99_ms=ms,
            images_per_s=1e3 / ms,
            memory_mb=mb,
            energy_j=None if joules is None else (joules, 0.1),
            accuracies=(accuracy,),
        )
        self.runs.append(MeasuredPoint(point, rounds, np.ones(IMAGES, np.bool_), np.arange(IMAGES) < right))
        return self.runs[-1]

    @property
    def points(self) -> list[TradeoffPoint]:
        """As they were added."""
        return [run.point for run in self.runs]

    def pairs(self) -> list[Comparison]:
        """Of each two points, the second to the first."""
        return [compare_runs(one, other) for one, other in itertools.combinations(self.runs, 2)]


@pytest.mark.parametrize(
    ("second", "verdicts"),
    [
        ({}, {"latency": "same", "accuracy": "same", "memory": "same"}),
        ({"ms": 11.0}, {"latency": "worse", "accuracy": "same", "memory": "same"}),
        ({"right": 720}, {"latency": "same", "accuracy": "better", "memory": "same"}),
        ({"right": 699}, {"latency": "same", "accuracy": "same", "memory": "same"}),  # one image of 1000
        ({"mb": 94.0}, {"latency": "same", "accuracy": "same", "memory": "better"}),
        ({"mb": 104.0}, {"latency": "same", "accuracy": "same", "memory": "same"}),  # within 5 %
        ({"mb": None}, {"latency": "same", "accuracy": "same"}),
        ({"joules": 2.5}, {"latency": "same", "accuracy": "same", "memory": "same", "energy": "worse"}),
        ({"joules": 2.1}, {"latency": "same", "accuracy": "same", "memory": "same", "energy": "same"}),
    ],
)
def test_two_points_differ_only_where_it_is_beyond_noise(second: dict[str, Any], verdicts: dict[str, str]) -> None:
    world = World()
    first = world.add("first", 10.0, 700, joules=2.0)
    comparison = compare_runs(first, world.add("second", **{"ms": 10.0, "right": 700, **second}))
    assert comparison.verdicts == verdicts
    opposite = {"better": "worse", "worse": "better", "same": "same"}
    assert comparison.turned().verdicts == {axis: opposite[found] for axis, found in verdicts.items()}


@pytest.mark.parametrize("turned", [False, True])
def test_the_worst_is_never_recommended(turned: bool) -> None:
    """Slower, less accurate and larger than the others, beyond all noise; whichever way round pairs are given."""
    world = World()
    for label, ms, right, mb in (("worst", 40, 500, 400), ("best", 10, 800, 100), ("middling", 20, 700, 200)):
        world.add(label, ms, right, mb=mb)
    pairs = [pair.turned() for pair in world.pairs()] if turned else world.pairs()
    for limits in (TradeoffLimits(), TradeoffLimits(min_accuracy=0.4), TradeoffLimits(max_latency_ms=100)):
        decision = decide(world.points, pairs, limits)
        assert decision.label == "best"
        assert decision.beaten_by == {"worst": ("best",), "middling": ("best",)}
        assert "other, middling: 2.00 times as slow, 10.00 points less accurate" in " ".join(decision.why)
    assert decide(world.points, pairs, TradeoffLimits(min_accuracy=0.9)).label is None


@pytest.mark.parametrize("order", [1, -1])
def test_what_is_worse_in_nothing_and_better_in_something_beats(order: int) -> None:
    world = World()
    world.add("fast", 10, 700)
    world.add("slow", 20, 700)
    world.add("good", 30, 800)
    decision = decide(world.points[::order], world.pairs(), TradeoffLimits())
    assert decision.beaten_by == {"slow": ("fast",)}


def test_within_noise_nobody_beats_nobody() -> None:
    world = World()
    world.add("one", 10.0, 700, noise=0.2)
    world.add("other", 10.2, 701, noise=0.2)
    decision = decide(world.points, world.pairs(), TradeoffLimits())
    assert decision.beaten_by == {}
    assert decision.label == "other"  # as fast as can be told, and no less accurate


def test_of_what_is_level_in_time_and_accuracy_the_smaller_is_taken() -> None:
    world = World()
    world.add("large", 10.0, 701, mb=140)
    world.add("small", 10.01, 700, mb=48, noise=0.01)
    assert decide(world.points, world.pairs(), TradeoffLimits()).label == "small"


def test_what_is_beaten_itself_drops_nobody() -> None:
    """A noisy point is level with a faster and with a slower one; these two are not level with each other."""
    world = World()
    world.add("fast", 10.0, 600, mb=200)
    world.add("noisy", 10.5, 600, mb=50, noise=0.3)
    world.add("good", 12.0, 800, mb=50)
    decision = decide(world.points, world.pairs(), TradeoffLimits())
    assert decision.beaten_by == {"noisy": ("good",)}


def test_an_accuracy_that_is_not_measurably_lower_is_not_paid_for() -> None:
    world = World()
    world.add("fp32", 20, 701)
    world.add("int8", 10, 700)
    world.add("tiny", 5, 500)
    decision = decide(world.points, world.pairs(), TradeoffLimits())
    assert decision.label == "int8"
    said = " ".join(decision.why)
    assert "fp32: 2.00 times as slow, 0.10 points more accurate (within noise)" in said
    assert "tiny: 2.00 times as fast, 20.00 points less accurate." in said


@pytest.mark.parametrize(
    ("limits", "label"),
    [
        (TradeoffLimits(), "good"),
        (TradeoffLimits(max_latency_ms=25), "middle"),
        (TradeoffLimits(max_latency_ms=12), "fast"),
        (TradeoffLimits(min_accuracy=0.55), "middle"),
        (TradeoffLimits(min_accuracy=0.4), "fast"),
        (TradeoffLimits(max_memory_mb=150), "fast"),
        (TradeoffLimits(max_latency_ms=25, min_accuracy=0.65), None),
        (TradeoffLimits(max_memory_mb=10), None),
    ],
)
def test_limits_are_kept(limits: TradeoffLimits, label: str | None) -> None:
    world = World()
    world.add("fast", 10, 500, mb=100)
    world.add("middle", 20, 600, mb=200)
    world.add("good", 40, 700, mb=300)
    decision = decide(world.points, world.pairs(), limits)
    assert decision.label == label
    if label is None:
        assert "Nothing measured is within the limits" in decision.why[0]
        assert len(decision.misses) == 3
    else:
        assert not misses(next(point for point in world.points if point.label == label), limits)


def test_a_limit_within_noise_is_said_to_be() -> None:
    world = World()
    world.add("one", 10, 700, noise=0.3)
    (point,) = world.points
    decision = decide(world.points, [], TradeoffLimits(max_latency_ms=point.latency_ms.mean + 1e-6, min_accuracy=0.69))
    assert "time is within noise of the limit" in " ".join(decision.why)
    assert "accuracy is within noise of the limit" in " ".join(decision.why)


@pytest.mark.parametrize(
    "wrong", [{"max_latency_ms": 0.0}, {"max_memory_mb": -1.0}, {"min_accuracy": 60.0}, {"min_accuracy": 0.0}]
)
def test_limits_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match="expected m"):
        TradeoffLimits(**wrong)


# The whole, on real models


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """A browser."""
    if not shutil.which("chromium"):
        pytest.skip("needs Debian's chromium, which is not installed")
    with Chromium(tmp_path_factory.mktemp("chromium")) as started:
        yield started


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of real photographs, each cut out in six ways."""
    from skimage import data

    folder = tmp_path_factory.mktemp("labelled")
    for label, image in (("cat", data.chelsea()), ("coffee cup", data.coffee()), ("rocket", data.rocket())):
        for index in range(6):
            (folder / label).mkdir(exist_ok=True)
            write_image(folder / label / f"{index}.png", np.ascontiguousarray(image[5 * index :, 7 * index :]))
    return folder


@pytest.fixture(scope="module")
def report(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A bundle of one's own, and the report on it."""
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("tradeoff")
    bundle = folder / "mine.edgeclip"
    shutil.copytree(Bundle.open("starter").path, bundle)
    said = edgeclip(
        *("tradeoff", str(bundle), "--data", str(photos), "--shift", str(photos), "--max-memory-mb", "100000"),
        *(*ENGINES, "--rounds", "3", "--seconds", "0.05", "--apply", "-o", str(folder / "report")),
    )
    assert "Ship starter" in said
    assert "written into" in said
    return bundle, folder / "report"


def test_a_reports_figures_are_those_of_bench_and_eval(report: tuple[Path, Path], photos: Path, tmp_path: Path) -> None:
    bundle, folder = report
    tradeoff, benchmark = load_tradeoff(folder / "tradeoff.json"), load_result(folder / "bench.json")
    timed = {(each.setting.variant, each.setting.engine): each for each in benchmark.measured}
    assert {(point.variant, point.engine) for point in tradeoff.points} == set(timed)
    for point in tradeoff.points:
        measured = timed[point.variant, point.engine]
        assert point.latency_ms == measured.p50
        assert point.memory_mb == measured.memory_mb
        found = tmp_path / "eval.json"
        which = ("--variant", point.variant, "--engine", point.engine)
        edgeclip("eval", str(bundle), "--data", str(photos), *which, "--json", str(found))
        evaluated = json.loads(found.read_text())
        for accuracy in point.accuracies:
            assert (accuracy.top1, accuracy.n) == (evaluated["top1"], 18)
            assert list(accuracy.ci95) == pytest.approx(evaluated["ci95"])
    medians = {
        point.label: np.log([median(times) for times in timed[point.variant, point.engine].rounds_ms])
        for point in tradeoff.points
    }
    assert len(tradeoff.pairs) == len(tradeoff.points) * (len(tradeoff.points) - 1) // 2 > 0
    for pair in tradeoff.pairs:  # the second's times over the first's, rounds held against those of the same turn
        paired = stats.ttest_rel(medians[pair.second], medians[pair.first]).confidence_interval(0.95)
        assert np.log(pair.latency.ratio) == pytest.approx(np.mean(medians[pair.second] - medians[pair.first]))
        assert np.log([pair.latency.low, pair.latency.high]) == pytest.approx([paired.low, paired.high], rel=0.01)


def test_the_runtime_runs_what_was_recommended(report: tuple[Path, Path]) -> None:
    bundle, folder = report
    opened = Bundle.open(bundle)
    assert FILE in set(opened.verify())
    tradeoff = load_tradeoff(folder / "tradeoff.json")
    assert tradeoff.decision.label is not None
    point = tradeoff.point(tradeoff.decision.label)
    choice = choose(opened)
    assert (choice.variant, choice.engine) == (point.variant, point.engine)
    assert choice.why.startswith("recommended: Ship starter")
    assert not choose(opened, variant="fp32").why.startswith("recommended")
    assert f"recommended  {point.variant} on {point.engine}" in edgeclip("inspect", str(bundle))


def test_times_are_not_taken_twice(report: tuple[Path, Path], photos: Path, tmp_path: Path) -> None:
    bundle, folder = report
    other = tmp_path / "report"
    shutil.copytree(folder, other)
    arguments = ("tradeoff", str(bundle), "--data", str(photos), *ENGINES, "-o", str(other))
    before = (other / "bench.json").read_bytes()
    said = edgeclip(*arguments, "--rounds", "3", "--max-latency-ms", "0.001")
    assert "times are those of" in said.replace("\n", " ")
    assert "Nothing measured is within the limits" in said
    assert (other / "bench.json").read_bytes() == before
    said = edgeclip(*arguments, "--variants", "fp32", "--rounds", "3", "--seconds", "0.02")
    assert "timed anew" in said.replace("\n", " ")
    assert {each.setting.variant for each in load_result(other / "bench.json").measured} == {"fp32"}


NOTHING = "Nothing measured is within these limits."
FIELDS = {"max_latency_ms": "max-latency", "min_accuracy": "min-accuracy", "max_memory_mb": "max-memory"}


def shown(chromium: Chromium, limits: dict[str, float]) -> tuple[str, set[str]]:
    """What the page answers within limits that are typed in, and the points that it draws pale."""
    typed = {field: limits.get(name, "") for name, field in FIELDS.items()}
    return tuple(  # type: ignore[return-value]
        chromium.evaluate(
            f"""(() => {{
                for (const [id, value] of Object.entries({json.dumps(typed)})) {{
                    document.getElementById(id).value = value;
                }}
                document.getElementById("max-memory").dispatchEvent(new Event("input"));
                return [document.getElementById("answer").textContent,
                        [...document.querySelectorAll("#chart .outside")].map((point) => point.dataset.label)];
            }})()"""
        )
    )


def test_the_page_answers_as_the_rule_does_whatever_the_limits(tmp_path: Path, chromium: Chromium) -> None:
    """Thirteen made-up points, two of them alike, one whose memory is not known."""
    world, random = World(), np.random.default_rng(7)
    for number in range(11):
        right, mb = int(400 + 35 * number + random.integers(-40, 40)), float(random.integers(40, 400))
        world.add(f"p{number}", 5 + 4 * number, right, mb=mb, noise=0.1)
    world.add("twin", 20, 700, mb=100)
    world.add("other twin", 20, 700, mb=None)
    tradeoff = Tradeoff(
        stage="engine",
        frame=None,
        data=("made",),
        templates=("{}",),
        points=tuple(world.points),
        pairs=tuple(world.pairs()),
        limits=TradeoffLimits(),
        decision=decide(world.points, world.pairs(), TradeoffLimits()),
        refused=(),
        machine=describe_machine(),
        conditions=MeasurementConditions(seconds=1.0, rate_hz=1.0, cost=0.0, power_mode=None, throttled=None),
    )
    page = tmp_path / "page.html"
    page.write_text(tradeoff_page(tradeoff), encoding="utf-8")
    chromium.open(page.as_uri(), width=1000)
    chromium.wait_for("document.querySelectorAll('#chart .point').length == 13")
    picked = set()
    for limits in [{}, *(some_limits(tradeoff, random) for _ in range(300))]:
        decision = decide(tradeoff.points, tradeoff.pairs, TradeoffLimits(**limits))
        answer, pale = shown(chromium, limits)
        expected = (
            f"Within these limits: {decision.label}" if decision.label else "Nothing measured is within these limits."
        )
        assert answer == expected, limits
        assert set(pale) == set(decision.misses), limits
        picked.add(decision.label)
    assert len(picked) > 5
    assert None in picked


def some_limits(tradeoff: Tradeoff, random: np.random.Generator) -> dict[str, float]:
    """None to three limits, as often exactly at a point's figure as anywhere."""
    figures = {
        "max_latency_ms": [point.latency_ms.mean for point in tradeoff.points],
        "min_accuracy": [point.top1 for point in tradeoff.points],
        "max_memory_mb": [point.memory_mb for point in tradeoff.points if point.memory_mb],
    }
    return {
        name: float(random.choice(own) if random.random() < 0.5 else random.uniform(0.9 * min(own), 1.02 * max(own)))
        for name, own in figures.items()
        if random.random() < 0.7
    }


def test_the_page_shows_the_report_and_fetches_nothing(report: tuple[Path, Path], chromium: Chromium) -> None:
    _, folder = report
    tradeoff = load_tradeoff(folder / "tradeoff.json")
    chromium.open((folder / "tradeoff.html").as_uri(), width=1000)
    chromium.wait_for("document.querySelectorAll('#chart .point').length > 0")
    assert chromium.evaluate("document.querySelectorAll('#chart .point').length") == len(tradeoff.points)
    assert chromium.evaluate("document.getElementById('answer').textContent").endswith(tradeoff.decision.label)
    assert chromium.evaluate("document.documentElement.scrollWidth") == 1000
    assert chromium.evaluate("performance.getEntriesByType('resource').length") == 0
    assert shown(chromium, {"min_accuracy": 1.5})[0] == NOTHING


def test_bad_input_is_refused_before_anything_runs(tiny_bundle: Path, photos: Path, tmp_path: Path) -> None:
    manifest = read_manifest(tiny_bundle)
    write_manifest(tiny_bundle, msgspec.structs.replace(manifest, tables=()))
    out = tmp_path / "out"
    data = ("--data", str(photos), "-o", str(out))
    assert "read-only" in refused("tradeoff", "starter", *data, "--apply")
    assert "expected min_accuracy as a share" in refused("tradeoff", "starter", *data, "--min-accuracy", "60")
    assert "expected stages of" in refused("tradeoff", "starter", *data, "--stage", "all")
    assert "at least 3 rounds" in refused("tradeoff", "starter", *data, "--rounds", "1")
    assert "got one twice" in refused("tradeoff", "starter", "starter", *data, "--rounds", "3")
    assert "expected a prompt table in tiny.edgeclip" in refused("tradeoff", tiny_bundle, *data)
    (tmp_path / "file").write_text("")
    assert "is not a folder" in refused("tradeoff", "starter", "--data", photos, "-o", tmp_path / "file")
    assert not out.exists()
