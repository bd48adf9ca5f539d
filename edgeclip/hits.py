"""Which images two models label right in; how many only one of them does, out: all that a paired comparison needs."""

from __future__ import annotations

from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgeclip.errors import InputError

Hits = npt.NDArray[np.bool_]

Z95 = NormalDist().inv_cdf(0.975)  # of a 95 % interval with two ends


class LostAndWon(NamedTuple):
    """Images in all, and those that only the reference (lost), or only the candidate (won), labels right."""

    n: int
    lost: int
    won: int


def lost_and_won(reference: Hits, candidate: Hits) -> LostAndWon:
    """Compare hits (N,) of the same images in the same order.

    Raises:
        InputError: no image, or numbers that differ.
    """
    if len(reference) != len(candidate) or not len(reference):
        raise InputError(f"expected the same images from both, got {len(reference)} and {len(candidate)}")
    return LostAndWon(len(reference), int((reference & ~candidate).sum()), int((candidate & ~reference).sum()))
