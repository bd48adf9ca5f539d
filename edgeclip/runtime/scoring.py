"""Unit embeddings in, class scores and the best labels out."""

from __future__ import annotations

import numpy as np

from edgeclip.prompts import FloatArray, PromptTable
from edgeclip.runtime.records import Scored
from edgeclip.spec import EncoderSpec


class Scorer:
    """A prompt table with a model's scale, bias and kind of score.

    Args:
        table: C unit rows of width D.
        encoder: whose ``logit_scale``, ``logit_bias`` and ``score`` apply.
    """

    def __init__(self, table: PromptTable, encoder: EncoderSpec) -> None:
        self.table = table
        self.labels = table.labels
        self._rows = np.ascontiguousarray(table.embeddings.T)  # (D, C)
        self._encoder = encoder

    def scores(self, embeddings: FloatArray) -> FloatArray:
        """Scores (N, C) float32 of unit embeddings (N, D): each row sums to 1 for softmax; independent for sigmoid."""
        logits = self._encoder.logit_scale * (embeddings @ self._rows) + self._encoder.logit_bias
        if self._encoder.score == "sigmoid":
            sigmoid: FloatArray = (0.5 * (1.0 + np.tanh(0.5 * logits))).astype(np.float32)
            return sigmoid
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        softmax: FloatArray = (exponentials / exponentials.sum(axis=1, keepdims=True)).astype(np.float32)
        return softmax

    def top(self, scores: FloatArray, k: int) -> list[Scored]:
        """The k best labels of one row (C,) of :meth:`scores`, best first; fewer if the table has fewer classes."""
        k = min(k, len(scores))
        candidates = np.argpartition(-scores, k - 1)[:k]
        best = candidates[np.argsort(-scores[candidates], kind="stable")]
        return [Scored(self.labels[i], float(scores[i])) for i in best]
