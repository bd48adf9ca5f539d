"""Two checkpoints and folders of labelled images in; zero-shot top-1 of the models between them out (WiSE-FT).

It comes as a table, as a picture and as ``curve.json``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from edgeclip.devices.machine.probe import Description, describe_machine, summary
from edgeclip.errors import InputError, SourceError
from edgeclip.evaluation.data.class_sets import class_prompts
from edgeclip.evaluation.data.shift_sets import names_of
from edgeclip.evaluation.statistics.metrics import true_class_ranks, wilson_interval
from edgeclip.files import write_json
from edgeclip.printable import counted
from edgeclip.prompts import FloatArray, PromptClass, encode_table, load_templates, unit_rows
from edgeclip.runtime.images import Image, list_labelled, read_image
from edgeclip.training.adapt.wise import ALPHAS, CheckpointsBetween, WisePoint, plot_wise
from edgeclip.training.loop.features import features_of
from edgeclip.training.loop.frozen_towers import TextFeatures
from edgeclip.training.towers.pretrained import ImageTower
from edgeclip.training.two_tower import TwoTower

RULE = "the highest top-1 on the target, of equals the smallest alpha"


class Accuracy(msgspec.Struct, frozen=True):
    """Zero-shot top-1, or a mean of several, with its 95 % interval."""

    top1: float
    ci95: tuple[float, float]


class AlphaResult(msgspec.Struct, frozen=True):
    """One model on the way.

    Attributes:
        target: on the set like that of the fine-tuning.
        shifts: on each set unlike it, in the report's order.
        shift_mean: their mean, each set with the same weight; None where there is none.
    """

    alpha: float
    target: Accuracy
    shifts: list[Accuracy]
    shift_mean: Accuracy | None


class MeasuredSet(msgspec.Struct, frozen=True):
    """A folder that was measured on: images scored, classes, and files that could not be decoded."""

    name: str
    images: int
    classes: int
    unreadable: int


class WiseReport(msgspec.Struct, frozen=True):
    """The curve and what it was measured on; ``curve.json``.

    Attributes:
        shared: towers that are the same in both checkpoints.
        results: by alpha.
        best: alpha by ``RULE``, which looks at the target set alone.
    """

    zero_shot: str
    fine_tuned: str
    shared: list[str]
    target: MeasuredSet
    shifts: list[MeasuredSet]
    templates: tuple[str, ...]
    results: list[AlphaResult]
    best: float
    rule: str
    machine: Description

    def figures_at(self, alpha: float) -> dict[str, float]:
        """What a checkpoint says of itself: accuracies at an alpha, nothing if that one was not measured."""
        found: dict[str, float] = {}
        for result in self.results:
            if result.alpha == alpha:
                found["top1"] = result.target.top1
                if result.shift_mean:
                    found["shift_top1"] = result.shift_mean.top1
        return found


def mean_of(accuracies: Sequence[Accuracy]) -> Accuracy | None:
    """Mean of accuracies on different images; None of none.

    Its interval is put together from theirs (MOVER, Zou and Donner 2008): distances from the mean add as squares.
    """
    if not accuracies:
        return None
    count = len(accuracies)
    mean = sum(item.top1 for item in accuracies) / count
    below = math.sqrt(sum((item.top1 - item.ci95[0]) ** 2 for item in accuracies)) / count
    above = math.sqrt(sum((item.ci95[1] - item.top1) ** 2 for item in accuracies)) / count
    return Accuracy(mean, (mean - below, mean + above))


def wise_lines(report: WiseReport) -> list[str]:
    """The curve as a table, for people."""
    sets = [report.target, *report.shifts]
    lines = [
        f"{item.name}: {counted(item.images, 'image')} in {counted(item.classes, 'class', 'classes')}"
        + (f", {item.unreadable} could not be decoded" if item.unreadable else "")
        + (" (target)" if item is report.target else " (shift)")
        for item in sets
    ]
    widths = [max(len(item.name), 5) for item in report.shifts]
    head = "alpha  target  95 % interval"
    if report.shifts:
        head += "  mean under shift  95 % interval  " + "  ".join(
            f"{item.name:<{width}}" for item, width in zip(report.shifts, widths, strict=True)
        )
    lines.append(head.rstrip())
    for result in report.results:
        line = f"{result.alpha:<5g}  {result.target.top1:.3f}   {_interval(result.target)}  "
        if result.shift_mean:
            line += f"  {result.shift_mean.top1:.3f}             {_interval(result.shift_mean)}    " + "  ".join(
                f"{item.top1:<{width}.3f}" for item, width in zip(result.shifts, widths, strict=True)
            )
        lines.append(line.rstrip())
    shared = " and ".join(report.shared) or "neither"
    lines.append(f"best alpha {report.best:g}: {report.rule}")
    lines.append(f"towers that both checkpoints share: {shared}; on {summary(report.machine)}")
    return lines


def save_wise(report: WiseReport, folder: Path) -> list[Path]:
    """Write ``curve.json``, and with shift sets ``curve.png``, into a folder; returns the paths."""
    numbers, picture = folder / "curve.json", folder / "curve.png"
    write_json(numbers, report)
    if not report.shifts:
        return [numbers]
    points = [
        WisePoint(
            result.alpha,
            result.target.top1,
            result.shift_mean.top1,
            accuracy_ci95=result.target.ci95,
            robustness_ci95=result.shift_mean.ci95,
        )
        for result in report.results
        if result.shift_mean
    ]
    shifts = ", ".join(item.name for item in report.shifts)
    mean = f"mean of {shifts}" if len(report.shifts) > 1 else shifts
    plot_wise(points, picture, accuracy=report.target.name, robustness=mean)
    return [numbers, picture]


def _interval(accuracy: Accuracy) -> str:
    return f"{accuracy.ci95[0]:.3f}–{accuracy.ci95[1]:.3f}"


Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class WiseOptions:
    """What is measured.

    Attributes:
        alphas: the models, from 0 (zero-shot) to 1 (fine-tuned).
        templates: prompts that a class name goes through.
        names: JSON, folder name → class name or list of names. A shift set none of whose folders is in it goes by its
            folders' own names.
    """

    alphas: tuple[float, ...] = ALPHAS
    templates: tuple[str, ...] = field(default_factory=lambda: load_templates("simple"))
    names: Path | None = None


class DecodedSet:
    """A folder with one folder of images a class.

    Raises:
        SourceError: no class folders, or one without images.
        InputError: ``names`` lacks a folder.
    """

    def __init__(self, folder: Path, names: Path | None) -> None:
        self.files, folders = list_labelled(folder)
        self.name = folder.resolve().name
        self.classes: tuple[PromptClass, ...] = class_prompts(folders, names)
        self.labels: npt.NDArray[np.int64] = np.empty(0, np.int64)

    def images(self) -> Iterator[Image]:
        """Those that can be decoded; afterwards ``labels`` (N,) are theirs.

        Raises:
            SourceError: none can be.
        """
        labels: list[int] = []
        for path, label in self.files:
            try:
                image = read_image(path)
            except SourceError:
                continue
            labels.append(label)
            yield image
        if not labels:
            raise SourceError(f"none of the {len(self.files)} images in {self.name} can be decoded: check one by hand")
        self.labels = np.array(labels, np.int64)

    def measured(self) -> MeasuredSet:
        """What the report says of it."""
        return MeasuredSet(self.name, len(self.labels), len(self.classes), len(self.files) - len(self.labels))


def read_sets(data: Path, shifts: Sequence[Path], names: Path | None) -> list[DecodedSet]:
    """The target set, then the shift sets; raises as ``DecodedSet``."""
    target = DecodedSet(data, names)
    return [target, *(DecodedSet(shift, names_of(shift, names)) for shift in shifts)]


def measure_wise(
    way: CheckpointsBetween,
    sets: Sequence[DecodedSet],
    options: WiseOptions,
    *,
    progress: Progress | None = None,
) -> WiseReport:
    """Zero-shot top-1 of every model on the way, on every set.

    A tower that both checkpoints share is run once over each image or text. One that differs is run for every alpha.

    Args:
        sets: from ``read_sets``.
        progress: called with (images done, images in all), over all runs of the image tower.

    Raises:
        InputError: an alpha outside [0, 1], or none.
        SourceError: a set none of whose images can be decoded.
    """
    alphas = sorted(set(options.alphas))
    if not alphas or not all(0 <= alpha <= 1 for alpha in alphas):
        raise InputError(
            f"expected alphas from 0 (zero-shot) to 1 (fine-tuned), got {', '.join(map(str, options.alphas)) or 'none'}"
        )
    way.to("cuda" if torch.cuda.is_available() else "cpu")
    files = sum(len(item.files) for item in sets)
    runs = 1 if "image" in way.shared else len(alphas)
    texts: TextFeatures | None = None
    features: npt.NDArray[np.float16] | None = None
    results: list[AlphaResult] = []
    for run, alpha in enumerate(alphas):
        model = way.at(alpha)
        if features is None or "image" not in way.shared:
            tower = ImageTower(model.image, model.image_width, model.preprocess)
            watch = _watch(progress, before=run * files, total=runs * files)
            features = features_of(tower, (image for item in sets for image in item.images()), progress=watch)
        if texts is None or "text" not in way.shared:
            texts = TextFeatures(_text_features(model))
        hits = _hits(model, sets, features, _Texts(model, texts), options.templates)
        accuracies = [Accuracy(found.mean().item(), wilson_interval(int(found.sum()), len(found))) for found in hits]
        results.append(AlphaResult(alpha, accuracies[0], accuracies[1:], mean_of(accuracies[1:])))
    return WiseReport(
        zero_shot=way.zero_shot,
        fine_tuned=way.fine_tuned,
        shared=sorted(way.shared),
        target=sets[0].measured(),
        shifts=[item.measured() for item in sets[1:]],
        templates=options.templates,
        results=results,
        best=max(results, key=lambda result: (result.target.top1, -result.alpha)).alpha,
        rule=RULE,
        machine=describe_machine(),
    )


class _Texts:
    """The text side of one model as the encoder that a table builder wants, over features that may be another's."""

    def __init__(self, model: TwoTower, features: TextFeatures) -> None:
        self._model, self._features = model, features

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> FloatArray:
        """Embeddings (N, D) float32."""
        embeddings: FloatArray = self._model.encode_text(self._features(texts)).float().cpu().numpy()
        return embeddings


