"""Labelled image embeddings in, what they add to a table's logits out: the cache of Tip-Adapter (Zhang 2022)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeclip.errors import TableError
from edgeclip.tensors import Tensors

FloatArray = npt.NDArray[np.float32]

LARGEST = 1e15  # of a table's figures: sums and products of as many as there can be stay finite in float32
_STEEPEST = 1e3  # beta: rows may be longer than 1 by a thousandth, and exp(beta / 500) has to be finite


@dataclass(frozen=True)
class KeyCache:
    """Keys beside a prompt table's rows: an image near a key scores higher on the key's class.

    To the logit of class c is added ``alpha · Σ exp(-beta · (1 - cos(e, k)))`` over the keys k of class c.

    Attributes:
        keys: (K, D) float32, rows of unit length.
        labels: (K,) int64, the table's row that each key is of.
        alpha: weight, in units of logits; 0 adds nothing, 1e15 is the most.
        beta: how fast a key's say fades with distance; above 0, at most 1,000.

    Raises:
        TableError: of other shapes, not of unit length, or out of range.
    """

    keys: FloatArray
    labels: npt.NDArray[np.int64]
    alpha: float
    beta: float

    def __post_init__(self) -> None:
        fits = self.keys.ndim == 2 and self.keys.dtype == np.float32
        if not fits or self.labels.dtype != np.int64 or self.labels.shape != (len(self.keys),):
            raise TableError(
                f"expected cache keys (K, D) float32 and an int64 label for each, got {self.keys.dtype} "
                f"{self.keys.shape} and {self.labels.dtype} {self.labels.shape}: make the table again"
            )
        if not len(self.keys):
            raise TableError("expected at least one cache key, got none: leave the cache out")
        if not (0 <= self.alpha <= LARGEST and 0 < self.beta <= _STEEPEST):
            raise TableError(
                f"expected alpha from 0 to {LARGEST:g} and beta above 0 and up to {_STEEPEST:g}, got {self.alpha} and "
                f"{self.beta}: make the table again"
            )
        require_unit(self.keys, "cache keys")

    def check(self, classes: int, width: int) -> None:
        """Refuse a cache that does not fit a table of C classes and width D.

        Raises:
            TableError: with what was expected and got.
        """
        low, high = int(self.labels.min()), int(self.labels.max())
        if self.keys.shape[1] != width or low < 0 or high >= classes:
            raise TableError(
                f"expected cache keys of width {width} for rows 0 to {classes - 1}, got width {self.keys.shape[1]} "
                f"for rows {low} to {high}: make the table again"
            )

    def add_to(self, logits: FloatArray, embeddings: FloatArray) -> None:
        """Add to logits (N, C), in place, what the keys say of unit embeddings (N, D)."""
        keys, starts, rows = self._grouped
        affinity = embeddings @ keys.T  # (N, K)
        affinity -= 1.0
        affinity *= np.float32(self.beta)
        np.exp(affinity, out=affinity)
        logits[:, rows] += np.float32(self.alpha) * np.add.reduceat(affinity, starts, axis=1)

    @cached_property
    def _grouped(self) -> tuple[FloatArray, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Keys sorted by class, where each class begins, and which row it is: sums need no (K, C) matrix."""
        order = np.argsort(self.labels, kind="stable")
        rows, starts = np.unique(self.labels[order], return_index=True)
        return np.ascontiguousarray(self.keys[order]), starts, rows

    @cached_property
    def sha256(self) -> str:
        """Digest of keys, labels and both numbers."""
        digest = hashlib.sha256(f"{self.keys.shape} {float(self.alpha)!r} {float(self.beta)!r}".encode())
        digest.update(np.ascontiguousarray(self.keys).data)
        digest.update(np.ascontiguousarray(self.labels, np.int64).data)
        return digest.hexdigest()

    def tensors(self) -> dict[str, npt.NDArray[Any]]:
        """What is stored of it as tensors."""
        return {
            "cache_keys": np.ascontiguousarray(self.keys),
            "cache_labels": np.ascontiguousarray(self.labels, np.int64),
        }

    def metadata(self) -> dict[str, str]:
        """What is stored of it as text; ``repr`` gives a float back exactly."""
        return {"cache_alpha": repr(float(self.alpha)), "cache_beta": repr(float(self.beta))}

    @classmethod
    def read(cls, stored: Tensors, width: int) -> KeyCache | None:
        """The cache in an opened safetensors file of rows of a width, or None if it holds none.

        Raises:
            TableError: it cannot be used, or a part of it is missing or malformed.
        """
        if "cache_keys" not in stored.names:
            return None
        keys = stored.array("cache_keys", "F32", (None, width))
        labels = stored.array("cache_labels", "I64", (len(keys),))
        return cls(keys, labels, stored.json("cache_alpha", float), stored.json("cache_beta", float))


def require_unit(rows: FloatArray, what: str) -> None:
    """Refuse rows (N, D) that are not of unit length.

    Raises:
        TableError: with the lengths that were found.
    """
    lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows))  # without a second array of the rows' size
    if not np.allclose(lengths, 1.0, atol=1e-3):
        raise TableError(f"{what}: expected rows of unit length, got {lengths.min():.4f}…{lengths.max():.4f}")
