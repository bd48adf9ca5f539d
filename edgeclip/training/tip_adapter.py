"""Labelled unit embeddings in, a key cache beside a table's text rows out: Tip-Adapter and Tip-Adapter-F (Zhang 2022).

Tip-Adapter keeps the shots themselves as keys and trains nothing. Tip-Adapter-F then moves the keys by the loss over
the shots; here they stay of unit length, as the runtime has them, and are pulled towards where they came from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from edgeclip.key_cache import KeyCache
from edgeclip.prompts import FloatArray, unit_rows
from edgeclip.spec import EncoderSpec
from edgeclip.training.probe import Shots, as_tensors, minimise_unit_rows, shots_loss

_ITERATIONS = 10


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
        alpha, beta: of the cache; see :class:`edgeclip.key_cache.KeyCache`.
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

            current = minimise_unit_rows(current, loss_of, iterations=_ITERATIONS)
        found.append(KeyCache(unit_rows(current.numpy()), shots.labels, alpha, beta))
    return found
