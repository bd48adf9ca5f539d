"""Labelled unit embeddings in; rows for a prompt table, or a key cache beside its text rows, out.

The runtime scores ``logit_scale · cos(e, row) + logit_bias``, so that is what is fitted: rows of unit length and the
model's own scale and bias. What is minimised is the loss over the shots (cross-entropy, or for SigLIP the sigmoid's)
plus ``pull · logit_scale · Σ |row − start|²``. The start is the text rows (a zero-shot-initialised probe: CLAP,
Silva-Rodriguez 2024; LP++, Huang 2024) or each class's mean shot (a plain linear probe). An infinite pull leaves it.

Tip-Adapter (Zhang 2022) keeps the shots themselves as keys and trains nothing. Tip-Adapter-F then moves the keys by the
loss over the shots; here they stay of unit length, as the runtime has them, and are pulled towards where they came
from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from edgeclip.key_cache import KeyCache
from edgeclip.prompts import FloatArray, unit_rows
from edgeclip.spec import EncoderSpec

_ITERATIONS = 20  # of L-BFGS; each pull starts from the solution of the one before


class Shots(NamedTuple):
    """Unit embeddings (M, D) float32 of labelled images, and their classes (M,) int64."""

    embeddings: FloatArray
    labels: npt.NDArray[np.int64]

    def take(self, rows: npt.NDArray[np.integer]) -> Shots:
        """Some of them."""
        return Shots(self.embeddings[rows], self.labels[rows])


def fit_rows(start: FloatArray, shots: Shots, encoder: EncoderSpec, pulls: Sequence[float]) -> list[FloatArray]:
    """Rows (C, D) of unit length for each strength of the pull towards ``start``.

    Args:
        start: (C, D) unit rows.
        shots: of classes 0 to C − 1; a class may have none.
        encoder: whose scale, bias and kind of score apply.
        pulls: from strong to weak; ``inf`` gives ``start``.
    """
    anchor = torch.from_numpy(np.ascontiguousarray(start))  # (C, D)
    images, labels = as_tensors(shots)
    found: list[FloatArray] = []
    current = anchor
    for pull in pulls:
        if math.isfinite(pull):

            def loss_of(rows: Tensor, pull: float = pull) -> Tensor:
                logits = encoder.logit_scale * images @ rows.T  # (M, C)
                away = (rows - anchor).square().sum()
                return shots_loss(logits, labels, encoder) + pull * encoder.logit_scale * away

            current = minimise_unit_rows(current, loss_of)
        found.append(unit_rows(current.numpy()))
    return found


def as_tensors(shots: Shots) -> tuple[Tensor, Tensor]:
    """Embeddings (M, D) and labels (M,)."""
    return torch.from_numpy(np.ascontiguousarray(shots.embeddings)), torch.from_numpy(shots.labels)


def shots_loss(logits: Tensor, labels: Tensor, encoder: EncoderSpec) -> Tensor:
    """Sum over the shots of the loss that the model was trained with; logits (M, C) without the bias."""
    if encoder.score == "softmax":
        return nn.functional.cross_entropy(logits, labels, reduction="sum")
    truth = nn.functional.one_hot(labels, logits.shape[1]).to(logits.dtype)
    return nn.functional.binary_cross_entropy_with_logits(logits + encoder.logit_bias, truth, reduction="sum")


def minimise_unit_rows(start: Tensor, loss_of: Callable[[Tensor], Tensor], *, iterations: int = _ITERATIONS) -> Tensor:
    """Rows (R, D) of unit length, from ``start``, that make ``loss_of(rows)`` small; L-BFGS over their directions."""
    free = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [free], max_iter=iterations, history_size=10, tolerance_grad=1e-4, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        optimizer.zero_grad()
        loss = loss_of(nn.functional.normalize(free, dim=1))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return nn.functional.normalize(free.detach(), dim=1)


def class_means(shots: Shots, classes: int) -> FloatArray:
    """Unit rows (C, D): the direction of each class's mean shot; that of all shots for a class without any."""
    sums = np.zeros((classes, shots.embeddings.shape[1]), np.float32)
    np.add.at(sums, shots.labels, shots.embeddings)
    absent = np.bincount(shots.labels, minlength=classes) == 0
    sums[absent] = shots.embeddings.mean(axis=0)
    return unit_rows(sums)


_TIP_ITERATIONS = 10


def cache_of(shots: Shots, alpha: float, beta: float) -> KeyCache | None:
    """The shots as keys; None where ``alpha`` is 0, for they would add nothing."""
    if alpha == 0:
        return None
    return KeyCache(np.ascontiguousarray(shots.embeddings), shots.labels, alpha, beta)


def fit_keys(
    text_rows: FloatArray, shots: Shots, encoder: EncoderSpec, *, alpha: float, beta: float, pulls: Sequence[float]
) -> list[KeyCache]:
    """Moved keys (M, D) for each strength of the pull towards the shots; ``inf`` leaves them there.

    Args:
        text_rows: (C, D) unit rows, which stay as they are.
        alpha, beta: of the cache; see ``KeyCache``.
        pulls: from strong to weak.
    """
    images, labels = as_tensors(shots)
    from_text = encoder.logit_scale * images @ torch.from_numpy(np.ascontiguousarray(text_rows)).T  # (M, C)
    of_class = nn.functional.one_hot(labels, len(text_rows)).float()  # (M keys, C)
    found: list[KeyCache] = []
    current = images
    for pull in pulls:
        if math.isfinite(pull):

            def loss_of(keys: Tensor, pull: float = pull) -> Tensor:
                affinity = torch.exp(beta * (images @ keys.T - 1))  # (M, M keys)
                logits = from_text + alpha * affinity @ of_class
                away = (keys - images).square().sum()
                return shots_loss(logits, labels, encoder) + pull * encoder.logit_scale * away

            current = minimise_unit_rows(current, loss_of, iterations=_TIP_ITERATIONS)
        found.append(KeyCache(unit_rows(current.numpy()), shots.labels, alpha, beta))
    return found
