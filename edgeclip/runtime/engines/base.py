"""Preprocessed batches or resized frames in, embeddings out: the one interface that every inference engine fills.

To add an engine: subclass ``Engine`` in a file of its own, fill ``_load``, ``_infer``, ``close`` and ``describe``, say
what it is meant for (``kinds``, ``available``), and add an entry to ``edgeclip/engine_list.py``. An engine that has
asynchronous requests of its own fills ``_start`` too; the others get a thread for them.
"""

from __future__ import annotations

import importlib.util
import os
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from pkgutil import resolve_name
from types import TracebackType
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from edgeclip.devices.machine.cpu import usable_cores
from edgeclip.devices.machine.probe import installed_versions
from edgeclip.engine_list import engine_entry
from edgeclip.errors import EngineError, InputError
from edgeclip.forked import keep_for_ever
from edgeclip.onnx_graph import check_graph
from edgeclip.spec import EncoderSpec, Precision, PreprocessSpec, Variant

FloatArray = npt.NDArray[np.float32]
ByteArray = npt.NDArray[np.uint8]
# Name of the variant whose INT8 layout is made for CPU kernels: its zero-points and unsigned activations are not
# what device compilers take.
CPU_LAYOUT = "int8-cpu"
_THREADS_A_CORE, _LEAST_BOUND = 4, 64  # more are nobody's wish


class Pending(Protocol):
    """An inference under way."""

    def result(self) -> tuple[FloatArray, float]:
        """Wait for it: embeddings (N, D) as the graph gives them, and how long the engine took, milliseconds."""


