"""A bundle's encoder and images in, unit embeddings out; what was computed once is read from the cache.

A row is kept under the sha256 of the image's bytes, in a store (:mod:`edgeclip.calibration.embedding_store`) of its own
for every variant's graph, engine, version, machine and preprocessing. It is written batch by batch: a run that was
killed goes on from where it was, and a set that shares images with another has them already.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgeclip.bundle import Bundle
from edgeclip.calibration.embedding_store import EmbeddingStore
from edgeclip.calibration.pictures import Pictures
from edgeclip.devices.cuda import find_gpu
from edgeclip.devices.probe import describe_machine
from edgeclip.errors import EdgeclipError, SourceError
from edgeclip.files import cache_dir, sha256_json
from edgeclip.prompts import FloatArray
from edgeclip.runtime.encoder import ImageEncoder
from edgeclip.runtime.engine import engine_class
from edgeclip.runtime.images import Image

_BATCH = 32


class ImageEmbeddings(NamedTuple):
    """Unit embeddings (N, D) float32 of N images, and which could be decoded (N,) bool; the rows of others are 0."""

    rows: FloatArray
    keep: npt.NDArray[np.bool_]


def image_embeddings(
    bundle: Bundle,
    variant: str,
    items: Pictures,
    *,
    engine: str = "onnxruntime",
    progress: Callable[[int, int], None] | None = None,
) -> ImageEmbeddings:
    """Embed images. Those that cannot be decoded are passed over and marked.

    The engine is loaded only if a row is missing. Pictures are held one batch at a time, resized.

    Args:
        variant: form of the encoder.
        engine: name of an inference engine (see :data:`edgeclip.runtime.engine.ENGINES`).
        progress: called with (images done, images in all).

    Raises:
        SourceError: no image can be decoded.
        VariantError, IntegrityError, EngineError, MissingExtraError: as the bundle and the engine say.
    """
    key, width = store_key(bundle, variant, engine), bundle.manifest.encoder.embedding_dim
    store = EmbeddingStore(cache_dir("image-embeddings") / f"{key}.rows", width, key)
    rows, keep = np.zeros((len(items), width), np.float32), np.zeros(len(items), np.bool_)
    with contextlib.ExitStack() as stack:
        encoder: ImageEncoder | None = None
        pending: list[tuple[int, str, Image]] = []

        def flush() -> None:
            if pending and encoder:
                where = [row for row, _, _ in pending]
                small = np.stack([image for _, _, image in pending])
                rows[where] = encoder.encode_preprocessed(encoder.preprocess.normalise_batch(small))
                store.add([digest for _, digest, _ in pending], rows[where])
                pending.clear()

        for row, item in enumerate(items):
            with contextlib.suppress(SourceError):
                digest = item.digest()
                known = store.get(digest)
                if known is None:
                    image = item.read()
                    encoder = encoder or stack.enter_context(ImageEncoder(bundle, variant, engine=engine))
                    pending.append((row, digest, encoder.preprocess.resize(image)))
                else:
                    rows[row] = known
                keep[row] = True
            if len(pending) == _BATCH:
                flush()
            if progress and (row + 1) % _BATCH == 0:
                progress(row + 1, len(items))
        flush()
    if progress:
        progress(len(items), len(items))
    if not keep.any():
        raise SourceError(f"none of {len(items)} images can be decoded: check one by hand")
    return ImageEmbeddings(rows, keep)


def store_key(bundle: Bundle, variant: str, engine: str) -> str:
    """Hex sha256 of all that decides an image's row besides the image.

    Raises:
        VariantError: no such variant.
        EngineError: no such engine.
    """
    on_cpu = engine_class(engine).on_cpu
    machine = describe_machine()
    gpu = None
    if not on_cpu:
        with contextlib.suppress(EdgeclipError):  # the engine itself says what is missing
            gpu = find_gpu()
    return sha256_json(
        [
            bundle.graph_digests(variant),
            bundle.variant(variant).precision,
            bundle.manifest.encoder.preprocess,
            engine,
            _library_version(engine),
            {part: machine.get(part) for part in ("architecture", "cpu", "board", "l4t")},
            gpu and [gpu.name, gpu.sm],
        ]
    )


def _library_version(engine: str) -> str:
    """Of the library behind an engine; empty if it is not installed, which loading the engine reports."""
    module = {"tensorrt-rtx": "tensorrt_rtx"}.get(engine, engine.partition("-")[0])
    if importlib.util.find_spec(module) is None:
        return ""
    return str(getattr(importlib.import_module(module), "__version__", ""))
