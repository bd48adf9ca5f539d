"""Labelled embeddings and a prompt table in, accuracy over the number of shots out, with seeds and bands.

For each seed the images of each class are shuffled, some are set aside to test on, and the shots are the first of the
rest: 4 shots are the 2 shots and two more. The test images of a seed are the same for every method and number of shots.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

from edgeclip.errors import InputError
from edgeclip.extras import require
from edgeclip.prompts import PromptTable
from edgeclip.runtime.scoring import Scorer
from edgeclip.spec import EncoderSpec
from edgeclip.training.adapt.fewshot import METHODS, adapt, method_called
from edgeclip.training.adapt.linear_probe import Shots

SHOTS = (0, 1, 2, 4, 8, 16)
_LEAST_TESTED = 0.25  # of each class's images


@dataclass(frozen=True)
class CurveOptions:
    """What is drawn.

    Attributes:
        methods: of ``METHODS``.
        shots: images a class; numbers that the data cannot give are brought down to the most that it can.
        seeds: how many random choices of shots and test images.
    """

    methods: tuple[str, ...] = tuple(METHODS)
    shots: tuple[int, ...] = SHOTS
    seeds: int = 5


class CurvePoint(msgspec.Struct, frozen=True):
    """One method at one number of shots.

    Attributes:
        shots: images a class; classes with fewer gave what they had.
        top1: mean over the seeds, with its 95 % interval (Student's t) ``low`` to ``high``.
        gain: mean over the seeds of the difference from zero-shot on the same images, with ``gain_low``, ``gain_high``.
        by_seed: top-1 of each seed.
        settings: what was chosen for each seed.
    """

    method: str
    shots: int
    top1: float
    low: float
    high: float
    gain: float
    gain_low: float
    gain_high: float
    by_seed: list[float]
    settings: list[str]


class Curve(msgspec.Struct, frozen=True):
    """All points, and what they were measured on."""

    points: list[CurvePoint]
    images: int
    classes: int
    tested: int
    seeds: int
    most_shots: int

    def of(self, method: str) -> list[CurvePoint]:
        """The points of one method, by shots."""
        return [point for point in self.points if point.method == method]

    def below_zero_shot(self) -> list[CurvePoint]:
        """Points of zero-shot-initialised methods whose mean lies below zero-shot's."""
        return [point for point in self.points if METHODS[point.method].from_text and point.gain < 0]


def draw_curve(
    table: PromptTable,
    images: Shots,
    encoder: EncoderSpec,
    options: CurveOptions = CurveOptions(),
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Curve:
    """Measure every method at every number of shots.

    Args:
        table: text rows; class c of the images is its row c.
        images: every labelled image there is.
        progress: called with (fits done, fits in all).

    Raises:
        InputError: an unknown method, too few seeds, or a class with fewer than two images.
    """
    for name in options.methods:
        method_called(name)
    if options.seeds < 2 or not options.shots or min(options.shots) < 0:
        raise InputError(
            f"expected at least two seeds and shots of 0 or more, got {options.seeds} and {options.shots}: "
            "one seed has no band"
        )
    counts = np.bincount(images.labels, minlength=int(images.labels.max()) + 1)
    if counts.min() < 2:
        raise InputError(
            f"expected two images of each class, one to learn from and one to test on, got {counts.min()} of "
            f"{table.labels[int(counts.argmin())]!r}"
        )
    most = int((counts - _tested(counts)).max())
    numbers = sorted({min(shots, most) for shots in options.shots})
    accuracy: dict[tuple[str, int], list[float]] = {}
    settings: dict[tuple[str, int], list[str]] = {}
    fits = [
        (seed, shots, name)
        for seed in range(options.seeds)
        for shots in numbers
        for name in options.methods
        if shots or METHODS[name].from_text
    ]
    zero_shot: list[float] = []
    tested = 0
    for done, (seed, shots, name) in enumerate(fits):
        chosen, test = split(images.labels, shots, largest=numbers[-1], seed=seed)
        tested = len(test)
        if len(zero_shot) == seed:
            zero_shot.append(_top1(table, images.take(test), encoder))
        adapted = adapt(table, images.take(chosen), encoder, name, seed=seed)
        accuracy.setdefault((name, shots), []).append(_top1(adapted.table, images.take(test), encoder))
        settings.setdefault((name, shots), []).append(_said(adapted.setting))
        if progress:
            progress(done + 1, len(fits))
    points = []
    for (name, shots), found in accuracy.items():
        low, high = _interval(found)
        gains = [own - before for own, before in zip(found, zero_shot, strict=True)]
        gain_low, gain_high = _interval(gains)
        mean, gain = float(np.mean(found)), float(np.mean(gains))
        points.append(CurvePoint(name, shots, mean, low, high, gain, gain_low, gain_high, found, settings[name, shots]))
    return Curve(points, len(images.labels), len(counts), tested, options.seeds, most)


def split(
    labels: npt.NDArray[np.int64], shots: int, *, largest: int, seed: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Rows of the shots and rows to test on; of each class a quarter at least is tested on.

    Args:
        largest: the most shots that will be asked for with this seed; what lies beyond is tested on too.
    """
    chooser = np.random.default_rng(seed)
    chosen: list[npt.NDArray[np.intp]] = []
    test: list[npt.NDArray[np.intp]] = []
    for label in np.unique(labels):
        rows = chooser.permutation(np.flatnonzero(labels == label))
        pool = min(largest, len(rows) - int(_tested(np.array([len(rows)]))[0]))
        chosen.append(rows[: min(shots, pool)])
        test.append(rows[pool:])
    return np.concatenate(chosen), np.concatenate(test)


def _tested(counts: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    tested: npt.NDArray[np.int64] = np.ceil(counts * _LEAST_TESTED).astype(np.int64)
    return tested


def _top1(table: PromptTable, images: Shots, encoder: EncoderSpec) -> float:
    scores = Scorer(table, encoder).scores(images.embeddings)  # (N, C)
    return float((scores.argmax(axis=1) == images.labels).mean())


def _interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean by Student's t."""
    stats = require("scipy.stats", purpose="draw confidence bands", extra="train")
    half = float(stats.t.ppf(0.975, len(values) - 1)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def _said(setting: msgspec.Struct) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in msgspec.structs.asdict(setting).items())
