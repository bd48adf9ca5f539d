"""The embeddings of one source's frames in, in order; what is said of each frame out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import product

import numpy as np

from edgeclip.prompts import FloatArray
from edgeclip.runtime.decision import Decider, Decision, DecisionOptions, EmbeddingSmoother
from edgeclip.runtime.records import Event, LabelledFrame, View
from edgeclip.runtime.regions import Region
from edgeclip.runtime.scoring import Scorer
from edgeclip.runtime.sources.open import Frame


class Track:
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
            if not self._smoothers and scorers is self._scorers:
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
    ) -> dict[tuple[str, str], Decision]:
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
