"""Texts and a locked text tower in, sentence vectors out; computed once, then read from the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec
import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from edgeclip.files import atomic_file, cache_dir
from edgeclip.training.model import weights_digest
from edgeclip.training.towers.sentence import SentenceEncoder

_BATCH = 256


class CaptionVectors:
    """Every class name × template, encoded once by the locked text tower.

    Args:
        names: V distinct class names.
        templates: T prompt templates.

    Attributes:
        vectors: (V, T, W) sentence vectors.
    """

    def __init__(self, tower: SentenceEncoder, names: Sequence[str], templates: Sequence[str], bars: Progress) -> None:
        self.row_of = {name: row for row, name in enumerate(names)}
        texts = [template.replace("{}", name) for name in names for template in templates]
        self.vectors = encode_cached(tower, texts, bars).reshape(len(names), len(templates), tower.width)

    def rows(self, names: Sequence[str]) -> Tensor:
        """Rows (len(names),) of these names."""
        return torch.tensor([self.row_of[name] for name in names])


def encode_cached(tower: SentenceEncoder, texts: Sequence[str], bars: Progress) -> Tensor:
    """Sentence vectors (M, W) of M texts, computed once for these texts and these weights."""
    key = hashlib.sha256(weights_digest([tower]).encode() + msgspec.json.encode(texts)).hexdigest()
    cached = cache_dir("captions") / f"{key}.npy"
    if not cached.is_file():
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # a batch of like lengths pads little
        encoded = torch.empty(len(texts), tower.width)
        task = bars.add_task("captions", total=len(texts))
        for start in range(0, len(order), _BATCH):
            rows = order[start : start + _BATCH]
            encoded[rows] = tower.sentences([texts[row] for row in rows])
            bars.advance(task, len(rows))
        with atomic_file(cached) as temporary:
            np.save(temporary, encoded.numpy())
    return torch.from_numpy(np.load(cached))
