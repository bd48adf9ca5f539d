"""Unit embeddings of a stream in, one at a time; a bounded pool that none of them lies far from, out.

Like the doubling algorithm (Charikar, Chekuri, Feder and Motwani, 1997) with a gentler step. Every embedding that is
within the pool's radius r of a member of its own exposure and time is absorbed by it; any other becomes a member. When
the pool is full, r grows to the lower quartile of the members' distances to their nearest, and members within r of
another are merged into it. So at least three quarters of the members stay, and these lie r apart: no choice of fewer
centres than that covers the stream within r / 2.

A pool of unit embeddings with strata and weights in; a choice that covers its edge and its mass out.

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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from edgeclip.prompts import FloatArray

Thumbnail = npt.NDArray[np.uint8]
T = TypeVar("T")

NEAR_COSINE = 0.985
NEAR_LEVELS = 4.0
_APART = 2.0  # the largest distance of two unit vectors: members of different strata are never merged


@dataclass
class Member(Generic[T]):
    """One of the pool.

    Attributes:
        row: unit embedding (D,).
        cells: luma of what the encoder saw, averaged over cells, uint8.
        stratum: number of its exposure and time.
        what: the caller's.
        slack: no absorbed embedding lies farther from it than this.
        absorbed: how many it stands for, itself included.
    """

    row: FloatArray
    cells: Thumbnail
    stratum: int
    what: T
    slack: float = 0.0
    absorbed: int = 1


class Candidates(Generic[T]):
    """The pool. Memory: ``size`` embeddings and thumbnails, whatever the length of the stream.

    Args:
        size: most members; at least four times the number of strata, and more than what is chosen in the end.
        width: D.
        dropped: called with the ``what`` of a member that was merged into another.

    Attributes:
        members: at present, in the order in which they came.
        radius: r, a distance of unit vectors; 0 as long as the pool was never full.
        near_duplicates: how many were alike a member both in embedding and in luma.
        absorbed: how many others were absorbed or merged.
        size: most members that there can be.
        largest: most that there were at once.
    """

    def __init__(self, size: int, width: int, *, dropped: Callable[[T], None] = lambda _: None) -> None:
        self.members: list[Member[T]] = []
        self.radius = 0.0
        self.near_duplicates = self.absorbed = self.largest = 0
        self.size, self._dropped = size, dropped
        self._rows = np.zeros((size, width), np.float32)
        self._strata = np.zeros(size, np.int32)

    @property
    def slack(self) -> float:
        """No embedding of the stream that was not dropped as a near-duplicate lies farther from the pool than this."""
        return max((member.slack for member in self.members), default=0.0)

    def offer(self, row: FloatArray, cells: Thumbnail, stratum: int) -> bool:
        """Whether an embedding is to become a member (``add``); if not it has been absorbed."""
        count = len(self.members)
        if not count:
            return True
        cosines = self._rows[:count] @ row
        alike = np.flatnonzero(cosines >= NEAR_COSINE)
        for number in alike[np.argsort(-cosines[alike], kind="stable")][:16]:
            member = self.members[number]
            if member.cells.shape == cells.shape and levels_apart(member.cells, cells) <= NEAR_LEVELS:
                self.near_duplicates += 1
                self._absorb(member, chord(float(cosines[number])), 1)
                return False
        own = np.where(self._strata[:count] == stratum, cosines, -1.0)
        nearest = int(own.argmax())
        if self.radius and chord(float(own[nearest])) <= self.radius:
            self.absorbed += 1
            self._absorb(self.members[nearest], chord(float(own[nearest])), 1)
            return False
        return True

    def add(self, row: FloatArray, cells: Thumbnail, stratum: int, what: T) -> None:
        """Take a member; the pool is thinned first if it is full."""
        while len(self.members) == self.size:
            self._thin()
        self._rows[len(self.members)], self._strata[len(self.members)] = row, stratum
        self.members.append(Member(row, cells, stratum, what))
        self.largest = max(self.largest, len(self.members))

    def _thin(self) -> None:
        rows, strata = self._rows[: len(self.members)], self._strata[: len(self.members)]
        apart = chords(rows @ rows.T)
        apart[strata[:, None] != strata[None, :]] = _APART
        np.fill_diagonal(apart, _APART)
        self.radius = max(self.radius, float(np.quantile(apart.min(axis=1), 0.25, method="lower")))
        kept: list[int] = []
        for number, member in enumerate(self.members):
            if kept and (least := float(apart[number, kept].min())) <= self.radius:
                into = self.members[kept[int(apart[number, kept].argmin())]]
                self.absorbed += 1
                self._absorb(into, least + member.slack, member.absorbed)
                self._dropped(member.what)
            else:
                kept.append(number)
        self._rows[: len(kept)], self._strata[: len(kept)] = rows[kept], strata[kept]
        self.members = [self.members[number] for number in kept]

    @staticmethod
    def _absorb(into: Member[T], distance: float, count: int) -> None:
        into.slack = max(into.slack, distance)
        into.absorbed += count


def levels_apart(a: Thumbnail, b: Thumbnail) -> float:
    """Mean absolute difference of two thumbnails, grey levels."""
    return float(np.abs(a.astype(np.int16) - b.astype(np.int16)).mean())


def chord(cosine: float) -> float:
    """Distance of two unit vectors, 0 to 2, from their cosine."""
    return float(np.sqrt(max(0.0, 2.0 - 2.0 * cosine)))


def chords(cosines: FloatArray) -> FloatArray:
    """The same for an array."""
    distances: FloatArray = np.sqrt(np.maximum(0.0, 2.0 - 2.0 * cosines)).astype(np.float32)
    return distances


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
