"""A loaded encoder in; an error out unless it computes in the loop what it was proved to compute alone.

An engine that agrees with FP32 one frame at a time may not do so as a stream uses it: bytes in, several frames in a
batch, several batches at once. OpenVINO 2026.4 with two streams gave a CNN's FP32 graph embeddings with a cosine of
0.04 to 1.0 to the right ones, differently each time it was loaded. So the loop's own way of calling is held against the
bundle's golden images: all of them once, and two of them at every start.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path

import numpy as np

from edgeclip.errors import ParityError
from edgeclip.files import cache_dir, keep_json, kept_json
from edgeclip.prompts import FloatArray, unit_rows
from edgeclip.runtime.encoder import ImageEncoder, PendingEmbeddings
from edgeclip.runtime.engines.base import ByteArray
from edgeclip.runtime.proof.golden import GoldenImages, decoded_images
from edgeclip.runtime.proof.parity import LIMITS
from edgeclip.runtime.proof.what_runs import what_runs

_AT_EVERY_START = 2  # images; what was seen to go wrong goes wrong for all of them, or for none


def prove_in_the_loop(encoder: ImageEncoder, *, golden: GoldenImages, rows: int, parallel: int) -> None:
    """Encode golden images as a stream would.

    Args:
        encoder: loaded for ``parallel`` batches at once; none of them under way.
        golden: what the encoder was proved on.
        rows: frames in a full batch.
        parallel: batches at once.

    Raises:
        ParityError: an embedding is further from FP32's than the variant's precision allows.
        EngineError: the engine fails.
    """
    kept = _kept(encoder, golden, rows, parallel)
    known = kept_json(kept, float) is not None
    files, expected = golden.files, unit_rows(golden.embeddings)
    if known:
        files, expected = files[:_AT_EVERY_START], expected[:_AT_EVERY_START]
    images = decoded_images(files, encoder.bundle.manifest.encoder.preprocess)
    if known:  # every one of the batches that may be under way gets them
        rows = min(rows, len(images))
        images, expected = np.concatenate([images] * parallel), np.concatenate([expected] * parallel)
    cosine = _checked(encoder, images, expected, rows=rows, parallel=parallel)
    if not known:
        keep_json(kept, cosine)


def _checked(encoder: ImageEncoder, images: ByteArray, expected: FloatArray, *, rows: int, parallel: int) -> float:
    """The least cosine to what is expected; refused below the limit."""
    got: list[FloatArray] = []
    under_way: deque[PendingEmbeddings] = deque()
    for first in range(0, len(images), rows):
        if len(under_way) == parallel:
            got.append(under_way.popleft().result()[0])
        under_way.append(encoder.start(images[first : first + rows]))
    got += [pending.result()[0] for pending in under_way]
    cosine = float((np.concatenate(got) * expected).sum(axis=1).min())
    least = LIMITS[encoder.variant.precision].min_cosine
    if not cosine >= least:
        at_once = f"{parallel} batches of {rows} at once" if parallel > 1 else f"batches of {rows}"
        raise ParityError(
            f"{encoder.variant.name} on {encoder.engine.name} in {at_once}: expected embeddings with a cosine of at "
            f"least {least:g} to FP32's, got {cosine:.4f}: use another `engine` or `variant`"
        )
    return cosine


def _kept(encoder: ImageEncoder, golden: GoldenImages, rows: int, parallel: int) -> Path:
    """Where it is kept that all of them were seen to agree with all this."""
    bundle, variant, engine = encoder.bundle, encoder.variant, encoder.engine
    runs = what_runs(bundle, variant.name, engine.name, threads=engine.threads)
    key = runs.digest(golden.sha256, rows, parallel, LIMITS[variant.precision].min_cosine)
    return cache_dir("streams") / f"{key}.json"
