"""A bundle, clean labelled images and sets under shift in; what corruption and precision cost, on the same images, out.

Every variant sees the same pixels, so what is compared is compared in pairs. Embeddings are kept as they are made
(``calibration/embeddings.py``): a run that was killed goes on, and a second one reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np

from edgeclip.bundle import Bundle
from edgeclip.calibration.embeddings import image_embeddings
from edgeclip.devices.machine.probe import describe_machine
from edgeclip.errors import InputError
from edgeclip.evaluation.data.dataset import Items, LabelledSet, Labels
from edgeclip.evaluation.data.shift_sets import shared_classes, stratified
from edgeclip.evaluation.robustness.corruptions import SUITE, SUITE_VERSION, check_severities, corruptions_called
from edgeclip.evaluation.robustness.report import CorruptionResult, RobustnessReport, ShiftResult, accuracy_of
from edgeclip.evaluation.robustness.views import Views
from edgeclip.evaluation.statistics.metrics import predictions
from edgeclip.evaluation.statistics.paired import (
    ExtraLoss,
    difference_between_sets,
    difference_of_differences,
    paired_difference,
)
from edgeclip.export.prompt_table import table_for_bundle
from edgeclip.files import sha256_json
from edgeclip.hits import Hits
from edgeclip.prompts import FloatArray, load_templates

_LEAST_SIDE = 256
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class RobustnessOptions:
    """What is measured.

    Attributes:
        variants: of the bundle; all are held against the first.
        corruptions: names of ``SUITE``; none for shift sets alone.
        severities: of 1 to 5.
        limit: images of each set, a seeded sample with each class's share; None for all.
        seed: of that sample.
        templates: prompts that a class name goes through.
    """

    variants: tuple[str, ...] = ("fp32",)
    corruptions: tuple[str, ...] = tuple(SUITE)
    severities: tuple[int, ...] = (1, 3, 5)
    limit: int | None = None
    seed: int = 0
    templates: tuple[str, ...] = field(default_factory=lambda: load_templates("simple"))

    def __post_init__(self) -> None:
        corruptions_called(self.corruptions)
        check_severities(self.severities)
        if not self.variants or len(set(self.variants)) != len(self.variants):
            raise InputError(f"expected each variant once, got {', '.join(self.variants) or 'none'}")
        if self.corruptions and not self.severities:
            raise InputError("expected severities of 1 to 5 with corruptions, got none")

    @property
    def conditions(self) -> list[tuple[str, int]]:
        """(corruption, severity) in the order in which an image goes through them."""
        return [(name, severity) for name in self.corruptions for severity in sorted(self.severities)]


def measure_robustness(
    bundle: Bundle,
    clean: LabelledSet,
    shifts: Sequence[LabelledSet] = (),
    options: RobustnessOptions = RobustnessOptions(),
    *,
    progress: Progress | None = None,
) -> RobustnessReport:
    """Zero-shot top-1 of every variant on clean, corrupted and shifted images.

    Args:
        clean: labelled images; an image whose shorter side is longer than 256 pixels (or than the encoder's input, if
            that is larger) is reduced to it first, so that noise and blocks mean the same for all cameras.
        shifts: sets of other images, from ``open_shift_set``.
        progress: called with (views encoded or read, views in all), over all variants.

    Raises:
        InputError: unusable options.
        SourceError: a set none of whose images can be decoded.
        VariantError, EngineError: as bundle and engine say.
    """
    samples = [stratified(item, options.limit, seed=options.seed) for item in (clean, *shifts)]
    tables = [_rows(bundle, clean, options)]
    for item in shifts:  # a row is made of its own class's names alone, so rows of shared classes are there already
        shared = shared_classes(clean.classes, item.classes)
        tables.append(_rows(bundle, item, options) if shared is None else tables[0][shared])
    watch = _Watch(progress, [len(samples[0]) * (1 + len(options.conditions)), *map(len, samples[1:])], options)
    seen = _see_corrupted(bundle, samples[0], tables[0], options, watch)
    found = [
        _shifted(bundle, opened, sample, rows, _of_these_classes(seen, clean, opened, rows), seen, options, watch)
        for opened, sample, rows in zip(shifts, samples[1:], tables[1:], strict=True)
    ]
    hits = seen.hits
    return RobustnessReport(
        model_id=bundle.manifest.model.id,
        data=clean.name,
        n=len(seen.labels),
        unreadable=len(samples[0]) - len(seen.labels),
        classes=len(clean.classes),
        images_id=_images_id(samples[0]),
        variants=list(options.variants),
        severities=sorted(options.severities),
        seed=options.seed,
        suite=SUITE_VERSION,
        templates=options.templates,
        clean=[accuracy_of(item[0]) for item in hits],
        clean_difference=[paired_difference(hits[0][0], other[0]) for other in hits[1:]],
        corrupted=[accuracy_of(item[1:]) for item in hits] if options.conditions else [],
        extra=[_extra(hits[0], other, slice(1, None)) for other in hits[1:]] if options.conditions else [],
        corruptions=_by_corruption(hits, options),
        shifts=found,
        machine=describe_machine(),
    )


@dataclass(frozen=True)
class _Seen:
    """Clean images that could be decoded, as the variants saw them.

    Attributes:
        labels: (N,) index of each one's class.
        embeddings: for each variant (N, D), without corruption.
        hits: for each variant (1 + K, N), without corruption and under each condition.
    """

    labels: Labels
    embeddings: list[FloatArray]
    hits: list[Hits]


def _see_corrupted(bundle: Bundle, sample: Items, rows: FloatArray, options: RobustnessOptions, watch: _Watch) -> _Seen:
    spec = bundle.manifest.encoder.preprocess
    views = Views(sample, options.conditions, side=max(_LEAST_SIDE, spec.height, spec.width))
    labels, embeddings, hits = np.empty(0, np.int64), [], []
    for variant in options.variants:
        found, keep = image_embeddings(bundle, variant, views, progress=watch.next())
        step = 1 + len(options.conditions)
        readable = keep.reshape(-1, step).all(axis=1)  # of one image, all views or none
        labels = sample.labels[readable]
        seen = found.reshape(len(sample), step, -1)[readable]  # (N, 1 + K, D)
        embeddings.append(seen[:, 0])
        hits.append(np.stack([_hits(seen[:, row], rows, labels) for row in range(step)]))
    return _Seen(labels, embeddings, hits)


def _shifted(
    bundle: Bundle,
    opened: LabelledSet,
    sample: Items,
    rows: FloatArray,
    clean: list[Hits] | None,
    seen: _Seen,
    options: RobustnessOptions,
    watch: _Watch,
) -> ShiftResult:
    """One set of other images, with (C, D) ``rows`` of its classes; ``clean`` are hits on clean images of these."""
    shifted = []
    for variant in options.variants:
        found, keep = image_embeddings(bundle, variant, sample, progress=watch.next())
        shifted.append(_hits(found[keep], rows, sample.labels[keep]))
    paired = [paired_difference(shifted[0], other) for other in shifted[1:]]
    base = clean or [item[0] for item in seen.hits]
    before = [paired_difference(base[0], other) for other in base[1:]]
    return ShiftResult(
        name=opened.name,
        images=len(shifted[0]),
        classes=len(opened.classes),
        unreadable=len(sample) - len(shifted[0]),
        images_id=_images_id(sample),
        top1=[accuracy_of(item) for item in shifted],
        clean_top1=[float(item.mean()) for item in clean] if clean else None,
        difference=paired,
        extra=[difference_between_sets(*pair) for pair in zip(before, paired, strict=True)],
    )


def _of_these_classes(seen: _Seen, clean: LabelledSet, shift: LabelledSet, rows: FloatArray) -> list[Hits] | None:
    """For each variant, hits on the clean images of a shift set's classes, scored among these alone.

    None if the clean set lacks one of the classes, or has no image of any.
    """
    shared = shared_classes(clean.classes, shift.classes)
    if shared is None:
        return None
    own = np.full(len(clean.classes), -1)
    own[shared] = np.arange(len(shared))
    truth = own[seen.labels]
    there = truth >= 0
    if not there.any():
        return None
    return [_hits(item[there], rows, truth[there]) for item in seen.embeddings]


def _rows(bundle: Bundle, opened: LabelledSet, options: RobustnessOptions) -> FloatArray:
    """Unit rows (C, D) of a set's classes."""
    return table_for_bundle(bundle, opened.classes, options.templates, name="robustness").embeddings


