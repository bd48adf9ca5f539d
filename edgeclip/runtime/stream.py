"""The loop: sources → gate, crop, resize → encoder → prompt tables → decisions → sinks, all at once, in order.

One thread a source feeds, one fills batches (both ``runtime/pipeline.py``), the engine has threads of its own, each
sink has one (``runtime/sinks/base.py``), and whoever iterates over the stream scores and decides. What is on its way is
bounded by ``Places``: a file waits for a place, a camera loses the frames that come meanwhile, and both are counted.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np
from threadpoolctl import threadpool_limits

from edgeclip.bundle import Bundle
from edgeclip.errors import InputError, ParityError, TableError
from edgeclip.forked import leave_alone_in_child
from edgeclip.prompts import FloatArray, PromptTable
from edgeclip.runtime.account import Account, SourceCount
from edgeclip.runtime.decision import DecisionOptions, SourceState
from edgeclip.runtime.encoder import ImageEncoder
from edgeclip.runtime.engines.base import check_threads, engine_class
from edgeclip.runtime.gate import GateOptions, SceneGate
from edgeclip.runtime.pipeline import Batch, Batcher, End, Job, Places, SourceThread
from edgeclip.runtime.preprocess.choose import choose_backend
from edgeclip.runtime.preprocess.preprocess import Preprocessor
from edgeclip.runtime.proof.golden import GoldenImages
from edgeclip.runtime.proof.in_the_loop import prove_in_the_loop
from edgeclip.runtime.proof.site import require_golden
from edgeclip.runtime.records import Event, LabelledFrame
from edgeclip.runtime.regions import Region, whole
from edgeclip.runtime.scoring import Scorer
from edgeclip.runtime.sinks.base import Run, Sink, SinkThread, close_sinks
from edgeclip.runtime.sources.open import Source
from edgeclip.runtime.tables import TableSet

_MOST_PARALLEL, _MOST_ROWS, _LONGEST_WAIT_MS = 64, 4096, 60_000.0


@dataclass(frozen=True)
class StreamOptions:
    """Rare knobs of ``Stream``; the defaults suit one camera as well as one file.

    What runs (variant, engine, threads) is no knob of a stream: ``edgeclip.open`` chooses it.

    Attributes:
        preprocess: ``"exact"``, ``"fast"``, or ``"auto"`` for the fast one where it was seen to agree with the other.
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

    preprocess: str = "auto"
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
        for name, most in (("parallel", _MOST_PARALLEL), ("batch", _MOST_ROWS), ("limit", None), ("top_k", None)):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and value >= 1):
                raise InputError(f"expected {name} of at least 1, got {value}")
            if most is not None and value is not None and value > most:
                raise InputError(f"expected {name} of at most {most}, got {value}")
        if self.gate_refresh_s is not None and not self.gate_refresh_s > 0:
            raise InputError(f"expected gate_refresh_s above 0 seconds, got {self.gate_refresh_s}")
        if self.gate is not None:
            GateOptions(self.gate, self.gate_refresh_s)
        if not 0 <= self.wait_ms <= _LONGEST_WAIT_MS:
            raise InputError(f"expected wait_ms from 0 to {_LONGEST_WAIT_MS:g}, got {self.wait_ms}")
        for name, kind in (("regions", tuple), ("decision", DecisionOptions)):
            if not isinstance(value := getattr(self, name), kind):
                raise InputError(f"expected {name} as {kind.__name__}, got {value!r}")


__all__ = ["Stream", "StreamOptions"]

_log = logging.getLogger("edgeclip")

_FILE_BATCH = 8  # larger ones brought no more on any engine that was measured
_FILE_WAIT_S = 0.1
_GATED_PLACES = 256
_GATED_PLACES_WITH_PIXELS = 16
_JOIN_S = 5.0
_JOIN_HURRIED_S = 0.5  # once the run was interrupted
_AFTER_THE_FORK = "open it after the fork, or start processes by spawn"

