"""Unit embeddings in, class scores and the best labels out.

A large table is bound by memory: 100,000 rows of 512 are 205 MB, read once a product however many embeddings it has.
So embeddings that are there together should be scored together; a product of several goes through ONNX Runtime, whose
kernel for such a thin matrix was twice as fast as OpenBLAS's (``benchmarks/scoring.py``). All of it is exact float32.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from edgeclip.errors import TableError
from edgeclip.prompts import FloatArray, PromptTable
from edgeclip.runtime.engine import usable_cores
from edgeclip.runtime.records import Scored
from edgeclip.spec import EncoderSpec

_LARGE = 1 << 22  # elements of a table; below, NumPy's product takes less than a millisecond
_BLOCK = 64

# ONNX, opset 13: y (N, C) = Gemm(e (N, D), r (C, D), transB=1). The device side has no `onnx` to write it with.
_GEMM = (
    "CAgSADpoCh4KAWUKAXISAXkiBEdlbW0qDQoGdHJhbnNCGAGgAQISAWdaFQoBZRIQCg4IARIKCgMSAU4KAxIBRFoVCgFyEhAKDggBEgoKAxIB"
    "QwoDEgFEYhUKAXkSEAoOCAESCgoDEgFOCgMSAUNCBAoAEA0="
)


class Scorer:
    """A prompt table with a model's scale, bias and kind of score; may be used by several threads.

    Args:
        table: C unit rows of width D.
        encoder: whose ``logit_scale``, ``logit_bias`` and ``score`` apply.

    Attributes:
        table: the table.
        labels: its C labels in row order.
        row_of: label to row.
        background: rows that mean "nothing of interest".

    Raises:
        TableError: a table without rows, or with two rows of one label.
    """

    def __init__(self, table: PromptTable, encoder: EncoderSpec) -> None:
        self.table = table
        self.labels = table.labels
        self.row_of = {label: row for row, label in enumerate(self.labels)}
        if not 0 < len(self.row_of) == len(self.labels):
            raise TableError(
                f"expected rows of different labels in table {table.name!r}, got {len(self.row_of)} labels for "
                f"{len(self.labels)} rows: build it again"
            )
        self.background = frozenset(self.row_of[label] for label in table.background)
        self._thresholds = {self.row_of[label]: float(value) for label, value in table.thresholds.items()}
        self._rows = np.ascontiguousarray(table.embeddings, np.float32)  # (C, D), as the table has it
        self._encoder = encoder
        self._large_product: Callable[[FloatArray], FloatArray] | None = (
            _runtime_product(self._rows) if self._rows.size >= _LARGE else None
        )

    def scores(self, embeddings: FloatArray) -> FloatArray:
        """Scores (N, C) float32 of unit embeddings (N, D): each row sums to 1 for softmax; independent for sigmoid."""
        scaled = np.ascontiguousarray(embeddings, np.float32) * np.float32(self._encoder.logit_scale)
        logits = self._product(scaled)  # (N, C); all that follows is done in place: C may be large
        if self.table.cache:
            self.table.cache.add_to(logits, embeddings)
        if self._encoder.score == "sigmoid":
            logits += np.float32(self._encoder.logit_bias)
            logits *= 0.5
            np.tanh(logits, out=logits)
            logits += 1.0
            logits *= 0.5
            return logits
        logits -= logits.max(axis=1, keepdims=True)  # a bias common to all classes would cancel here
        np.exp(logits, out=logits)
        logits /= logits.sum(axis=1, keepdims=True)
        return logits

    def top(self, scores: FloatArray, k: int) -> list[Scored]:
        """The k best labels of one row (C,) of :meth:`scores`, best first; fewer if the table has fewer classes."""
        k = min(k, len(scores))
        if k < 1:
            return []
        candidates = _candidates(scores, k)
        best = candidates[np.argsort(-scores[candidates], kind="stable")[:k]]
        return [Scored(self.labels[i], float(scores[i])) for i in best]

    def is_background(self, row: int) -> bool:
        """Whether a row means "nothing of interest"."""
        return row in self.background

    def threshold_of(self, row: int, default: float) -> float:
        """The class's own threshold, or ``default`` if the table has none for it."""
        return self._thresholds.get(row, default)

    def at_threshold(self, scores: FloatArray, default: float) -> list[int]:
        """Rows, in order, whose score (C,) reaches their own threshold, or ``default``; never a background row."""
        lowest = min(self._thresholds.values(), default=default)
        rows = np.flatnonzero(scores >= min(lowest, default)).tolist()
        return [row for row in rows if row not in self.background and scores[row] >= self._thresholds.get(row, default)]

    def _product(self, embeddings: FloatArray) -> FloatArray:
        if self._large_product is not None and len(embeddings) > 1:
            return self._large_product(embeddings)
        logits: FloatArray = embeddings @ self._rows.T
        return logits


def _candidates(scores: FloatArray, k: int) -> np.ndarray[Any, np.dtype[np.intp]]:
    """At least k indices, in order, among which are the k largest."""
    count = len(scores)
    if count > 16 * k * _BLOCK:
        # The k largest lie in the k blocks with the largest maxima, so only those blocks and the rest are looked at.
        whole = count // _BLOCK * _BLOCK
        maxima = scores[:whole].reshape(-1, _BLOCK).max(axis=1)
        blocks = np.sort(np.argpartition(maxima, len(maxima) - k)[-k:])
        within = (blocks[:, None] * _BLOCK + np.arange(_BLOCK)).ravel()
        return np.concatenate([within, np.arange(whole, count)])
    return np.sort(np.argpartition(scores, count - k)[-k:])


@lru_cache(maxsize=1)
def _gemm() -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the encoder needs the cores
    return onnxruntime.InferenceSession(base64.b64decode(_GEMM), options, providers=["CPUExecutionProvider"])


def _runtime_product(rows: FloatArray) -> Callable[[FloatArray], FloatArray]:
    """Embeddings (N, D) → (N, C) dot products, by ONNX Runtime; the rows are not copied."""
    import onnxruntime

    session = _gemm()
    held = onnxruntime.OrtValue.ortvalue_from_numpy(rows)

    def product(embeddings: FloatArray) -> FloatArray:
        given = onnxruntime.OrtValue.ortvalue_from_numpy(embeddings)
        dots: FloatArray = session.run_with_ort_values(["y"], {"e": given, "r": held})[0].numpy()
        return dots

    return product
