"""The rare knobs of a stream, checked."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgeclip.errors import InputError
from edgeclip.runtime.decision import DecisionOptions
from edgeclip.runtime.gate import GateOptions
from edgeclip.runtime.regions import Region


@dataclass(frozen=True)
class StreamOptions:
    """Rare knobs of :class:`edgeclip.runtime.stream.Stream`; the defaults suit one camera as well as one file.

    Attributes:
        variant, engine: what to run; :func:`edgeclip.runtime.choose.choose` finds the fastest that is proved here.
        preprocess: ``"exact"``, ``"fast"``, or ``"auto"`` for the fast one where it was seen to agree with the other.
        threads: CPU threads an inference; None for all, shared by what is under way at once.
        parallel: batches in the engine at once; None for one where a source is live, which is soonest done, and for
            what gets the most done otherwise.
        batch: rows encoded together at most; None for one of each source where any is live, and 8 otherwise.
        wait_ms: how long a frame of a camera waits for those of others, once the engine is free.
        top_k: labels to report for a view.
        limit: frames to take of each source.
        regions: what to label in a frame; by default the whole of it.
        gate: change in grey levels up to which a frame is not encoded; None to encode all.
        gate_refresh_s: encode at least so often all the same, seconds of the source's time.
        decision: smoothing, hysteresis, abstention.

    Raises:
        InputError: a value out of range.
    """

    variant: str = "fp32"
    engine: str = "onnxruntime"
    preprocess: str = "auto"
    threads: int | None = None
    parallel: int | None = None
    batch: int | None = None
    wait_ms: float = 10.0
    top_k: int = 5
    limit: int | None = None
    regions: tuple[Region, ...] = ()
    gate: float | None = None
    gate_refresh_s: float | None = None
    decision: DecisionOptions = field(default_factory=DecisionOptions)

    def __post_init__(self) -> None:
        counts = {"threads": self.threads, "parallel": self.parallel, "batch": self.batch, "limit": self.limit}
        for name, value in {**counts, "top": self.top_k}.items():
            if value is not None and value < 1:
                raise InputError(f"expected --{name} of at least 1, got {value}")
        if self.gate is not None:
            GateOptions(self.gate, self.gate_refresh_s)
        if self.wait_ms < 0:
            raise InputError(f"expected --wait-ms of at least 0, got {self.wait_ms}")
