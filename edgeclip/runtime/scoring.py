"""Unit embeddings in, class scores and the best labels out."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np

from edgeclip.decisions import Decisions, look_at
from edgeclip.errors import TableError
from edgeclip.prompts import FloatArray, PromptTable
from edgeclip.runtime.quantized_rows import QuantizedRows, largest
from edgeclip.runtime.records import Scored
from edgeclip.spec import EncoderSpec

_log = logging.getLogger("edgeclip")

_LARGE = 1 << 22  # elements of a table; below, NumPy's product takes less than a millisecond


class Scorer:
    """A prompt table with a model's scale, bias and kind of score; may be used by several threads.

    Args:
        table: C unit rows of width D.
        encoder: whose ``logit_scale``, ``logit_bias`` and ``score`` apply.
        decisions: those of the table that hold for the variant that runs; None for scores as the model gives them.

    Attributes:
        table: the table.
        labels: its C labels in row order.
        row_of: label to row.
        background: rows that mean "nothing of interest".
        decided: whether decisions apply.
        calibrated: whether scores are probabilities that were fitted on labelled images.

    Raises:
        TableError: a table without rows, or with two rows of one label.
    """

    def __init__(self, table: PromptTable, encoder: EncoderSpec, decisions: Decisions | None = None) -> None:
        self.table = table
        self.labels = table.labels
        self.row_of = {label: row for row, label in enumerate(self.labels)}
        if not 0 < len(self.row_of) == len(self.labels):
            raise TableError(
                f"expected rows of different labels in table {table.name!r}, got {len(self.row_of)} labels for "
                f"{len(self.labels)} rows: build it again"
            )
        self.background = frozenset(self.row_of[label] for label in table.background)
        thresholds = decisions.thresholds if decisions else table.thresholds
        self._thresholds = {self.row_of[label]: float(value) for label, value in thresholds.items()}
        self._decisions = decisions
        self.decided = decisions is not None
        self.calibrated = decisions is not None and decisions.facts.calibrated
        self._rows = np.ascontiguousarray(table.embeddings, np.float32)  # (C, D), as the table has it
        self._encoder = encoder
        self._dots: Callable[[FloatArray], FloatArray] = self._choose_product()

    def logits(self, embeddings: FloatArray) -> FloatArray:
        """Logits (N, C) float32 of unit embeddings (N, D): what the softmax or sigmoid is taken of."""
        logits = self._dots(embeddings)  # (N, C); all that follows is done in place: C may be large
        logits *= np.float32(self._encoder.logit_scale)
        if self.table.cache:
            self.table.cache.add_to(logits, embeddings)
        if self._encoder.score == "sigmoid":  # a bias common to all classes would cancel in a softmax
            logits += np.float32(self._encoder.logit_bias)
        return logits

    def scores(self, embeddings: FloatArray) -> FloatArray:
        """Scores (N, C) float32 of unit embeddings (N, D), in [0, 1].

        A row sums to 1 for softmax; scores are independent for sigmoid. With decisions on labelled images the best of
        a row is the probability that it is right, and a row of softmax sums to at most 1.
        """
        scores = self.logits(embeddings)
        if self._decisions is None:
            return self._link(scores)
        seen = look_at(scores)
        scores /= np.float32(self._decisions.facts.temperature)
        self._decisions.spread(self._link(scores), seen, embeddings)
        return scores

    def _link(self, logits: FloatArray) -> FloatArray:
        """Softmax or sigmoid of logits (N, C), in place."""
        if self._encoder.score == "sigmoid":
            logits *= 0.5
            np.tanh(logits, out=logits)
            logits += 1.0
            logits *= 0.5
            return logits
        logits -= logits.max(axis=1, keepdims=True)
        np.exp(logits, out=logits)
        logits /= logits.sum(axis=1, keepdims=True)
        return logits

    def top(self, scores: FloatArray, k: int) -> list[Scored]:
        """The k best labels of one row (C,) of :meth:`scores`, best first; fewer if the table has fewer classes."""
        k = min(k, len(scores))
        if k < 1:
            return []
        candidates = largest(scores, k)
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

    def _choose_product(self) -> Callable[[FloatArray], FloatArray]:
        """Embeddings (N, D) → dot products (N, C), of a large table by its rows in 8 bits where that works here."""
        if self._rows.size >= _LARGE:
            try:
                return QuantizedRows(self._rows)
            except Exception as error:  # noqa: BLE001 - an older ONNX Runtime raises errors of many kinds
                _log.info("table %s is scored in float32, which takes longer: %s", self.table.name, error)
        return self._exact

    def _exact(self, embeddings: FloatArray) -> FloatArray:
        dots: FloatArray = np.ascontiguousarray(embeddings, np.float32) @ self._rows.T
        return dots