def _text_features(model: TwoTower) -> Callable[[Sequence[str]], torch.Tensor]:
    def encode(texts: Sequence[str]) -> torch.Tensor:
        with torch.no_grad():
            return model.text_features(model.tokenize(texts).to(model.logit_scale.device))

    return encode


def _hits(
    model: TwoTower,
    sets: Sequence[DecodedSet],
    features: npt.NDArray[np.float16],
    texts: _Texts,
    templates: Sequence[str],
) -> list[npt.NDArray[np.bool_]]:
    """Of each set, which images (N,) are nearest to their own class; a tie is no hit."""
    with torch.no_grad():
        whole = torch.from_numpy(features.astype(np.float32)).to(model.logit_scale.device)  # (N, F) of all sets
        embeddings = unit_rows(model.encode_image(whole).float().cpu().numpy())  # (N, D)
    hits, first = [], 0
    for item in sets:
        rows = encode_table(texts, item.classes, templates, name="set", model_id="").embeddings  # (C, D)
        own = embeddings[first : first + len(item.labels)]
        hits.append(true_class_ranks(own @ rows.T, item.labels) == 0)
        first += len(own)
    return hits


def _watch(progress: Progress | None, *, before: int, total: int) -> Callable[[int], None] | None:
    return (lambda done: progress(before + done, total)) if progress else None
