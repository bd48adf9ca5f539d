"""A bundle, one of its tables and labelled images or footage in; the table with decisions, and what was seen, out."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from edgeclip.bundle import Bundle
from edgeclip.calibration.decisions.background import (
    FootageOptions,
    describe_site,
    fit_footage,
    footage_notes,
    require_frames,
    vocabulary,
)
from edgeclip.calibration.decisions.fit import FitOptions, FitReport, fit_decisions
from edgeclip.calibration.embeddings import ImageEmbeddings, image_embeddings
from edgeclip.decisions import DecisionFacts, Decisions
from edgeclip.errors import InputError, SourceError
from edgeclip.evaluation.decisions.data import DataOptions, DecisionData, digests_of, open_decision_data, recorded_data
from edgeclip.export.prompt_table import table_for_bundle
from edgeclip.printable import counted
from edgeclip.prompts import FloatArray, PromptTable, make_classes
from edgeclip.runtime.encoder import ImageEncoder
from edgeclip.runtime.engines.base import engine_class
from edgeclip.runtime.images import Image
from edgeclip.runtime.sources.address import without_password
from edgeclip.runtime.sources.open import open_source

_BATCH = 32
Progress = Callable[[str, int, int], None]
Embedded = dict[str, ImageEmbeddings]  # by variant


@dataclass(frozen=True)
class Calibrated:
    """A table with decisions.

    Attributes:
        table: the same rows (more background rows, perhaps) and the decisions of each variant.
        reports: of each variant that was fitted on labelled images.
        damaged: labelled images that could not be decoded, and were left out.
        notes: what holds for all variants.
        background: words that were added as background rows.
    """

    table: PromptTable
    reports: list[FitReport] = field(default_factory=list)
    damaged: int = 0
    notes: list[str] = field(default_factory=list)
    background: tuple[str, ...] = ()


def variants_to_fit(bundle: Bundle, wanted: Sequence[str], engine: str) -> list[str]:
    """The variants that are named, or all that the engine is meant for.

    Raises:
        VariantError, EngineError: unknown names.
        InputError: the engine is meant for none.
    """
    suits = engine_class(engine).suits
    names = list(dict.fromkeys(wanted)) or [each.name for each in bundle.manifest.variants if suits(each)]
    for name in names:
        bundle.variant(name)
    if not names:
        raise InputError(f"expected a variant that {engine} is meant for, got none in {bundle.path.name}: name one")
    return names


def calibrate_decisions(
    bundle: Bundle,
    table: PromptTable,
    *,
    data: DataOptions | None = None,
    footage: Sequence[str] = (),
    refit: bool = False,
    target: float | None = None,
    confidence: float | None = None,
    footage_options: FootageOptions | None = None,
    every_s: float = 1.0,
    variants: Sequence[str] = (),
    engine: str | None = None,
    progress: Progress | None = None,
) -> tuple[Calibrated, FitOptions]:
    """Fit a table's decisions on labelled images, on footage without labels, or on the images of before.

    Args:
        data: labelled images; one of ``data``, ``footage`` and ``refit`` is given.
        footage: what ``open_source`` takes, showing next to nothing of the classes.
        refit: fit on the images that the table's decisions were fitted on, as then but for what is given here.
        target: share of reported labels that is to be right; 0.95, or as before.
        confidence: how sure each bound is to be; 0.9, or as before.
        variants: by default all that are meant for ``engine``, or those of before.
        engine: ``onnxruntime``, or as before.

    Returns:
        What was fitted, and with what.

    Raises:
        InputError: none or several of the three, or too few images.
    """
    given = [name for name, is_given in (("data", data), ("footage", footage), ("refit", refit)) if is_given]
    if len(given) != 1:
        raise InputError(f"expected one of data, footage and refit, got {' and '.join(given) or 'none of them'}")
    if refit:
        earlier = _before(table)
        options = FitOptions(target or earlier.target or 0.95, confidence or earlier.confidence or 0.9)
        return refit_decisions(bundle, table, options, variants=variants, engine=engine, progress=progress), options
    engine = engine or "onnxruntime"
    options = FitOptions(target or 0.95, confidence or 0.9)
    variants = variants_to_fit(bundle, variants, engine)
    if data:
        images = open_decision_data(data, table)
        return calibrate_on_labels(
            bundle, table, images, options, variants=variants, engine=engine, progress=progress
        ), options
    return calibrate_on_footage(
        bundle,
        table,
        footage,
        footage_options or FootageOptions(),
        every_s=every_s,
        variants=variants,
        engine=engine,
        progress=progress,
    ), options


def _before(table: PromptTable) -> DecisionFacts:
    """What is said of the decisions on labelled images that a table has."""
    before = next((each.facts for each in table.decisions if each.facts.data), None)
    if before is None:
        raise InputError(
            f"expected table {table.name!r} to have decisions on labelled images to fit again, got none: "
            "fit on data first"
        )
    return before


def calibrate_on_labels(
    bundle: Bundle,
    table: PromptTable,
    data: DecisionData,
    options: FitOptions,
    *,
    variants: Sequence[str],
    engine: str = "onnxruntime",
    progress: Progress | None = None,
) -> Calibrated:
    """Fit the decisions of each variant on labelled images; those of other variants stay as they are.

    Raises:
        InputError: too few images, or none of the table's classes.
        SourceError: no image can be decoded.
        VariantError, IntegrityError, EngineError, MissingExtraError: as the bundle and the engine say.
    """
    embedded = _embed(bundle, data, variants, engine, progress)
    return _fit(bundle, table, data, embedded, options, engine)


def _embed(
    bundle: Bundle, data: DecisionData, variants: Sequence[str], engine: str, progress: Progress | None
) -> Embedded:
    return {
        variant: image_embeddings(
            bundle, variant, data.items, engine=engine, progress=_watch(progress, f"images, {variant}")
        )
        for variant in variants
    }


def _fit(
    bundle: Bundle, table: PromptTable, data: DecisionData, embedded: Embedded, options: FitOptions, engine: str
) -> Calibrated:
    record = data.keep(digests_of(data.items))
    truth = data.truth(table)
    fitted, reports = [], []
    for variant, (rows, keep) in embedded.items():
        found = fit_decisions(
            table,
            bundle.manifest.encoder,
            rows[keep],
            truth[keep],
            options,
            variant=variant,
            graph=bundle.graph_sha256(variant),
            engine=engine,
            data=record,
        )
        fitted.append(found.decisions)
        reports.append(found.report)
    damaged = max(int((~found.keep).sum()) for found in embedded.values())
    notes = [f"{counted(damaged, 'image')} could not be decoded: left out"] if damaged else []
    return Calibrated(_with(table, fitted), reports, damaged, notes)


def refit_decisions(
    bundle: Bundle,
    table: PromptTable,
    options: FitOptions | None = None,
    *,
    variants: Sequence[str] = (),
    engine: str | None = None,
    progress: Progress | None = None,
) -> Calibrated:
    """Fit again on the images that the table's decisions were fitted on, from cached embeddings where these are there.

    Embeddings of a variant that has changed are made anew from the images, if these are still where they were.

    Args:
        options: by default as before.
        variants: by default those that have decisions and are in the bundle.
        engine: by default as before.

    Raises:
        InputError: the table has no decisions on labelled images, or their record is gone.
        SourceError: embeddings are missing, and the images are gone.
    """
    before = _before(table)
    engine = engine or before.engine
    options = options or FitOptions(before.target or 0.95, before.confidence or 0.9)
    present = {each.name for each in bundle.manifest.variants}
    had = [each.facts.variant for each in table.decisions if each.facts.variant in present]
    variants = variants_to_fit(bundle, variants or had, engine)
    data = recorded_data(before.data)
    known = _known(bundle, data, variants, engine, progress)
    if known is None:
        data = open_decision_data(data.options, table)
        return calibrate_on_labels(bundle, table, data, options, variants=variants, engine=engine, progress=progress)
    return _fit(bundle, table, data, known, options, engine)


def calibrate_on_footage(
    bundle: Bundle,
    table: PromptTable,
    sources: Sequence[str],
    options: FootageOptions,
    *,
    every_s: float = 1.0,
    words: Sequence[str] = (),
    variants: Sequence[str],
    engine: str = "onnxruntime",
    progress: Progress | None = None,
) -> Calibrated:
    """Find background rows and a threshold from footage without labels.

    Background words are chosen with the first variant's embeddings and added to the table, unless it has background
    rows already.

    Args:
        sources: what ``open_source`` takes; a live one is read until it ends.
        every_s: take a frame so often, seconds; images are all taken.
        words: to choose the background from; by default those of ``vocabulary``.

    Raises:
        InputError: too few frames.
        SourceError: a source that cannot be read.
        ModelError, MissingExtraError: the text encoder cannot be loaded, which the words need.
    """
    frames = {
        variant: _embed_footage(bundle, variant, sources, every_s, engine, _watch(progress, f"footage, {variant}"))
        for variant in variants
    }
    require_frames(min(map(len, frames.values())), options)
    added: tuple[str, ...] = ()
    if options.background and not table.background:
        table, added = _with_background(bundle, table, frames[variants[0]], options, words or vocabulary())
    fitted = [
        fit_footage(
            table,
            bundle.manifest.encoder,
            rows,
            options,
            variant=variant,
            graph=bundle.graph_sha256(variant),
            engine=engine,
        )
        for variant, rows in frames.items()
    ]
    return Calibrated(_with(table, fitted), notes=footage_notes(options), background=added)


def _with(table: PromptTable, fitted: Sequence[Decisions]) -> PromptTable:
    new = {each.facts.variant for each in fitted}
    kept = [each for each in table.decisions if each.facts.variant not in new]
    return dataclasses.replace(table, decisions=(*kept, *fitted))


def _known(
    bundle: Bundle, data: DecisionData, variants: Sequence[str], engine: str, progress: Progress | None
) -> Embedded | None:
    """What the cache has of recorded images; None if a row is missing."""
    try:
        embedded = _embed(bundle, data, variants, engine, progress)
    except SourceError:
        return None
    return embedded if all(found.keep.all() for found in embedded.values()) else None


def _with_background(
    bundle: Bundle, table: PromptTable, frames: FloatArray, options: FootageOptions, words: Sequence[str]
) -> tuple[PromptTable, tuple[str, ...]]:
    taken = {name.casefold() for item in table.classes for name in (item.label, *item.names)}
    classes = make_classes([word for word in words if word.casefold() not in taken])
    candidates = table_for_bundle(bundle, classes, table.templates, name="background")
    chosen = describe_site(
        frames,
        candidates.embeddings,
        table.embeddings,
        logit_scale=bundle.manifest.encoder.logit_scale,
        count=options.background,
    )
    if not chosen:
        return table, ()
    labels = tuple(candidates.labels[row] for row in chosen)
    return dataclasses.replace(
        table,
        classes=(*table.classes, *(candidates.classes[row] for row in chosen)),
        embeddings=np.concatenate([table.embeddings, candidates.embeddings[chosen]]),
        background=labels,
    ), labels


def _embed_footage(
    bundle: Bundle,
    variant: str,
    sources: Sequence[str],
    every_s: float,
    engine: str,
    watch: Callable[[int, int], None] | None,
) -> FloatArray:
    rows: list[FloatArray] = []
    with ImageEncoder(bundle, variant, engine=engine) as encoder:
        images = (encoder.preprocess.resize(image) for source in sources for image in _sampled(source, every_s))
        while batch := list(itertools.islice(images, _BATCH)):
            rows.append(encoder.encode_preprocessed(encoder.preprocess.normalise_batch(np.stack(batch))))
            if watch:
                watch(sum(map(len, rows)), 0)
    if not rows:
        raise SourceError(
            f"expected frames in {', '.join(map(without_password, sources))}, got none: check the sources"
        )
    return np.concatenate(rows)


def _sampled(text: str, every_s: float) -> Iterator[Image]:
    """A frame every so many seconds; every image of a folder."""
    due = -np.inf
    with open_source(text) as source:
        for frame in source:
            if frame.file is not None or frame.time_s >= due:
                due = frame.time_s + every_s
                yield frame.rgb()


def _watch(progress: Progress | None, what: str) -> Callable[[int, int], None] | None:
    return None if progress is None else (lambda done, total: progress(what, done, total))
