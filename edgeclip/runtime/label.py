"""The loop: source → preprocess → engine → prompt table → sinks, and an account of every frame."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edgeclip.bundle import Bundle
from edgeclip.errors import InputError
from edgeclip.prompts import PromptTable
from edgeclip.runtime.encoder import ImageEncoder
from edgeclip.runtime.scoring import Scorer
from edgeclip.runtime.sinks import JsonlSink, LabelledFrame, OverlaySink, Sink, check_overlay_name
from edgeclip.runtime.source import Frame, Source, limited

_KEPT_TIMES = 10_000  # bounds the memory of a run that never ends


@dataclass
class Account:
    """What became of the frames of one run.

    Attributes:
        encoded: frames that got a label.
        dropped: frames of a live source that nobody took.
        failed: frames or files that could not be decoded.
        labels: frames by their best label.
        encode_ms, preprocess_ms: for each of the latest encoded frames.
        elapsed_s: from the first frame asked for to now.
        interrupted: whether Ctrl-C or SIGTERM ended the run.
    """

    encoded: int = 0
    dropped: int = 0
    failed: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    encode_ms: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT_TIMES))
    preprocess_ms: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT_TIMES))
    elapsed_s: float = 0.0
    interrupted: bool = False

    @property
    def fps(self) -> float:
        """Labelled frames a second over the whole run."""
        return self.encoded / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @staticmethod
    def percentile(values: Iterable[float], q: float) -> float:
        """The q-th percentile of ``encode_ms`` or ``preprocess_ms``; 0 before the first frame."""
        kept = list(values)
        return float(np.percentile(kept, q)) if kept else 0.0


@dataclass(frozen=True)
class LabelOptions:
    """Rare knobs of :func:`label_source`.

    Attributes:
        variant: which form of the encoder.
        engine: which inference engine.
        threads: CPU threads an inference; None for all.
        top_k: labels to report a frame.
        limit: stop after that many frames.
        jsonl: write one JSON line a frame here.
        overlay: write a video with the labels drawn in here.

    Raises:
        InputError: a value out of range.
    """

    variant: str = "fp32"
    engine: str = "onnxruntime"
    threads: int | None = None
    top_k: int = 5
    limit: int | None = None
    jsonl: Path | None = None
    overlay: Path | None = None

    def __post_init__(self) -> None:
        for name, value in (("threads", self.threads), ("top", self.top_k), ("limit", self.limit)):
            if value is not None and value < 1:
                raise InputError(f"expected --{name} of at least 1, got {value}")
        if self.overlay:
            check_overlay_name(self.overlay)


class Labeler:
    """An encoder and a table behind one call: frame in, labels out.

    Args:
        encoder: a loaded image encoder.
        table: prompt table of the same model.
        top_k: how many labels to report for a frame.

    Raises:
        TableError: the table is of another model or width.
    """

    def __init__(self, encoder: ImageEncoder, table: PromptTable, *, top_k: int = 5) -> None:
        encoder.bundle.check_table(table)
        self.encoder = encoder
        self.top_k = top_k
        self._scorer = Scorer(table, encoder.bundle.manifest.encoder)
        self.preprocess_ms = 0.0

    def label(self, frame: Frame) -> LabelledFrame:
        """Label one frame."""
        start = time.perf_counter()
        image = self.encoder.preprocess(frame.pixels)[None]  # (1, 3, H, W)
        preprocessed = time.perf_counter()
        embedding = self.encoder.encode_preprocessed(image)[0]  # (D,)
        encoded = time.perf_counter()
        top = self._scorer.top(embedding, self.top_k)
        self.preprocess_ms = (preprocessed - start) * 1e3
        return LabelledFrame(
            frame=frame.index,
            time_s=frame.time_s,
            label=top[0].label,
            score=top[0].score,
            top=top,
            encode_ms=round((encoded - preprocessed) * 1e3, 3),
            file=frame.file,
        )


def run(
    source: Source,
    frames: Iterable[Frame],
    labeler: Labeler,
    sinks: Sequence[Sink],
    *,
    watch: Callable[[LabelledFrame, Account], None] | None = None,
) -> Account:
    """Label every frame and give it to every sink; Ctrl-C ends the run as the end of the stream would.

    Args:
        source: where the frames come from, for its counts.
        frames: the frames to label (all of ``source`` or the first few).
        sinks: opened sinks.
        watch: called after each frame, for a live view.

    Returns:
        The account of the run.
    """
    account = Account()
    start = time.perf_counter()
    try:
        for frame in frames:
            labelled = labeler.label(frame)
            for sink in sinks:
                sink.write(frame, labelled)
            account.encoded += 1
            account.labels[labelled.label] += 1
            account.encode_ms.append(labelled.encode_ms)
            account.preprocess_ms.append(labeler.preprocess_ms)
            account.dropped, account.failed = source.dropped, source.failed
            account.elapsed_s = time.perf_counter() - start
            if watch:
                watch(labelled, account)
    except KeyboardInterrupt:
        account.interrupted = True
    account.dropped, account.failed = source.dropped, source.failed
    account.elapsed_s = time.perf_counter() - start
    return account


def label_source(
    bundle: Bundle,
    source: Source,
    table: PromptTable,
    options: LabelOptions = LabelOptions(),
    *,
    watch: Callable[[LabelledFrame, Account], None] | None = None,
) -> Account:
    """Label a source with a bundle and write what the options ask for; nothing is written when this raises.

    Raises:
        InputError: an output cannot be written.
        BundleError, EngineError: the encoder cannot be used here.
        SourceError: the source gave no frame.
    """
    with ExitStack() as stack:
        encoder = stack.enter_context(
            ImageEncoder(bundle, options.variant, engine=options.engine, threads=options.threads)
        )
        labeler = Labeler(encoder, table, top_k=options.top_k)
        sinks: list[Sink] = []
        if options.jsonl:
            sinks.append(stack.enter_context(JsonlSink(options.jsonl, live=source.live)))
        if options.overlay:
            sinks.append(stack.enter_context(OverlaySink(options.overlay, fps=source.fps)))
        return run(source, limited(source, options.limit), labeler, sinks, watch=watch)
