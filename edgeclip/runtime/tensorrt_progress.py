"""A plain callback in, TensorRT's progress monitor out; and Ctrl-C that stops a build instead of getting lost in it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

Progress = Callable[[str, int, int], None]
"""Called with the name of a phase, the steps done in it and all its steps. Phases nest."""


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