def _hits(embeddings: FloatArray, rows: FloatArray, truth: Labels) -> Hits:
    """Which of (N, D) are nearest to the row (C, D) of their class (N,)."""
    return np.asarray(predictions(embeddings, rows, truth).ranks == 0)


def _images_id(sample: Items) -> str:
    return sha256_json([[item.key, item.label] for item in sample])


class _Watch:
    """Progress of several runs of the encoders as one: sets one after another, each through all variants."""

    def __init__(self, progress: Progress | None, sizes: Sequence[int], options: RobustnessOptions) -> None:
        self._progress = progress
        self._ends = list(accumulate([0, *(size for size in sizes for _ in options.variants)]))
        self._run = -1

    def next(self) -> Progress | None:
        """What the next run calls."""
        self._run += 1
        before, progress = self._ends[self._run], self._progress
        return (lambda done, _total: progress(before + done, self._ends[-1])) if progress else None


def _by_corruption(hits: Sequence[Hits], options: RobustnessOptions) -> list[CorruptionResult]:
    results = []
    step = len(options.severities)
    for index, name in enumerate(options.corruptions):
        rows = slice(1 + index * step, 1 + (index + 1) * step)
        results.append(
            CorruptionResult(
                name=name,
                by_severity=[[accuracy_of(item[row]) for item in hits] for row in range(rows.start, rows.stop)],
                mean=[accuracy_of(item[rows]) for item in hits],
                extra=[_extra(hits[0], other, rows) for other in hits[1:]],
            )
        )
    return results


def _extra(reference: Hits, candidate: Hits, rows: slice) -> ExtraLoss:
    """What a candidate loses beyond its loss on clean images (row 0) under the conditions ``rows``."""
    return difference_of_differences(reference[0], candidate[0], reference[rows], candidate[rows])
