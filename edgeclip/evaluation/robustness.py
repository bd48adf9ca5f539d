"""A bundle, clean labelled images and sets under shift in; what corruption and precision cost, on the same images, out.

Every clean image is corrupted once and goes through all variants, so what is compared is compared in pairs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

import numpy as np

from edgeclip.bundle import Bundle
from edgeclip.devices.probe import describe_machine
from edgeclip.errors import InputError, SourceError
from edgeclip.evaluation.corruptions import SUITE, SUITE_VERSION, check_severities, corrupt, corruptions_called
from edgeclip.evaluation.dataset import Item, Items, LabelledSet, Labels
from edgeclip.evaluation.paired import (
    ExtraLoss,
    Hits,
    difference_between_sets,
    difference_of_differences,
    paired_difference,
)
from edgeclip.evaluation.robustness_report import CorruptionResult, RobustnessReport, ShiftResult, accuracy_of
from edgeclip.evaluation.shift_sets import shared_classes, stratified
from edgeclip.evaluation.zeroshot import true_class_ranks
from edgeclip.export.tables import table_for_bundle
from edgeclip.files import sha256_json
from edgeclip.prompts import FloatArray, load_templates
from edgeclip.runtime.encoder import ImageEncoder
from edgeclip.runtime.engine import ByteArray
from edgeclip.runtime.images import Image, opencv
from edgeclip.runtime.preprocess import Preprocessor

_BATCH = 32
_LEAST_SIDE = 256
Progress = Callable[[int, int], None]
_T = TypeVar("_T")


@dataclass(frozen=True)
class RobustnessOptions:
    """What is measured.

    Attributes:
        variants: of the bundle; all are held against the first.
        corruptions: names of :data:`edgeclip.evaluation.corruptions.SUITE`; none for shift sets alone.
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
        shifts: sets of other images, from :func:`edgeclip.evaluation.shift_sets.open_shift_set`.
        progress: called with (runs of the encoders done, runs in all).

    Raises:
        InputError: unusable options.
        SourceError: a set none of whose images can be decoded.
        VariantError, EngineError: as bundle and engine say.
    """
    samples = [stratified(item, options.limit, seed=options.seed) for item in (clean, *shifts)]
    tables = [
        table_for_bundle(bundle, item.classes, options.templates, name="robustness").embeddings
        for item in (clean, *shifts)
    ]
    runs = [len(samples[0]) * (1 + len(options.conditions)), *(len(sample) for sample in samples[1:])]
    count = _Counter(progress, total=sum(runs))
    with ExitStack() as stack:
        encoders = [stack.enter_context(ImageEncoder(bundle, name)) for name in options.variants]
        seen = _see_corrupted(encoders, samples[0], tables[0], options, count)
        if not len(seen.labels):
            raise SourceError(f"none of the {len(samples[0])} images in {clean.name} can be decoded: check one by hand")
        found = [
            _shifted(encoders, opened, sample, rows, _of_these_classes(seen, clean, opened, rows), seen, count)
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


def _see_corrupted(
    encoders: Sequence[ImageEncoder], sample: Items, rows: FloatArray, options: RobustnessOptions, count: _Counter
) -> _Seen:
    spec = encoders[0].bundle.manifest.encoder.preprocess
    side = max(_LEAST_SIDE, spec.height, spec.width)
    preprocess = Preprocessor(spec)  # the worker thread's own

    def prepare(item: Item) -> tuple[int, ByteArray] | None:
        """The label of an image; and it, without corruption and under each condition, (1 + K, H, W, 3) uint8."""
        try:
            image = reduced(item.read(), side)
        except SourceError:
            return None
        views = [image, *(corrupt(image, *condition, key=item.key) for condition in options.conditions)]
        return item.label, np.stack([preprocess.resize(view) for view in views])

    labels: list[int] = []
    embeddings: list[list[FloatArray]] = [[] for _ in encoders]
    hits: list[list[Hits]] = [[] for _ in encoders]
    for prepared in _ahead(prepare, sample):
        if prepared is not None:
            label, views = prepared
            labels.append(label)
            for encoder, own_embeddings, own_hits in zip(encoders, embeddings, hits, strict=True):
                found = _encode(encoder, views)  # (1 + K, D)
                own_embeddings.append(found[0])
                own_hits.append(_hits(found, rows, np.full(len(found), label)))
        count.add(1 + len(options.conditions))
    if not labels:
        return _Seen(np.empty(0, np.int64), [], [])
    return _Seen(
        np.array(labels, np.int64), [np.stack(item) for item in embeddings], [np.stack(item, axis=1) for item in hits]
    )


def _shifted(
    encoders: Sequence[ImageEncoder],
    opened: LabelledSet,
    sample: Items,
    rows: FloatArray,
    clean: list[Hits] | None,
    seen: _Seen,
    count: _Counter,
) -> ShiftResult:
    """One set of other images, (C, D) ``rows`` of its classes; ``clean`` hits on its classes, if the clean set has them."""
    labels: list[int] = []
    hits: list[list[Hits]] = [[] for _ in encoders]
    preprocess = Preprocessor(encoders[0].bundle.manifest.encoder.preprocess)

    def prepare(item: Item) -> tuple[int, ByteArray] | None:
        try:
            return item.label, preprocess.resize(item.read())
        except SourceError:
            return None

    read = _ahead(prepare, sample)
    while batch := list(islice(read, _BATCH)):
        known = [item for item in batch if item is not None]
        truth = np.array([label for label, _ in known], np.int64)
        labels.extend(truth.tolist())
        if known:
            views = np.stack([view for _, view in known])
            for encoder, own_hits in zip(encoders, hits, strict=True):
                own_hits.append(_hits(_encode(encoder, views), rows, truth))
        count.add(len(batch))
    if not labels:
        raise SourceError(f"none of the {len(sample)} images in {opened.name} can be decoded: check one by hand")
    shifted = [np.concatenate(item) for item in hits]
    paired = [paired_difference(shifted[0], other) for other in shifted[1:]]
    base = clean or [item[0] for item in seen.hits]
    before = [paired_difference(base[0], other) for other in base[1:]]
    return ShiftResult(
        name=opened.name,
        images=len(labels),
        classes=len(opened.classes),
        unreadable=len(sample) - len(labels),
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


def reduced(image: Image, side: int) -> Image:
    """The image, with its shorter side brought down to ``side`` pixels if it is longer (mean of the area)."""
    height, width = image.shape[:2]
    if min(height, width) <= side:
        return image
    ratio = side / min(height, width)
    cv2 = opencv()
    size = (max(side, round(width * ratio)), max(side, round(height * ratio)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _encode(encoder: ImageEncoder, views: ByteArray) -> FloatArray:
    """Unit embeddings (N, D) of resized images (N, H, W, 3) uint8."""
    parts = [
        encoder.encode_preprocessed(encoder.preprocess.normalise_batch(views[start : start + _BATCH]))
        for start in range(0, len(views), _BATCH)
    ]
    return np.concatenate(parts)


def _hits(embeddings: FloatArray, rows: FloatArray, truth: Labels) -> Hits:
    """Which of (N, D) are nearest to the row (C, D) of their class (N,)."""
    return np.asarray(true_class_ranks(embeddings @ rows.T, truth) == 0)


def _images_id(sample: Items) -> str:
    return sha256_json([[item.key, item.label] for item in sample])


def _ahead(prepare: Callable[[Item], _T], items: Iterable[Item]) -> Iterator[_T]:
    """What ``prepare`` makes of each item, in order; two are made ahead in another thread while the engines run."""
    with ThreadPoolExecutor(1) as pool:
        under_way: deque[Future[_T]] = deque()
        for item in items:
            under_way.append(pool.submit(prepare, item))
            if len(under_way) > 2:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()


class _Counter:
    """Adds up runs of the encoders and tells them on."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def add(self, runs: int) -> None:
        self._done += runs
        if self._progress:
            self._progress(self._done, self._total)


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