class Engine(ABC):
    """One loaded image encoder. Owns its memory until ``close`` or the end of a ``with`` block.

    Args:
        path: the ONNX graph.
        encoder: what it takes and returns.
        precision: of the variant; an engine may prepare an INT8 graph differently.
        threads: CPU threads for one inference; None for as many as this process may use, shared by ``parallel`` ones.
        parallel: inferences that will be under way at once. One alone is done soonest; several get more done.

    Raises:
        EngineError: the graph cannot be loaded or does not fit ``encoder``, or the engine's device is not here.
        VariantError: this device cannot compute in ``precision``.
        MissingExtraError: the engine's library is not installed.

    Attributes:
        name: as in ``edgeclip/engine_list.py``.
        kinds: precisions of the variants that the engine is meant for, and ``CPU_LAYOUT`` if it is for that one too.
        on_cpu: whether inferences share the CPU's cores among them.
        concurrent: whether several threads may call ``infer`` at once.
        forked: whether it was loaded before this process was forked off; then all it does is to say so, as the threads
            of its library are not in this process.
    """

    name: str
    kinds: ClassVar[frozenset[str]] = frozenset({"fp32", "fp16", "bf16", "int8", CPU_LAYOUT})
    on_cpu: ClassVar[bool] = False
    concurrent: ClassVar[bool] = False
    forked = False

    def __init__(
        self,
        path: Path,
        encoder: EncoderSpec,
        *,
        precision: Precision = "fp32",
        threads: int | None = None,
        parallel: int = 1,
    ) -> None:
        self.path = path
        self.encoder = encoder
        self.precision = precision
        self.threads = threads
        self.parallel = parallel
        self._pool: ThreadPoolExecutor | None = None
        _LOADED.add(self)
        self._load()

    def __getattr__(self, name: str) -> Any:
        if self.forked:  # it was emptied
            raise EngineError(
                f"expected an engine that was loaded in process {os.getpid()}, got {self.name} loaded before it was "
                "forked: load it after the fork, or start processes by spawn"
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @classmethod
    def best_parallel(cls, precision: Precision) -> int:  # noqa: ARG003 - for subclasses
        """How many inferences of a variant under way at once get the most done on this machine."""
        return min(usable_cores(), 4) if cls.on_cpu else 2

    @classmethod
    def suits(cls, variant: Variant) -> bool:
        """Whether the engine is meant for ``variant``, on any machine; others run slowly or not at all."""
        return (CPU_LAYOUT if variant.name == CPU_LAYOUT else variant.precision) in cls.kinds

    @classmethod
    def available(cls) -> bool:
        """Whether the engine's library is installed and its device is here, as far as a quick look can tell.

        True is no promise: a driver may be too old, a library may not load. Loading an engine says why.
        """
        return True

    @classmethod
    def versions(cls) -> dict[str, str]:
        """Versions of the library and of what it runs with, by name; a proof counts for these alone.

        Loads the library where it names itself more exactly than its packages do, and no graph. By default the
        packages that the engine declares, or, where none of them is installed, the file that its module comes from.

        Raises:
            EngineError: the library does not load.
            MissingExtraError: it is not installed.
        """
        entry = engine_entry(cls.name)
        return installed_versions(entry.packages) or module_stamp(entry.module)

    def describe(self) -> str:
        """What runs: library and version, device, numeric type or threads, as loaded and not as asked for."""
        return self.name

    def infer(self, images: FloatArray) -> FloatArray:
        """Encode a batch.

        Args:
            images: (N, 3, H, W) float32, preprocessed.

        Returns:
            (N, D) float32, not normalised.

        Raises:
            EngineError: a wrong shape or dtype, a failed run, or a result that is not finite.
        """
        spec = self.encoder.preprocess
        if images.dtype != np.float32 or images.ndim != 4 or images.shape[1:] != (3, spec.height, spec.width):
            raise EngineError(
                f"expected float32 (N, 3, {spec.height}, {spec.width}), got {images.dtype} {images.shape}: "
                "use the bundle's PreprocessSpec"
            )
        return self._checked(self._infer(images), len(images))

    def prepare(self, batch: int) -> None:  # noqa: B027 - only an engine that compiles has something to do
        """Do now what the first ``start`` of so many frames would otherwise take its time for."""

    def start(self, frames: ByteArray) -> Pending:
        """Begin to encode a batch of resized frames; normalising them is part of it.

        At most ``parallel`` of them should be under way, started by one thread at a time.

        Args:
            frames: (N, H, W, 3) uint8 RGB of the encoder's size; not to be changed before the result is there.

        Raises:
            EngineError: a wrong shape or dtype. What goes wrong later is raised by ``Pending.result``.
        """
        spec = self.encoder.preprocess
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != (spec.height, spec.width, 3):
            raise EngineError(
                f"expected uint8 (N, {spec.height}, {spec.width}, 3), got {frames.dtype} {frames.shape}: resize frames "
                "with the bundle's Preprocessor"
            )
        return self._start(frames)

    def _start(self, frames: ByteArray) -> Pending:
        """Run checked input on a thread; an engine with requests of its own does it with those."""
        if self._pool is None:
            workers = self.parallel if self.concurrent else 1
            self._pool = ThreadPoolExecutor(workers, thread_name_prefix=f"edgeclip-{self.name}")
        return _OnThread(self._pool.submit(self._normalise_and_infer, frames))

    def _normalise_and_infer(self, frames: ByteArray) -> tuple[FloatArray, float]:
        start = time.perf_counter()
        embeddings = self.infer(normalise(self.encoder.preprocess, frames))
        return embeddings, (time.perf_counter() - start) * 1e3

    def _checked(self, embeddings: FloatArray, count: int) -> FloatArray:
        """Refuse a result of another shape or one that is not finite."""
        if embeddings.shape != (count, self.encoder.embedding_dim):
            raise EngineError(
                f"{self.path.name} returned {embeddings.shape}, expected {(count, self.encoder.embedding_dim)}: "
                "export the bundle again"
            )
        if not np.isfinite(embeddings).all():
            raise EngineError(
                f"{self.path.name} returned values that are not finite on {self.name}: try `variant` fp32"
            )
        return embeddings

    def _load(self) -> None:  # noqa: B027 - an engine may have nothing to load
        """Load the graph at ``path``, or what was built of it; called once, when the arguments are attributes."""

    @abstractmethod
    def _infer(self, images: FloatArray) -> FloatArray:
        """Run checked input; return whatever the graph gives as float32."""

    def _check_names(self, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        """Refuse a graph whose inputs and outputs are not those of an image encoder."""
        if list(inputs) != ["image"] or list(outputs) != ["embedding"]:
            raise EngineError(
                f"{self.path.name}: expected input image and output embedding, got {', '.join(inputs) or 'none'} and "
                f"{', '.join(outputs) or 'none'}: export it with edgeclip"
            )

    def close(self) -> None:
        """Wait for what is under way, and release the engine's memory."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.forked:
            self.close()


_LOADED: weakref.WeakSet[Engine] = weakref.WeakSet()


def _empty_in_child() -> None:
    """Take from engines what a forked process can neither use nor release: both wait for threads that it lacks."""
    for engine in list(_LOADED):
        own = vars(engine)
        keep_for_ever(dict(own))
        own.clear()
        own["forked"] = True


os.register_at_fork(after_in_child=_empty_in_child)


class _OnThread:
    """An inference on a thread of the engine's pool."""

    def __init__(self, future: Future[tuple[FloatArray, float]]) -> None:
        self._future = future

    def result(self) -> tuple[FloatArray, float]:
        return self._future.result()


def module_stamp(module: str) -> dict[str, str]:
    """What tells one build of a module from another where it names no version: its file, the size and the time of it.

    Nothing where there is no such module.
    """
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # the package that it would be in is not there, or has no place
        return {}
    if spec is None:
        return {}
    places = [spec.origin] if spec.has_location and spec.origin else list(spec.submodule_search_locations or ())
    stats = [(place, Path(place).stat()) for place in places if Path(place).exists()]
    return {module: " ".join(f"{place} {about.st_size} {about.st_mtime_ns}" for place, about in stats)} if stats else {}


def engine_class(name: str) -> type[Engine]:
    """The class of the engine called ``name``; its library need not be installed.

    Raises:
        EngineError: no such engine.
    """
    found: type[Engine] = resolve_name(engine_entry(name).where)
    return found


def load_engine(
    name: str,
    path: Path,
    encoder: EncoderSpec,
    *,
    precision: Precision = "fp32",
    threads: int | None = None,
    parallel: int = 1,
) -> Engine:
    """Load an encoder with the engine called ``name``.

    Raises:
        InputError: ``threads`` is below 1, or far above what this machine can run at once.
        IntegrityError: the graph asks for more than ``check_graph`` allows.
        EngineError: no such engine, it cannot load the graph, or its device is not here.
        VariantError: this device cannot compute in ``precision``.
        MissingExtraError: the engine's library is not installed.
    """
    check_threads(threads)
    found = engine_class(name)
    check_graph(path)
    return found(path, encoder, precision=precision, threads=threads, parallel=parallel)


def check_threads(threads: int | None) -> None:
    """Refuse a number of threads that no processor here runs at once; libraries would start them all, and hang.

    Args:
        threads: CPU threads an inference; None for all cores.

    Raises:
        InputError: below 1, or several times the cores that this process may use.
    """
    most = max(_LEAST_BOUND, _THREADS_A_CORE * usable_cores())
    if threads is not None and threads < 1:
        raise InputError(f"expected threads of at least 1, got {threads}")
    if threads is not None and threads > most:
        raise InputError(
            f"expected threads of at most {most} here, got {threads}: more than there are cores ({usable_cores()}) are "
            "no faster"
        )


def normalise(spec: PreprocessSpec, frames: ByteArray, out: FloatArray | None = None) -> FloatArray:
    """Resized frames (N, H, W, 3) uint8 RGB as (N, 3, H, W) float32, each channel ``(x / 255 - mean) / std``.

    Args:
        out: where to write them; by default a new array.
    """
    std = np.asarray(spec.std, np.float32)
    gain, offset = 1.0 / (255.0 * std), np.asarray(spec.mean, np.float32) / std
    normalised = np.empty((len(frames), 3, *frames.shape[1:3]), np.float32) if out is None else out
    for channel in range(3):
        # Plane by plane and in place: a third of the time of one expression over the transposed array.
        plane = normalised[:, channel]
        np.multiply(frames[..., channel], gain[channel], out=plane)
        plane -= offset[channel]
    return normalised
