"""A chosen set, or footage, in; one side of a drift report out."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edgeclip.bundle import Bundle
from edgeclip.calibration.choose_images import ChooseOptions, choose_images, graph_of, held_of
from edgeclip.calibration.chosen_set import ChosenImages, Held, is_chosen_set, read_held, read_record
from edgeclip.calibration.drift import Site
from edgeclip.calibration.footage import Footage, Sampling
from edgeclip.calibration.survey import survey
from edgeclip.errors import InputError
from edgeclip.prompts import FloatArray
from edgeclip.runtime.address import short_name
from edgeclip.runtime.encoder import ImageEncoder

_BATCH = 32


def site_of(
    bundle: Bundle,
    source: str,
    options: ChooseOptions,
    *,
    progress: Callable[[int], None] | None = None,
) -> Site:
    """What is compared with: a set that was chosen before, or one that is chosen here from footage.

    Raises:
        InputError: the set was chosen with another model, variant or weights.
        SourceError, EngineError: as for :func:`edgeclip.calibration.choose_images.choose_images`.
    """
    if not is_chosen_set(Path(source)):
        with tempfile.TemporaryDirectory() as scratch:
            choose_images(bundle, [source], Path(scratch), options, progress=progress)
            return _read(bundle, Path(scratch), options, _name(source))
    return _read(bundle, Path(source), options, _name(source))


def footage_of(
    bundle: Bundle,
    source: str,
    options: ChooseOptions,
    sampling: Sampling,
    *,
    progress: Callable[[int], None] | None = None,
) -> Site:
    """What is held against a set: a uniform sample of footage, all of it counting as held out.

    Of a chosen set it is the footage that was held out when it was chosen.

    Raises:
        InputError, SourceError, EngineError: as for :func:`site_of`.
    """
    if is_chosen_set(Path(source)):
        return _read(bundle, Path(source), options, _name(source))
    with (
        tempfile.TemporaryDirectory() as scratch,
        Footage([source], sampling) as footage,
        ImageEncoder(bundle, options.variant, engine=options.engine) as encoder,
    ):
        found = survey(footage, encoder, Path(scratch), count=1, seed=sampling.seed, progress=progress)
    width = bundle.manifest.encoder.embedding_dim
    return Site(_name(source), np.zeros((0, width), np.float32), (), held_of(found.held_out.items, width))


def _read(bundle: Bundle, folder: Path, options: ChooseOptions, name: str) -> Site:
    record, graph = read_record(folder), graph_of(bundle, options.variant)
    if record.graph_sha256 != graph:
        raise InputError(
            f"expected {folder} to be chosen with {options.variant} of model {bundle.manifest.model.id}, got "
            f"{record.variant} of {record.model_id} (graph {record.graph_sha256[:12]}…, not {graph[:12]}…): pass the "
            "--bundle and --variant that it was chosen with, or choose again"
        )
    with ImageEncoder(bundle, options.variant, engine=options.engine) as encoder:
        rows = _embed(encoder, folder)
    held: Held = read_held(folder)
    return Site(name, rows, [image.stratum for image in record.images], held)


def _embed(encoder: ImageEncoder, folder: Path) -> FloatArray:
    images = ChosenImages(folder)
    parts = [encoder.encode(images[at : at + _BATCH]) for at in range(0, len(images), _BATCH)]
    rows: FloatArray = np.concatenate(parts)
    return rows


def _name(source: str) -> str:
    if "://" in source:
        return short_name(source)
    return Path(source).name or source
