"""Scores of one source's frames, one after another, in; steady labels, the classes that are present, and events out.

``SourceState`` makes the record of a frame, with a ``Decider`` for each table and region.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np

from edgeclip.errors import InputError
from edgeclip.prompts import FloatArray
from edgeclip.runtime.records import UNKNOWN, Event, LabelledFrame, Scored, View
from edgeclip.runtime.regions import Region
from edgeclip.runtime.scoring import Scorer
from edgeclip.runtime.sources.base import Frame

_LEAVE_RATIO = 0.7
_TICK_S = 1e-6  # sources round their times to this; 1.9 - 1.6 is to count as 0.3


@dataclass(frozen=True)
class DecisionOptions:
    """How scores become labels and events; by default a frame's label is its own best class.

    Attributes:
        smooth_s: time constant of the exponential smoothing, seconds; 0 for none. The weight of a new frame is
            ``1 - exp(-dt / smooth_s)``, so the result does not depend on the frame rate.
        smooth: what is smoothed: the scores of each table, or the embedding that all tables score.
        enter: score from which a class counts as there; a class with a threshold of its own in the table uses that.
            None for no such score: a class is there while it is the label. What a score means depends on the number of
            classes, so no one value fits all tables.
        leave: score below which it counts as gone, in proportion for a class with a threshold of its own; None for
            seven tenths of ``enter``.
        dwell_s: how long a class must be there to enter, and be gone to leave, seconds.
        unknown_below: the label is ``unknown`` below this score; None for the thresholds of the table, if it has any.

    Raises:
        InputError: a value out of range.
    """

    smooth_s: float = 0.0
    smooth: Literal["scores", "embeddings"] = "scores"
    enter: float | None = None
    leave: float | None = None
    dwell_s: float = 0.5
    unknown_below: float | None = None

    def __post_init__(self) -> None:
        for name, seconds in (("smooth_s", self.smooth_s), ("dwell_s", self.dwell_s)):
            if not (math.isfinite(seconds) and seconds >= 0):
                raise InputError(f"expected {name} of 0 or more seconds, got {seconds}")
        if self.smooth not in ("scores", "embeddings"):
            raise InputError(f"expected smooth to be scores or embeddings, got {self.smooth!r}")
        if self.enter is not None and not 0 < self.enter <= 1:
            raise InputError(f"expected enter above 0 and up to 1, got {self.enter}")
        if self.leave is not None and self.enter is None:
            raise InputError(f"expected enter beside leave ({self.leave}), got none: give both, or leave leave out")
        if self.leave is not None and self.enter is not None and not 0 <= self.leave <= self.enter:
            raise InputError(f"expected leave from 0 to enter ({self.enter}), got {self.leave}: lower leave")
        if self.unknown_below is not None and not 0 <= self.unknown_below <= 1:
            raise InputError(f"expected unknown_below from 0 to 1, got {self.unknown_below}")

    @property
    def leave_ratio(self) -> float:
        """Share of the score at which a class enters below which it counts as gone."""
        return _LEAVE_RATIO if self.leave is None or self.enter is None else self.leave / self.enter


@dataclass(frozen=True)
class LabelDecision:
    """What is said of one view of one frame.

    Attributes:
        label: the best class, or ``unknown``.
        score: the smoothed score of the best row, in [0, 1].
        top: the best rows, best first; background rows among them.
        present: classes that have entered and not yet left, in the order in which they came.
        events: what came or went with this frame.
        calibrated: ``score`` is the calibrated probability that the best class is right.
    """

    label: str
    score: float
    top: list[Scored]
    present: list[str]
    events: list[Event]
    calibrated: bool = False


class SourceState:
    """What is remembered of one source between its frames: a decider for each table and region, the last embeddings.

    Args:
        options: smoothing, hysteresis, abstention.
        regions: in the order of an embedding's rows.
        source: name of the source in records, empty where there is only one.
        top_k: labels to report for a view.
    """

    def __init__(self, options: DecisionOptions, regions: Sequence[Region], *, source: str, top_k: int) -> None:
        self._options = options
        self._regions = [region.name for region in regions]
        self._source = source
        self._top_k = top_k
        smoothed = options.smooth == "embeddings" and options.smooth_s > 0
        self._smoothers = [EmbeddingSmoother(options.smooth_s) for _ in regions] if smoothed else []
        self._deciders: dict[tuple[str, str], Decider] = {}
        self._embeddings: FloatArray | None = None
        self._scorers: Sequence[Scorer] = ()
        self._scores: Sequence[FloatArray] = ()
        self._last = (-1, 0.0)

    def rows(self, frame: Frame, embeddings: FloatArray | None, scorers: Sequence[Scorer]) -> FloatArray | None:
        """What the tables have to score for this frame: unit rows (R, D), or None if it is what they scored before.

        Args:
            frame: the frame, whose pixels are not looked at.
            embeddings: unit rows (R, D), one a region; None if the frame had not changed since the last one.
            scorers: the tables in use.
        """
        if embeddings is None:
            if not self._smoothers and scorers is self._scorers and self._scores:
                return None
            embeddings = self._embeddings
            assert embeddings is not None, "the gate lets a source's first frame pass"
        self._embeddings, self._scorers = embeddings, scorers
        if not self._smoothers:
            return embeddings
        pairs = zip(self._smoothers, embeddings, strict=True)
        return np.stack([smoother.update(row, frame.time_s) for smoother, row in pairs])

    def label(
        self, frame: Frame, scores: Sequence[FloatArray] | None, scorers: Sequence[Scorer], *, encode_ms: float | None
    ) -> LabelledFrame:
        """Say what the tables say of one frame.

        Args:
            frame: the one that ``rows`` was last called for, or was called for in this order.
            scores: (R, C) of each table for what ``rows`` gave; None if it gave None.
            scorers: the tables, the first of which decides the frame's label.
            encode_ms: of the batch in which it was encoded; None if it had not changed.
        """
        if scores is not None:
            self._scores = scores
        self._last = (frame.index, frame.time_s)
        decisions = self._decide(frame, self._scores, scorers)
        first = next(iter(decisions.values()))
        several = len(decisions) > 1
        return LabelledFrame(
            frame=frame.index,
            time_s=frame.time_s,
            label=first.label,
            score=first.score,
            top=first.top,
            encode_ms=round(encode_ms or 0.0, 3),
            latency_ms=round((time.perf_counter() - frame.captured) * 1e3, 3),
            source=self._source,
            file=frame.file,
            gated=encode_ms is None,
            present=first.present,
            events=[event for decision in decisions.values() for event in decision.events],
            calibrated=first.calibrated,
            views=[
                View(*key, said.label, said.score, said.top, said.present, said.calibrated)
                for key, said in decisions.items()
            ]
            if several
            else [],
        )

    def finish(self) -> list[Event]:
        """What leaves because the source has ended."""
        frame, time_s = self._last
        return [event for decider in self._deciders.values() for event in decider.finish(frame=frame, time_s=time_s)]

    def _decide(
        self, frame: Frame, scores: Sequence[FloatArray], scorers: Sequence[Scorer]
    ) -> dict[tuple[str, str], LabelDecision]:
        """(table, region) → what is said; all regions of the first table come first."""
        several = len(scorers) > 1
        decisions = {}
        for (scorer, of_table), (row, region) in product(zip(scorers, scores, strict=True), enumerate(self._regions)):
            key = (scorer.table.name, region)
            if key not in self._deciders:
                self._deciders[key] = Decider(
                    self._options, source=self._source, region=region, table=key[0] if several else ""
                )
            decisions[key] = self._deciders[key].update(
                scorer, of_table[row], frame=frame.index, time_s=frame.time_s, top_k=self._top_k
            )
        return decisions


@dataclass
class _Stay:
    """A class that is there, or may be about to: times in seconds, ``seen_s`` of its last frame at ``leave``."""

    start_s: float
    seen_s: float
    score: float
    peak: float
    entered: bool = False


class Decider:
    """The decisions of one table on one region of one source, frame after frame; not for several threads.

    Args:
        options: thresholds and times.
        source, region, table: put into the events.

    Frames must come in the order of their times; one that is not later than its predecessor (a file begun again, an
    image without a time) starts afresh: no smoothing with the past, and after a step back what was present leaves.
    """

    def __init__(self, options: DecisionOptions, *, source: str = "", region: str = "", table: str = "") -> None:
        self._options = options
        self._where = {"source": source, "region": region, "table": table}
        self._scorer: Scorer | None = None
        self._smoothed: FloatArray | None = None  # (C,)
        self._time_s = -math.inf
        self._stays: dict[int, _Stay] = {}  # by row

    def update(self, scorer: Scorer, scores: FloatArray, *, frame: int, time_s: float, top_k: int) -> LabelDecision:
        """Decide on one frame.

        Args:
            scorer: the table that gave the scores; another one than before continues the stays of the classes that
                it also has, ends those of the others, and starts the smoothing afresh.
            scores: (C,) float32 of this frame.
            frame, time_s: index and presentation time of the frame.
            top_k: how many rows to report.
        """
        events = self.finish(frame=frame, time_s=self._time_s) if time_s < self._time_s else []
        if scorer is not self._scorer:
            events += self._change(scorer, frame=frame, time_s=time_s)
        smoothed = self._smooth(scores, time_s)
        self._time_s = time_s
        top = scorer.top(smoothed, max(top_k, 1))
        label = self._label(scorer, top[0])
        events += self._follow(scorer, smoothed, label, frame=frame, time_s=time_s)
        present = [scorer.labels[row] for row, stay in self._stays.items() if stay.entered]
        return LabelDecision(label, top[0].score, top[:top_k], present, events, scorer.calibrated)

    def finish(self, *, frame: int, time_s: float) -> list[Event]:
        """End of the stream: what is present leaves; the next update starts afresh."""
        gone, self._stays = self._stays, {}
        self._smoothed = None
        return self._leave(gone.items(), frame=frame, time_s=time_s)

    def _change(self, scorer: Scorer, *, frame: int, time_s: float) -> list[Event]:
        """Carry the stays over to another table."""
        kept: dict[int, _Stay] = {}
        gone: list[tuple[int, _Stay]] = []
        for row, stay in self._stays.items():
            new = scorer.row_of.get(self._scorer.labels[row]) if self._scorer else None
            if new is None or scorer.is_background(new):
                gone.append((row, stay))
            else:
                kept[new] = stay
        events = self._leave(gone, frame=frame, time_s=time_s)
        self._scorer, self._stays, self._smoothed = scorer, kept, None
        return events

    def _smooth(self, scores: FloatArray, time_s: float) -> FloatArray:
        elapsed_s = time_s - self._time_s
        if self._options.smooth_s == 0 or self._options.smooth != "scores":
            return scores
        if self._smoothed is None or elapsed_s <= 0:
            self._smoothed = scores.copy()
        else:
            self._smoothed += np.float32(-math.expm1(-elapsed_s / self._options.smooth_s)) * (scores - self._smoothed)
        return self._smoothed

    def _follow(self, scorer: Scorer, scores: FloatArray, label: str, *, frame: int, time_s: float) -> list[Event]:
        """Begin, continue and end stays; the loops go over the classes that are there, the rest is one comparison."""
        options = self._options
        enter = math.inf if options.enter is None else options.enter
        high = set(scorer.at_threshold(scores, enter))
        if options.enter is None and label != UNKNOWN and math.isinf(scorer.threshold_of(scorer.row_of[label], enter)):
            high.add(scorer.row_of[label])
        for row in high - self._stays.keys():
            self._stays[row] = _Stay(time_s, time_s, 0.0, 0.0)
        events: list[Event] = []
        gone: list[tuple[int, _Stay]] = []
        for row, stay in list(self._stays.items()):
            stay.score = score = float(scores[row])
            stay.peak = max(stay.peak, score)
            if not stay.entered:
                if row not in high:
                    del self._stays[row]
                elif time_s - stay.start_s >= options.dwell_s - _TICK_S:
                    stay.entered, stay.seen_s = True, time_s
                    events.append(self._event("enter", scorer.labels[row], stay, frame=frame, time_s=time_s))
            elif row in high or score >= options.leave_ratio * scorer.threshold_of(row, enter):
                stay.seen_s = time_s
            elif time_s - stay.seen_s >= options.dwell_s - _TICK_S:
                gone.append((row, self._stays.pop(row)))
        return events + self._leave(gone, frame=frame, time_s=time_s)

    def _leave(self, stays: Iterable[tuple[int, _Stay]], *, frame: int, time_s: float) -> list[Event]:
        if self._scorer is None:
            return []
        labels = self._scorer.labels
        return [
            self._event("leave", labels[row], stay, frame=frame, time_s=time_s) for row, stay in stays if stay.entered
        ]

    def _event(self, kind: Literal["enter", "leave"], label: str, stay: _Stay, *, frame: int, time_s: float) -> Event:
        return Event(
            kind=kind,
            label=label,
            frame=frame,
            time_s=time_s,
            start_s=stay.start_s,
            end_s=stay.seen_s if kind == "leave" else None,
            score=round(stay.score, 6),
            peak=round(stay.peak, 6),
            **self._where,
        )

    def _label(self, scorer: Scorer, best: Scored) -> str:
        row = scorer.row_of[best.label]
        threshold = self._options.unknown_below
        if threshold is None:
            threshold = scorer.threshold_of(row, 0.0)
        return UNKNOWN if scorer.is_background(row) or best.score < threshold else best.label


class EmbeddingSmoother:
    """Exponential smoothing of the embeddings of one region of one source.

    Args:
        smooth_s: time constant, seconds; 0 for none.
    """

    def __init__(self, smooth_s: float) -> None:
        self._smooth_s = smooth_s
        self._mean: FloatArray | None = None  # (D,), not of unit length: opposite frames shorten it
        self._time_s = -math.inf

    def update(self, embedding: FloatArray, time_s: float) -> FloatArray:
        """The unit embedding (D,) of what was seen lately; a frame that is not later than the last starts afresh.

        Args:
            embedding: (D,) float32 of unit length.
            time_s: presentation time, seconds.
        """
        elapsed_s, self._time_s = time_s - self._time_s, time_s
        if self._smooth_s == 0 or self._mean is None or elapsed_s <= 0:
            self._mean = embedding.copy()
            return embedding
        self._mean += np.float32(-math.expm1(-elapsed_s / self._smooth_s)) * (embedding - self._mean)
        length = float(np.linalg.norm(self._mean))
        unit: FloatArray = self._mean / np.float32(max(length, 1e-12))
        return unit
