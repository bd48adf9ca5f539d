"""Frames counted by what became of them; percentiles of how long they took."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from edgeclip.runtime.records import Failed

_KEPT_TIMES = 10_000  # bounds the memory of a run that never ends
_KEPT_LABELS = 10_000


@dataclass
class SourceCount:
    """The frames of one source.

    Once the run is over, whatever ended it, ``read`` is ``dropped + gated + encoded`` and what failed once decoded.

    Attributes:
        read: frames that were decoded or delivered.
        dropped: frames of a live source that were replaced by a later one before anyone took them.
        gated: frames that had not changed, and so were not encoded.
        encoded: frames that went through the encoder.
        failed: packets, frames or files that could not be decoded, are too small or could not be scored.
        reconnects: times that the source was lost and came back.
        failures: the first thousand of the failed that have a name, and why.
    """

    read: int = 0
    dropped: int = 0
    gated: int = 0
    encoded: int = 0
    failed: int = 0
    reconnects: int = 0
    failures: list[Failed] = field(default_factory=list)


@dataclass
class Account:
    """What became of the frames of one run; written by the loop's thread, read by any.

    Attributes:
        sources: the counts of each source, by its name.
        labels: frames by their label in the first view.
        latency_ms: from a frame being there to its label, for each of the latest frames.
        encode_ms: from handing a frame to the engine to its embedding, for each of the latest encoded frames.
        preprocess_ms: crop, resize and gate, for each of the latest frames.
        events: how many labels came or went.
        started: ``time.perf_counter()`` when the run began.
        elapsed_s: how long the run took; grows until it is over.
        interrupted: whether Ctrl-C or SIGTERM ended the run.
        sink_dropped, sink_failed: by the name of a sink: frames it was too slow for; why it is dead.
    """

    sources: dict[str, SourceCount] = field(default_factory=dict)
    labels: Counter[str] = field(default_factory=Counter)
    latency_ms: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT_TIMES))
    encode_ms: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT_TIMES))
    preprocess_ms: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT_TIMES))
    events: int = 0
    started: float = field(default_factory=time.perf_counter)
    elapsed_s: float = 0.0
    interrupted: bool = False
    sink_dropped: Counter[str] = field(default_factory=Counter)
    sink_failed: dict[str, str] = field(default_factory=dict)

    @property
    def read(self) -> int:
        """Frames that were decoded or delivered, of all sources."""
        return sum(count.read for count in list(self.sources.values()))

    @property
    def dropped(self) -> int:
        """Frames of live sources that nobody took."""
        return sum(count.dropped for count in list(self.sources.values()))

    @property
    def gated(self) -> int:
        """Frames that were not encoded because they had not changed."""
        return sum(count.gated for count in list(self.sources.values()))

    @property
    def encoded(self) -> int:
        """Frames that went through the encoder."""
        return sum(count.encoded for count in list(self.sources.values()))

    @property
    def failed(self) -> int:
        """Packets or files that could not be decoded."""
        return sum(count.failed for count in list(self.sources.values()))

    @property
    def labelled(self) -> int:
        """Frames that got a label: encoded or gated."""
        return self.encoded + self.gated

    @property
    def fps(self) -> float:
        """Labelled frames a second over the whole run."""
        return self.labelled / self.elapsed_s if self.elapsed_s > 0 else 0.0

    def count_label(self, label: str) -> None:
        """Count a frame under its label; a run over very many classes forgets the rare ones."""
        self.labels[label] += 1
        if len(self.labels) > 2 * _KEPT_LABELS:
            self.labels = Counter(dict(self.labels.most_common(_KEPT_LABELS)))

    @staticmethod
    def percentile(values: Iterable[float], q: float) -> float:
        """The q-th percentile of one of the lists of times; 0 before the first frame."""
        kept = list(values)
        return float(np.percentile(kept, q)) if kept else 0.0
