"""A pool of unit embeddings with strata and weights in; a choice that covers its edge and its mass out.

Three parts, each given what the ones before have taken:

- A quarter for strata that would have too little, so that a rare exposure or time is represented.
- Half of the rest by farthest-first traversal (Gonzalez, 1985): the next one is that which lies farthest from all
  taken. When ``k`` are taken so, none is left farther away than twice what the best ``k`` centres would leave.
- What remains by the frames that each member stands for: the next one is that which takes most off their mean distance
  (greedy facility location; Nemhauser, Wolsey and Fisher, 1978). Farthest-first alone takes what is odd, and one image
  of what the camera sees all day.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from edgeclip.calibration.candidates import chords
from edgeclip.prompts import FloatArray

RESERVED = 0.25  # of the choice, for strata
EDGE = 0.5  # of the rest
_NOTHING = 1e-3  # rounding of a member's distance to itself


class Choice(NamedTuple):
    """What was chosen.

    Attributes:
        taken: indices into the pool, in the order in which they were taken.
        distances: of each to the nearest one taken before it; 2 for the first.
        reserved, edge: how many were taken for their strata, and farthest first.
        radius: the farthest that a member of the pool lies from the choice.
    """

    taken: list[int]
    distances: list[float]
    reserved: int
    edge: int
    radius: float


def choose(
    rows: FloatArray, strata: Sequence[Sequence[str]], weights: Sequence[int], hashes: Sequence[str], count: int
) -> Choice:
    """Take ``count`` of N, or all if there are no more.

    For strata, the one that has least in the pool comes first, each time with the member that lies farthest from what
    is taken.

    Args:
        rows: (N, D) unit embeddings.
        strata: groups that each member belongs to, e.g. its exposure and its time.
        weights: frames that each stands for.
        hashes: of each; where distances are equal the lower hash is taken.
    """
    order = np.argsort(np.asarray(hashes))  # argmax takes the first of equals
    rows = rows[order]
    groups = [strata[index] for index in order]
    count = min(count, len(rows))
    nearest = np.full(len(rows), 2.0, np.float32)
    free = np.ones(len(rows), np.bool_)
    taken: list[int] = []
    distances: list[float] = []

    def take_farthest(among: np.typing.NDArray[np.bool_]) -> None:
        take(int(np.where(among, nearest, -1.0).argmax()))

    def take(index: int) -> None:
        taken.append(index)
        distances.append(float(nearest[index]))
        free[index] = False
        np.minimum(nearest, chords(rows @ rows[index]), out=nearest)

    members = {name: np.array([name in own for own in groups]) for name in {name for own in groups for name in own}}
    rarest = sorted(members, key=lambda name: (int(members[name].sum()), name))
    share = int(RESERVED * count)
    quota = max(1, share // max(1, len(rarest)))
    for name in rarest:
        while len(taken) < share and members[name][taken].sum() < quota and (free & members[name]).any():
            take_farthest(free & members[name])
    reserved = len(taken)
    edge = round(EDGE * (count - reserved))
    for _ in range(edge):
        take_farthest(free)
    for index in _by_mass(rows, np.asarray(weights, np.float32)[order], nearest, count - len(taken)):
        take(index)
    while len(taken) < count:  # what is left lies upon what is taken
        take_farthest(free)
    radius = float(nearest.max()) if count else 2.0
    return Choice([int(order[index]) for index in taken], distances, reserved, edge, radius)


def _by_mass(rows: FloatArray, weights: FloatArray, nearest: FloatArray, count: int) -> list[int]:
    """Indices of at most ``count``, each taking most off the weighted sum of distances to the nearest one taken.

    Gains only shrink as more are taken, so a gain that was computed earlier is a bound, and few are computed again.
    """
    nearest = nearest.copy()

    def gain(index: int) -> float:
        return float((weights * np.maximum(0.0, nearest - chords(rows @ rows[index]))).sum())

    if count <= 0:
        return []
    bounds = [(-gain(index), index) for index in range(len(rows))]
    heapq.heapify(bounds)
    found: list[int] = []
    while bounds and len(found) < count:
        _, index = heapq.heappop(bounds)
        now = (-gain(index), index)
        if bounds and now > bounds[0]:
            heapq.heappush(bounds, now)
            continue
        if now[0] >= -_NOTHING:
            break
        found.append(index)
        np.minimum(nearest, chords(rows @ rows[index]), out=nearest)
    return found


def cover(rows: FloatArray, chosen: FloatArray) -> FloatArray:
    """Distance (N,) of each of (N, D) to the nearest of (K, D), all unit embeddings; 2 without any."""
    if not len(chosen) or not len(rows):
        return np.full(len(rows), 2.0, np.float32)
    parts = [chords((rows[at : at + 1024] @ chosen.T).max(axis=1)) for at in range(0, len(rows), 1024)]
    joined: FloatArray = np.concatenate(parts)
    return joined