# What is still iterated over when the interpreter ends: its threads are in libraries that must not be torn down under
# them, which would abort the process or leave it waiting for ever.
_RUNNING: weakref.WeakSet[Stream] = weakref.WeakSet()
os.register_at_fork(after_in_child=_RUNNING.clear)  # what runs does so in the parent


@atexit.register
def _close_running() -> None:
    for stream in list(_RUNNING):
        stream.close()


class Stream:
    """Labels the frames of one or several sources; to be iterated over once.

    Iterating gives every labelled frame, those of one source in order; ``events`` gives what came and went instead;
    ``run`` gives neither. The sources are closed at the end.

    Args:
        bundle: an opened bundle.
        sources: opened sources.
        tables: prompt tables of the bundle's model, or a set of them that can be replaced while the stream runs.
        options: rare knobs.
        sinks: where labelled frames go, each on a thread of its own.
        variant, engine: what to run; ``choose`` finds the fastest that is proved here.
        threads: CPU threads an inference; None for all, shared by what is under way at once.
        golden: images that it was proved on; None for those that it is proved on here.
        unproved: let a bundle without golden images run, which nothing was proved on.

    Attributes:
        account: what became of the frames so far.
        tables: the prompt tables in use.
        preprocessing: which backend resizes, and how it was seen to differ.

    Raises:
        InputError: no source, a sink that cannot be used, a source opened before a fork, or (while iterating) a stream
            that was iterated over before or made before a fork.
        TableError: a table of another model or width; (while iterating) none of the frames could be scored.
        BundleError, EngineError: the encoder cannot be used here, or an inference failed.
        ParityError: it does not compute in the loop what it was proved to, or there are no images to prove it on.
        SourceError: (while iterating) every source ended badly.
    """

    def __init__(
        self,
        bundle: Bundle,
        sources: Sequence[Source],
        tables: TableSet | Sequence[PromptTable],
        options: StreamOptions | None = None,
        sinks: Sequence[Sink] = (),
        *,
        variant: str = "fp32",
        engine: str = "onnxruntime",
        threads: int | None = None,
        golden: GoldenImages | None = None,
        unproved: bool = False,
    ) -> None:
        if not sources:
            raise InputError("expected at least one source, got none")
        check_threads(threads)
        self._variant, self._engine, self._threads = variant, engine, threads
        self._process = os.getpid()
        leave_alone_in_child(self)
        if any(source.process != self._process for source in sources):
            raise InputError(
                f"expected sources opened in this process, got one opened before a fork: {_AFTER_THE_FORK}"
            )
        self._resources = ExitStack()
        for source in sources:
            self._resources.callback(source.close)
        with self._resources:
            self.options = StreamOptions() if options is None else options
            if not isinstance(self.options, StreamOptions):
                raise InputError(f"expected StreamOptions, got {options!r}")
            if not all(isinstance(sink, Sink) for sink in sinks):
                raise InputError(f"expected a list of sinks, got {sinks!r}: JsonlSink(Path('labels.jsonl')), say")
            if not isinstance(tables, TableSet):
                tables = TableSet(bundle, tables, variant=variant)
            self.tables = tables
            self.account = Account()
            self._sources = _name_apart(sources)
            self._regions = self.options.regions or (whole(),)
            self._failures: list[Exception] = []
            self._lost_by: Exception | None = None  # why the last frame could not be scored or decided on
            self._proved: tuple[Scorer, ...] = ()  # the tables that labelled a frame last
            self._begun = False
            self._stopped = False
            self._golden = golden or require_golden(bundle, unproved=unproved)
            self._prepare(bundle, sinks)
            self._resources = self._resources.pop_all()

    def _prepare(self, bundle: Bundle, sinks: Sequence[Sink]) -> None:
        options, sources = self.options, self._sources
        live = any(source.live for source in sources)
        precision = bundle.variant(self._variant).precision
        parallel = options.parallel or (1 if live else engine_class(self._engine).best_parallel(precision))
        rows = options.batch or (len(sources) * len(self._regions) if live else _FILE_BATCH)
        self._encoder, parallel = self._load_encoder(bundle, rows, parallel)
        wait_s = options.wait_ms / 1e3 if live else _FILE_WAIT_S
        self._batcher = Batcher(self._encoder, sources=len(sources), rows=rows, wait_s=wait_s, parallel=parallel)
        keep_pixels = any(sink.wants_pixels for sink in sinks)
        frames_a_batch = max(1, rows // len(self._regions))
        # One batch is made ready while the engine is busy: without it the engine would wait for each to be prepared.
        self._places = Places(
            encode=frames_a_batch * (parallel + 1), gated=_GATED_PLACES_WITH_PIXELS if keep_pixels else _GATED_PLACES
        )
        spec = bundle.manifest.encoder.preprocess
        self.preprocessing = choose_backend(self._encoder, options.preprocess)
        whole_spec = None if options.regions else spec  # regions may lie where the centre crop would not look
        self._feeders = []
        self._tracks = []
        for position, source in enumerate(sources):
            self.account.sources[source.name] = SourceCount()
            self._feeders.append(
                SourceThread(
                    position,
                    source,
                    Preprocessor(spec, self.preprocessing.backend),
                    self._regions,
                    SceneGate(options.gate, max_skip_s=options.gate_refresh_s, spec=whole_spec)
                    if options.gate is not None
                    else None,
                    keep_pixels=keep_pixels,
                    limit=options.limit,
                )
            )
            name = source.name if len(sources) > 1 else ""
            self._tracks.append(SourceState(options.decision, self._regions, source=name, top_k=options.top_k))
        run = Run(bundle, tuple(sources), self.tables, self.account, self.stop, self._regions)
        self._sinks: list[SinkThread] = []
        self._resources.callback(self._close_sinks, complete=False)  # does nothing once they are closed
        for sink in sinks:
            self._sinks.append(SinkThread(sink, run))

    def _load_encoder(self, bundle: Bundle, rows: int, parallel: int) -> tuple[ImageEncoder, int]:
        """The encoder, held against the golden images as it will be used; one batch at a time if several go wrong."""
        encoder = ImageEncoder(bundle, self._variant, engine=self._engine, threads=self._threads, parallel=parallel)
        with ExitStack() as stack:
            stack.enter_context(encoder)
            rows = rows if encoder.variant.dynamic_batch else 1
            encoder.engine.prepare(rows)
            try:
                if self._golden is not None:
                    prove_in_the_loop(encoder, golden=self._golden, rows=rows, parallel=parallel)
            except ParityError as error:
                if parallel == 1:
                    raise
                _log.warning("%s; one batch at a time is tried instead", error)
            else:
                self._resources.push(stack.pop_all())
                return encoder, parallel
        return self._load_encoder(bundle, rows, 1)

    def __iter__(self) -> Iterator[LabelledFrame]:
        for item in self._items():
            if isinstance(item, LabelledFrame):
                yield item

    def events(self) -> Iterator[Event]:
        """What comes and goes, as it does; also what leaves because a source has ended."""
        for item in self._items():
            if isinstance(item, LabelledFrame):
                yield from item.events
            else:
                yield item

    def run(self) -> Account:
        """Label everything, for the sinks only; once each of them has failed, the run ends."""
        for _ in self._items():
            kept = [sink for sink in self._sinks if not sink.sink.only_shows]
            if kept and all(sink.dead for sink in kept) and not self._stopped:
                _log.warning("every output has failed: the run ends")
                self.stop()
        return self.account

    def _items(self) -> Iterator[LabelledFrame | Event]:
        """Every labelled frame, and what left because its source ended."""
        self._check_process()
        if self._begun:
            raise InputError(
                "expected a stream that nobody has iterated over, got one that is under way or has ended: open another"
            )
        self._begun = True
        _RUNNING.add(self)
        # OpenBLAS's threads spin for some 25 ms after each product of the tables: on two cores, a sixth of all time.
        with self, threadpool_limits(limits=1, user_api="blas"):
            self.account.started = time.perf_counter()
            self._batcher.start()
            for feeder in self._feeders:
                feeder.start(self._places, self._batcher.inbox)
            while (item := self._next()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield from self._end(item) if isinstance(item, End) else self._label(item)
            self._count()
            if len(self._failures) == len(self._sources) and not self._stopped:
                raise self._failures[-1]
            if self._lost_by and not self.account.labelled and not self._stopped:
                raise TableError(f"none of the frames could be labelled: {self._lost_by}") from self._lost_by
            self._close_sinks(complete=True)

    def _next(self) -> Batch | End | Exception | None:
        self._check_process()
        return self._batcher.outbox.get()

    def _check_process(self) -> None:
        if self._forked:
            raise InputError(f"expected a stream made in this process, got one made before a fork: {_AFTER_THE_FORK}")

    @property
    def _forked(self) -> bool:
        return self._process != os.getpid()

    def stop(self, *, interrupted: bool = False) -> None:
        """End the run as if the sources had ended; what was taken is still labelled. May be called from any thread.

        Not from a signal handler, which could find any lock taken: let that start a thread.
        """
        if self._forked:  # files, connections and threads are the parent's
            return
        self._stopped = True
        self.account.interrupted = self.account.interrupted or interrupted
        self._places.stop()
        # Another one may be in use by its feeder, and will give no more than one frame. Beside each other: one that
        # hangs takes a while.
        closing = [threading.Thread(target=source.close, daemon=True) for source in self._sources if source.live]
        for thread in closing:
            thread.start()
        for thread in closing:
            thread.join()
        self._batcher.stop(hurried=self.account.interrupted)

    def _label(self, batch: Batch) -> Iterator[LabelledFrame]:
        embeddings, encode_ms = None, 0.0
        if batch.pending is not None:
            embeddings, encode_ms = batch.pending.result()
            self._batcher.taken(batch)
        scorers = self.tables.current()
        rows = list(self._rows(batch, embeddings, scorers))
        scores = self._score(rows, scorers)
        wrong = next((why for why in scores if isinstance(why, Exception)), None)
        if wrong and (before := self._take_back(scorers, wrong)) is not scorers:
            scorers, scores = before, self._score(rows, before)
        for job, own in zip(batch.jobs, scores, strict=True):
            taken_ms = None if job.small is None else encode_ms
            try:
                if isinstance(own, Exception):
                    raise own
                labelled = self._tracks[job.source].label(job.frame, own, scorers, encode_ms=taken_ms)
            except Exception as error:  # noqa: BLE001 - one frame's, counted
                self._lose(job, error)
                self._take_back(scorers, error)
                continue
            self._proved = scorers
            self._account_for(job.source, labelled, job.prepare_ms)
            for sink in self._sinks:
                sink.put(labelled, job.frame)
            self._places.give(job.kind)
            yield labelled
            self._check_process()

    def _score(
        self, rows: Sequence[FloatArray | None], scorers: Sequence[Scorer]
    ) -> list[list[FloatArray] | Exception | None]:
        """Scores (R, C) of each table for each job's rows; None for a job without, or why there are none."""
        wanted = [own for own in rows if own is not None]
        if not wanted:
            return [None for _ in rows]
        try:
            # One product a table for the whole batch: of a large table, reading its rows is what takes the time.
            together = [scorer.scores(np.concatenate(wanted)) for scorer in scorers]
        except Exception as error:  # noqa: BLE001 - handed on
            if len(wanted) > 1:  # one of them, perhaps
                return [each for own in rows for each in self._score([own], scorers)]
            return [None if own is None else error for own in rows]
        ends = np.cumsum([0 if own is None else len(own) for own in rows]).tolist()
        return [
            None if own is None else [of_table[end - len(own) : end] for of_table in together]
            for own, end in zip(rows, ends, strict=True)
        ]

    def _take_back(self, scorers: tuple[Scorer, ...], why: Exception) -> tuple[Scorer, ...]:
        """The tables to go on with: those before, if these have not labelled a frame yet."""
        if not self._proved or scorers is self._proved:
            return scorers
        _log.warning("the new tables cannot label a frame, the old ones stay: %s", why)
        self.tables.take_back(scorers, self._proved)
        return self._proved

    def _lose(self, job: Job, error: Exception) -> None:
        """Count a frame that was not labelled among the failed of its source."""
        self._sources[job.source].fail(job.frame.file or f"frame {job.frame.index}", str(error))
        self._lost_by = error
        self._places.give(job.kind)
        self._count()

    def _rows(
        self, batch: Batch, embeddings: FloatArray | None, scorers: Sequence[Scorer]
    ) -> Iterator[FloatArray | None]:
        """What the tables have to score for each job of a batch."""
        first = 0
        for job in batch.jobs:
            own = None
            if job.small is not None and embeddings is not None:
                own = embeddings[first : first + len(job.small)]  # (R, D)
                first += len(job.small)
            yield self._tracks[job.source].rows(job.frame, own, scorers)

    def _account_for(self, source: int, labelled: LabelledFrame, prepare_ms: float) -> None:
        account = self.account
        count = account.sources[self._sources[source].name]
        if labelled.gated:
            count.gated += 1
        else:
            count.encoded += 1
            account.encode_ms.append(labelled.encode_ms)
        account.preprocess_ms.append(prepare_ms)
        account.latency_ms.append(labelled.latency_ms)
        account.count_label(labelled.label)
        account.events += len(labelled.events)
        self._count()

    def _count(self) -> None:
        self.account.elapsed_s = time.perf_counter() - self.account.started
        for source, feeder in zip(self._sources, self._feeders, strict=True):
            count = self.account.sources[source.name]
            count.dropped, count.failed, count.reconnects = source.dropped, source.failed, source.reconnects
            count.failures = source.failures
            count.read = feeder.taken + count.dropped

    def _end(self, end: End) -> list[Event]:
        name = self._sources[end.source].name
        if end.failure is not None:  # one camera's end is no reason to stop the others
            self._failures.append(end.failure)
            _log.warning("%s ended: %s", name, end.failure)
        events = self._tracks[end.source].finish()
        self.account.events += len(events)
        for sink in self._sinks:
            sink.end(name, events, str(end.failure or ""))
        return events

    def _close_sinks(self, *, complete: bool) -> None:
        sinks, self._sinks = self._sinks, []
        close_sinks(sinks, complete=complete)

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop, and release everything; sinks whose output is not complete leave none."""
        if self._forked:
            return
        self.stop()
        self._batcher.close()
        until = time.perf_counter() + (_JOIN_HURRIED_S if self.account.interrupted else _JOIN_S)
        stuck = [
            feeder.source.name for feeder in self._feeders if not feeder.ended(max(until - time.perf_counter(), 0.0))
        ]
        if stuck:  # what its thread still uses must not be taken away from under it
            _log.warning("%s did not end in time and is left behind", ", ".join(stuck))
        else:
            self._resources.close()


def _name_apart(sources: Sequence[Source]) -> tuple[Source, ...]:
    """The sources with names that differ: a second ``yard`` becomes ``yard 2``, or ``yard 3`` where one is called that.

    Raises:
        InputError: one source twice.
    """
    if len({id(source) for source in sources}) < len(sources):
        raise InputError("expected each source once, got one twice: open it once for each time")
    given = {source.name for source in sources}
    taken: set[str] = set()
    for source in sources:
        plain = source.name or "unnamed"  # a record without a name is the only source's
        name, count = plain, 1
        while name in taken or (count > 1 and name in given):
            count += 1
            name = f"{plain} {count}"
        taken.add(name)
        source.name = name
    return tuple(sources)
