"""Bundles and labelled images in; how fast, how accurate and how large each variant is on each engine here, out.

Accuracy is measured with the engine that is timed, so that a point is what would run. Embeddings come from the cache
where they are there already (``calibration/embeddings.py``), times from an earlier benchmark if it
covers what is asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from edgeclip.bundle import Bundle
from edgeclip.calibration.embeddings import image_embeddings
from edgeclip.devices.machine.probe import Description, describe_machine
from edgeclip.errors import InputError
from edgeclip.evaluation.bench.bench import BenchOptions, bench, settings_of
from edgeclip.evaluation.bench.records import BenchResult, Measured, load_result
from edgeclip.evaluation.data.dataset import LabelledSet
from edgeclip.evaluation.statistics.metrics import predictions, wilson_interval
from edgeclip.evaluation.statistics.paired import paired_difference
from edgeclip.evaluation.statistics.rounds import compare_rounds
from edgeclip.evaluation.tradeoff.decide import decide
from edgeclip.evaluation.tradeoff.records import (
    Comparison,
    SetAccuracy,
    Tradeoff,
    TradeoffLimits,
    TradeoffPoint,
    Verdict,
)
from edgeclip.export.prompt_table import table_for_bundle
from edgeclip.hits import Hits
from edgeclip.prompts import FloatArray
from edgeclip.runtime.proof.choose import Recommendation, this_machine

Progress = Callable[[str, int, int], None]
_MEMORY_NOISE, _MEMORY_NOISE_MB = 0.05, 4.0  # peaks of processes differ by so much from run to run


@dataclass(frozen=True)
class MeasuredPoint:
    """A point and what it is compared by.

    Attributes:
        medians_ms: of each round; rounds of all points were run in turns.
        keep, right: of the deciding set's images (N,), which could be decoded, and which are labelled right.
    """

    point: TradeoffPoint
    medians_ms: Sequence[float]
    keep: Hits
    right: Hits


def measure_tradeoff(
    bundles: Sequence[Bundle],
    sets: Sequence[LabelledSet],
    options: BenchOptions,
    limits: TradeoffLimits,
    *,
    templates: Sequence[str],
    timed: BenchResult | None = None,
    progress: Progress | None = None,
    timing_done: Callable[[BenchResult], None] | None = None,
) -> Tradeoff:
    """Measure every variant of every bundle on every engine, compare each two, and decide.

    Args:
        bundles: of different models; image sizes and merged tokens are models of their own.
        sets: labelled images. The first decides; accuracy on others is told.
        options: of the benchmark: one stage, one batch size, one number of threads.
        templates: prompts that a class name goes through.
        timed: an earlier benchmark, used if it is of this machine and has every setting.
        progress: called with (what is done, steps done, steps in all).
        timing_done: called with the benchmark once it is made, so that it is not lost with what follows.

    Raises:
        InputError: no set, several stages or batch sizes, or nothing that runs here.
        SourceError: no image can be decoded.
    """
    if not sets:
        raise InputError("expected a labelled set to measure accuracy on, got none")
    if not len(options.stages) == len(options.batches) == len(options.threads) == 1:
        raise InputError("expected one stage, one batch size and one number of threads, got several")
    say = progress or (lambda _what, _done, _all: None)
    if (result := timed) is None:
        result = bench(bundles, options, progress=say)
        if timing_done:
            timing_done(result)
    of_model = {bundle.manifest.model.id: bundle for bundle in bundles}
    labels = _labels(bundles)
    rows = {
        model: [table_for_bundle(bundle, data.classes, templates, name="tradeoff").embeddings for data in sets]
        for model, bundle in of_model.items()
    }
    runs = []
    for done, measured in enumerate(result.measured):
        model = measured.setting.model
        what = f"{measured.setting.variant} on {measured.setting.engine}, images"
        say(what, done, len(result.measured))
        runs.append(_measure(of_model[model], labels[model], measured, sets, rows[model]))
    points = [run.point for run in runs]
    pairs = [compare_runs(first, second) for first, second in combinations(runs, 2)]
    return Tradeoff(
        stage=options.stages[0],
        frame=options.frame if options.stages[0] == "end-to-end" else None,
        data=tuple(each.name for each in sets),
        templates=tuple(templates),
        points=tuple(points),
        pairs=tuple(pairs),
        limits=limits,
        decision=decide(points, pairs, limits),
        refused=tuple((f"{labels[each.model]} {each.variant} on {each.engine}", why) for each, why in result.refused),
        machine=result.machine,
        conditions=result.conditions,
    )


def reusable(
    path: Path, bundles: Sequence[Bundle], options: BenchOptions, *, notice: Callable[[str], None]
) -> BenchResult | None:
    """An earlier benchmark, if it is of this machine and of just these settings.

    Args:
        notice: told why a file that is there is not used, or that it is.
    """
    if not path.is_file():
        return None
    try:
        timed = load_result(path)
    except InputError as error:
        notice(f"timed anew: {error}")
        return None
    why = _unlike(timed, bundles, options, describe_machine())
    notice(f"timed anew: {path} {why}" if why else f"times are those of {path}; `again` takes new ones")
    return None if why else timed


def _unlike(timed: BenchResult, bundles: Sequence[Bundle], options: BenchOptions, machine: Description) -> str:
    """Why a benchmark cannot stand for one with these options here; nothing if it can."""
    keys = {*timed.machine, *machine} - {"kernel"}
    if any(timed.machine.get(key) != machine.get(key) for key in keys):
        return "was made on another machine, or with other versions"
    there = {each.setting for each in timed.measured} | {setting for setting, _ in timed.refused}
    wanted = {setting for bundle in bundles for setting in settings_of(bundle, options)}
    if there != wanted:
        return "is of other models, variants, engines, stages or frames"
    fewest = min(len(each.rounds_ms) for each in timed.measured)
    return "" if fewest >= options.rounds else f"has {fewest} rounds only"


def recommendation_of(tradeoff: Tradeoff) -> Recommendation | None:
    """What to write into the recommended point's bundle for this machine; None where nothing is recommended."""
    if tradeoff.decision.label is None:
        return None
    point = tradeoff.point(tradeoff.decision.label)
    accuracy = point.accuracies[0]
    return Recommendation(
        machine=this_machine(),
        variant=point.variant,
        engine=point.engine,
        why=tradeoff.decision.why[0],
        data=accuracy.data,
        top1=accuracy.top1,
        n=accuracy.n,
        latency_ms=round(point.latency_ms.mean, 3),
        stage=tradeoff.stage,
        limits=tradeoff.limits.given(),
    )


