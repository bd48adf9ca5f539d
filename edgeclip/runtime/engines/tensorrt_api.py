"""Name of a TensorRT library in, one handle out that hides what differs between them.

``tensorrt`` 10 and 11 and ``tensorrt_rtx`` share their Python names. ``tensorrt`` 8.5 and 8.6 (JetPack 5 and 6.0) lack
strongly typed networks: there the graph's types are only hints, and builder flags allow the lower precision.
Names were checked against the bindings 8.6.1, 10.3.0, 10.13.3 and 11.4.0 and against tensorrt_rtx 1.7.1.

A build's progress goes to a plain callback, and Ctrl-C stops it instead of getting lost in it.
"""

from __future__ import annotations

import functools
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from edgeclip.engine_list import engine_entry
from edgeclip.errors import EngineError, MissingExtraError
from edgeclip.extras import require
from edgeclip.spec import Precision

_KEPT_MESSAGES = 1000
_SHOWN_MESSAGES = 20
Progress = Callable[[str, int, int], None]
"""Called with the name of a phase, the steps done in it and all its steps. Phases nest."""


@dataclass(frozen=True)
class Library:
    """A loaded TensorRT library.

    Attributes:
        name: the engine's name.
        trt: the Python module.
        log: the logger to give to everything that is made with ``trt``.
    """

    name: str
    trt: Any
    log: Any

    @property
    def version(self) -> str:
        """As the library reports it, ``"10.3.0"``."""
        return str(self.trt.__version__)

    @property
    def title(self) -> str:
        """Name and version, for messages."""
        return f"{self.name} {self.version}"

    @property
    def is_rtx(self) -> bool:
        """Whether this is TensorRT for RTX, which needs no GPU to build and compiles kernels when it loads a plan."""
        return self.name == "tensorrt-rtx"

    def make(self, factory: Callable[[], Any], what: str) -> Any:
        """Call a factory of the library; what it logs meanwhile is in the error if it gives nothing.

        Raises:
            EngineError: the library refused.
        """
        self.log.clear()
        try:
            made = factory()
        except (TypeError, RuntimeError) as error:  # the bindings' way to say that a constructor gave nothing
            raise self.failure(f"{self.title} cannot make {what} ({error})") from error
        if made is None:
            raise self.failure(f"{self.title} cannot make {what}")
        return made

    def failure(self, what: str) -> EngineError:
        """An error with the library's latest messages below ``what``."""
        return EngineError("\n  ".join([what, *self.log.shown()]))


@functools.cache
def load_library(name: str) -> Library:
    """Import a TensorRT library; every call returns the same handle, as TensorRT keeps the first logger for good.

    Raises:
        EngineError: no such engine, or its library is installed but does not load.
        MissingExtraError: it is not installed.
    """
    try:
        trt = require(engine_entry(name).module, purpose=f"use {name}")
    except MissingExtraError as error:
        if name == "tensorrt" and Path("/etc/nv_tegra_release").exists():
            raise MissingExtraError(
                "tensorrt is not visible here: JetPack installs it for the system's Python, so make the virtual "
                "environment with --system-site-packages"
            ) from error
        raise
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineError(f"{name} is installed but does not load ({error}): install it again") from error
    return Library(name, trt, _message_log(trt))


def network_flags(trt: Any) -> int:
    """Bits for ``Builder.create_network``: strongly typed where the library knows it, else explicit batch."""
    known = trt.NetworkDefinitionCreationFlag.__members__
    for name in ("STRONGLY_TYPED", "EXPLICIT_BATCH"):
        if name in known:
            return 1 << int(known[name])
    return 0  # a library that has dropped both behaves so always


def precision_flags(trt: Any, precision: Precision) -> tuple[str, ...]:
    """Names of the builder flags that let a library without strongly typed networks use a variant's precision.

    Raises:
        EngineError: the library has no such precision.
    """
    known = trt.BuilderFlag.__members__
    if "STRONGLY_TYPED" in trt.NetworkDefinitionCreationFlag.__members__ or "FP16" not in known or precision == "fp32":
        return ()
    flag = precision.upper()
    if flag not in known:
        raise EngineError(
            f"this TensorRT ({getattr(trt, '__version__', 'of unknown version')}) has no {precision}: "
            "use `variant` fp16 or fp32"
        )
    return (flag, "OBEY_PRECISION_CONSTRAINTS") if "OBEY_PRECISION_CONSTRAINTS" in known else (flag,)


def parser_errors(parser: Any) -> list[str]:
    """All errors of an ``OnnxParser`` or ``OnnxParserRefitter``, each with its node where there is one."""
    return [_describe(parser.get_error(index)) for index in range(parser.num_errors)]


def _describe(error: Any) -> str:
    number = error.node()
    # 8.x knows a node only by its number.
    operator = error.node_operator() if hasattr(error, "node_operator") else ""
    name = error.node_name() if hasattr(error, "node_name") else ""
    where = " ".join(part for part in (operator, "node", repr(name) if name else f"number {number}") if part)
    return f"{where}: {error.desc()}" if number >= 0 else str(error.desc())


def _message_log(trt: Any) -> Any:
    """A logger that prints nothing and keeps the latest warnings and errors."""
    worst_to_keep = int(trt.ILogger.WARNING)

    class MessageLog(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: deque[str] = deque(maxlen=_KEPT_MESSAGES)

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= worst_to_keep:
                self.messages.append(message.strip())

        def clear(self) -> None:
            self.messages.clear()

        def shown(self) -> list[str]:
            """The latest messages, each once."""
            return list(dict.fromkeys(self.messages))[-_SHOWN_MESSAGES:]

    return MessageLog()


class Interrupted:
    """Which signal asked for the end, if one did."""

    signal: int | None = None


@contextmanager
def deferred_signals() -> Iterator[Interrupted]:
    """Note SIGINT and SIGTERM within the block and let their handlers act at its end.

    A KeyboardInterrupt raised inside a callback of the library would be printed by the bindings and forgotten.
    A second signal ends the process at once.
    """
    noted = Interrupted()
    previous: dict[int, Any] = {}
    frames: list[FrameType | None] = []

    def note(number: int, frame: FrameType | None) -> None:
        noted.signal = number
        frames.append(frame)
        signal.signal(number, signal.SIG_DFL)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(number)
            if callable(handler):
                previous[number] = handler
                signal.signal(number, note)
    try:
        yield noted
    finally:
        for deferred, handler in previous.items():
            signal.signal(deferred, handler)
        if noted.signal is not None:
            previous[noted.signal](noted.signal, frames[-1])


def progress_monitor(trt: Any, progress: Progress | None, interrupted: Interrupted) -> Any:
    """An ``IProgressMonitor`` that reports to ``progress`` and stops the build on a signal or an exception.

    Returns:
        The monitor; its ``error`` is what ``progress`` raised, or None.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.error: BaseException | None = None
            self._totals: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:  # noqa: ARG002
            self._totals[phase] = steps
            self._report(phase, 0)

        def step_complete(self, phase: str, step: int) -> bool:
            self._report(phase, step + 1)
            return self.error is None and interrupted.signal is None

        def phase_finish(self, phase: str) -> None:
            self._report(phase, self._totals[phase])  # the library skips steps that it has no use for

        def _report(self, phase: str, done: int) -> None:
            if progress is None or self.error is not None:
                return
            try:
                progress(phase, done, self._totals[phase])
            except BaseException as error:  # noqa: BLE001 - must not unwind through the library; raised after the build
                self.error = error

    return Monitor()
