"""A bundle and labelled images in, zero-shot accuracy with its intervals, by class and by confusion, out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from edgeclip.bundle import Bundle
from edgeclip.calibration.embeddings import image_embeddings
from edgeclip.devices.machine.probe import Description, describe_machine
from edgeclip.evaluation.data.dataset import LabelledSet, open_labelled
from edgeclip.evaluation.statistics.metrics import (
    ClassAccuracy,
    Confusion,
    Predictions,
    balanced_accuracy,
    confusions,
    per_class_accuracy,
    predictions,
    top_k,
)
from edgeclip.evaluation.statistics.paired import PairedDifference, paired_difference
from edgeclip.export.prompt_table import table_for_bundle

Progress = Callable[[int, int], None]


class ZeroShotResult(msgspec.Struct, frozen=True, kw_only=True):
    """Zero-shot accuracy over a labelled set.

    Attributes:
        data: the set.
        top1, top5: fraction of images whose true class is first, or among the first five.
        ci95, top5_ci95: Wilson intervals of both.
        balanced_accuracy, balanced_ci95: mean of the classes' accuracies, and its interval.
        n: images scored.
        failed: images that could not be read.
        failures: which, and why.
        classes: number of classes scored against.
        model_id, variant, engine: what was measured.
        templates: prompts a class name went through.
        machine: what it was measured on.
        per_class: of every class, in the order of labels.
        confusions: the twenty most frequent.
        against, difference: another variant, and the accuracy beside its on the same images.
    """

    data: str
    top1: float
    top5: float
    ci95: tuple[float, float]
    top5_ci95: tuple[float, float]
    balanced_accuracy: float
    balanced_ci95: tuple[float, float]
    n: int
    failed: int
    failures: tuple[str, ...] = ()
    classes: int
    model_id: str
    variant: str
    engine: str
    templates: tuple[str, ...]
    machine: Description
    per_class: list[ClassAccuracy]
    confusions: list[Confusion]
    against: str | None = None
    difference: PairedDifference | None = None


class _Scored(msgspec.Struct, frozen=True):
    """What one variant says of every image of a set; of those that could not be read, nothing that counts."""

    keep: npt.NDArray[np.bool_]
    found: Predictions
    failures: tuple[str, ...]


def evaluate_set(
    bundle: Bundle,
    data: LabelledSet,
    *,
    templates: Sequence[str],
    variants: Sequence[str] = ("fp32",),
    engine: str = "onnxruntime",
    against: str | None = None,
    progress: Progress | None = None,
) -> list[ZeroShotResult]:
    """Score every image against prompts made from the class names, by one variant or several.

    Args:
        variants: forms of the encoder; a result for each is returned.
        engine: that runs them all.
        against: another variant to compare each with, image by image; by default the first.
        progress: called with (images done, images in all), over all variants.

    Raises:
        SourceError: no image can be decoded.
        VariantError, EngineError: as the bundle and the engine say.
        ModelError: the text encoder cannot be loaded.
    """
    variants = list(dict.fromkeys(variants))
    runs = list(dict.fromkeys([*variants, *([against] if against else [])]))
    for name in runs:  # a misspelt one should not be found out after the others have run
        bundle.variant(name)
    table = table_for_bundle(bundle, data.classes, templates, name="eval")
    scored: dict[str, _Scored] = {}
    for run, name in enumerate(runs):
        wrong = list(data.damaged.named)
        watch = _watch(progress, run, len(runs))
        images = image_embeddings(bundle, name, data.items, engine=engine, progress=watch, passed_over=wrong.append)
        found = predictions(images.rows, table.embeddings, data.labels)
        scored[name] = _Scored(images.keep, found, tuple(wrong))
    first = variants[0]
    return [
        _result(bundle, data, scored, name, templates, engine, against or (first if name != first else None))
        for name in variants
    ]


def evaluate_folder(
    bundle: Bundle,
    data: Path,
    *,
    templates: Sequence[str],
    names: Path | None = None,
    variant: str = "fp32",
    against: str | None = None,
    progress: Progress | None = None,
) -> ZeroShotResult:
    """``evaluate_set`` of one variant on what ``open_labelled`` opens."""
    opened = open_labelled(data, names)
    (result,) = evaluate_set(
        bundle, opened, templates=templates, variants=(variant,), against=against, progress=progress
    )
    return result


def _result(
    bundle: Bundle,
    data: LabelledSet,
    scored: dict[str, _Scored],
    variant: str,
    templates: Sequence[str],
    engine: str,
    against: str | None,
) -> ZeroShotResult:
    own, other = scored[variant], scored[against] if against else None
    truth, right = data.labels[own.keep], own.found.ranks[own.keep] == 0
    best, five = (top_k(own.found.ranks[own.keep], k) for k in (1, 5))
    balanced = balanced_accuracy(truth, right)
    return ZeroShotResult(
        data=data.name,
        top1=best.value,
        ci95=best.ci95,
        top5=five.value,
        top5_ci95=five.ci95,
        balanced_accuracy=balanced.value,
        balanced_ci95=balanced.ci95,
        n=len(truth),
        failed=len(data.items) - len(truth) + data.damaged.count,
        failures=own.failures,
        classes=len(data.classes),
        model_id=bundle.manifest.model.id,
        variant=variant,
        engine=engine,
        templates=tuple(templates),
        machine=describe_machine(),
        per_class=per_class_accuracy(truth, right, data.folders),
        confusions=confusions(truth, own.found.predicted[own.keep], data.folders),
        against=against,
        difference=_difference(other, own) if other else None,
    )


def _difference(reference: _Scored, candidate: _Scored) -> PairedDifference:
    both = reference.keep & candidate.keep
    return paired_difference(reference.found.ranks[both] == 0, candidate.found.ranks[both] == 0)


def _watch(progress: Progress | None, run: int, runs: int) -> Progress | None:
    return (lambda done, total: progress(run * total + done, runs * total)) if progress else None