def _labels(bundles: Sequence[Bundle]) -> dict[str, str]:
    """Model id → what it is called: its name, with its size and then its id where that is another's name too."""
    models = {bundle.manifest.model.id: bundle.manifest for bundle in bundles}
    names = {model: manifest.model.name for model, manifest in models.items()}
    sizes = {model: manifest.encoder.preprocess for model, manifest in models.items()}
    for more in ({m: f" at {size.width}×{size.height}" for m, size in sizes.items()}, {m: f" {m}" for m in models}):
        often = Counter(names.values())
        names = {model: name + (more[model] if often[name] > 1 else "") for model, name in names.items()}
    return names


def _measure(
    bundle: Bundle, name: str, measured: Measured, sets: Sequence[LabelledSet], rows: Sequence[FloatArray]
) -> MeasuredPoint:
    """Score the images of each set against the rows (C, D) of its classes."""
    setting = measured.setting
    accuracies, seen = [], []
    for data, classes in zip(sets, rows, strict=True):
        keep, right = _hits(bundle, setting.variant, setting.engine, data, classes)
        hits, n = int(right.sum()), int(keep.sum())
        accuracies.append(SetAccuracy(data=data.name, top1=hits / n, ci95=wilson_interval(hits, n), n=n))
        seen.append((keep, right))
    point = TradeoffPoint(
        label=f"{name} {setting.variant} on {setting.engine}",
        bundle=name,
        model=setting.model,
        size=setting.size,
        variant=setting.variant,
        engine=setting.engine,
        latency_ms=measured.p50,
        p99_ms=measured.percentile_ms(99),
        images_per_s=measured.images_per_s,
        memory_mb=measured.memory_mb,
        energy_j=measured.energy_per_image_j,
        accuracies=tuple(accuracies),
    )
    return MeasuredPoint(point, measured.medians_ms, *seen[0])


def _hits(bundle: Bundle, variant: str, engine: str, data: LabelledSet, rows: FloatArray) -> tuple[Hits, Hits]:
    """Which images (N,) could be decoded, and which of them are labelled right."""
    images = image_embeddings(bundle, variant, data.items, engine=engine)
    right = images.keep & (predictions(images.rows, rows, data.labels).ranks == 0)
    return images.keep, right


def compare_runs(first: MeasuredPoint, second: MeasuredPoint) -> Comparison:
    """How the second stands to the first, on every axis that is known of both."""
    both = first.keep & second.keep
    latency = compare_rounds(first.medians_ms, second.medians_ms, paired=True)
    accuracy = paired_difference(first.right[both], second.right[both])
    verdicts = {
        "latency": _verdict(latency.ratio - 1, sure=latency.differs),
        "accuracy": _verdict(-accuracy.points, sure=accuracy.ci95[0] > 0 or accuracy.ci95[1] < 0),
    }
    one, other = first.point, second.point
    if one.memory_mb is not None and other.memory_mb is not None:
        more = other.memory_mb - one.memory_mb
        noise = max(_MEMORY_NOISE_MB, _MEMORY_NOISE * max(one.memory_mb, other.memory_mb))
        verdicts["memory"] = _verdict(more, sure=abs(more) > noise)
    if one.energy_j is not None and other.energy_j is not None:
        more = other.energy_j[0] - one.energy_j[0]
        verdicts["energy"] = _verdict(more, sure=abs(more) > float(np.hypot(one.energy_j[1], other.energy_j[1])))
    return Comparison(first=one.label, second=other.label, latency=latency, accuracy=accuracy, verdicts=verdicts)


def _verdict(more: float, *, sure: bool) -> Verdict:
    """Of what should be little."""
    return "same" if not sure else "worse" if more > 0 else "better"
