"""A bundle's encoder and image files in, unit embeddings out; computed once, then read from the cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgeclip.bundle import Bundle
from edgeclip.errors import SourceError
from edgeclip.files import atomic_file, cache_dir, sha256_file, sha256_json
from edgeclip.prompts import FloatArray
from edgeclip.runtime.encoder import ImageEncoder
from edgeclip.runtime.images import read_image

_BATCH = 16


class Embedded(NamedTuple):
    """Unit embeddings (N, D) float32 of N files, and which of them could be decoded (N,); the rows of others are 0."""

    embeddings: FloatArray
    readable: npt.NDArray[np.bool_]


def embed_files(
    bundle: Bundle,
    files: Sequence[Path],
    *,
    variant: str = "fp32",
    progress: Callable[[int, int], None] | None = None,
) -> Embedded:
    """Embed image files with ONNX Runtime; files that cannot be decoded are passed over and marked.

    The cache is keyed by the bytes of the graph and of every file, and by the preprocessing.

    Args:
        progress: called with (files done, files in all).

    Raises:
        SourceError: no file can be decoded.
        VariantError, IntegrityError, EngineError: as the bundle and the engine say.
    """
    content = [sha256_file(file) for file in files]
    key = sha256_json([bundle.graph_digests(variant), bundle.manifest.encoder.preprocess, content])
    cached = cache_dir("embeddings") / f"{key}.npy"
    if cached.is_file():
        embeddings: FloatArray = np.load(cached)
    else:
        embeddings = np.zeros((len(files), bundle.manifest.encoder.embedding_dim), np.float32)
        with ImageEncoder(bundle, variant) as encoder:
            for start in range(0, len(files), _BATCH):
                images, rows = [], []
                for row in range(start, min(start + _BATCH, len(files))):
                    try:
                        images.append(read_image(files[row]))
                    except SourceError:
                        continue
                    rows.append(row)
                if rows:
                    embeddings[rows] = encoder.encode(images)
                if progress:
                    progress(min(start + _BATCH, len(files)), len(files))
        with atomic_file(cached) as temporary:
            np.save(temporary, embeddings)
    readable: npt.NDArray[np.bool_] = np.linalg.norm(embeddings, axis=1) > 0
    if not readable.any():
        raise SourceError(f"none of {len(files)} images can be decoded: check one by hand")
    return Embedded(embeddings, readable)
