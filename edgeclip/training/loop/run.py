"""What a training run leaves behind: where it is written, its log and what is shown while it goes on.

::

    runs/NAME/
      recipe.json    the recipe in full
      log.jsonl      loss, learning rate, samples a second, zero-shot top-1: one object a line
      tensorboard/   the same as events
      state.pt       everything to resume from, of the last save
      checkpoint/    the model as of the same save: edgeclip export runs/NAME
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from edgeclip.errors import InputError
from edgeclip.extras import require
from edgeclip.files import atomic_file, write_json
from edgeclip.training.recipe import Recipe

FILE, EVENTS = "log.jsonl", "tensorboard"
_TAGS = {"loss": "train/loss", "lr": "train/lr", "top1": "val/top1"}
_RECIPE, _STATE, _CHECKPOINT, _BAD_BATCH = "recipe.json", "state.pt", "checkpoint", "bad-batch.json"
_OWN = (_RECIPE, _STATE, _CHECKPOINT, _BAD_BATCH, FILE, EVENTS)
_KEYS_SHOWN = 5


class RunFolder:
    """The folder of one run.

    Attributes:
        path: the folder.
        state: the file to resume from.
        checkpoint: the folder of the trained model.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.state, self.checkpoint = path, path / _STATE, path / _CHECKPOINT

    def prepare(self, recipe: Recipe, *, overwrite: bool, resume: bool) -> None:
        """Make the folder and write the recipe; ``overwrite`` takes away what an earlier run wrote, and only that.

        Raises:
            InputError: it exists and neither is given, or it cannot be written.
        """
        if self.path.exists() and not (overwrite or resume):
            raise InputError(f"{self.path} exists already: choose another `output`, or pass `resume` or `overwrite`")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make {self.path} ({error.strerror}): choose another `output`") from error
        if not resume:
            for name in _OWN:
                found = self.path / name
                if found.is_dir():
                    shutil.rmtree(found)
                else:
                    found.unlink(missing_ok=True)
        if not self.state.is_file():  # a state is checked against the recipe before that is written over
            write_json(self.path / _RECIPE, recipe)

    def explain(self, what: str, step: int, keys: Sequence[Sequence[str]]) -> str:
        """Why training stops: the step, the batch's first keys (all of them go to a file) and what is kept.

        Args:
            what: is wrong, to begin the sentence.
            keys: of the batch, by process.
        """
        flat = [key for part in keys for key in part]
        write_json(self.path / _BAD_BATCH, {"step": step, "keys": flat})
        more = ", …" if len(flat) > _KEYS_SHOWN else ""
        kept = f"the state saved last is kept at {self.state}" if self.state.is_file() else "no state was saved before"
        return (
            f"{what} at step {step}, batch {', '.join(flat[:_KEYS_SHOWN])}{more} (all keys in "
            f"{self.path / _BAD_BATCH}); {kept}: lower optimizer.lr or look at these samples"
        )


class RunLog:
    """Writes ``log.jsonl`` (one object a line, with ``step`` in each) and TensorBoard's events.

    A line is flushed as it is written. After a resume, lines of steps that are done again are taken away first.

    Args:
        folder: of the run.
        steps_done: where the run goes on; 0 to begin.
        tensorboard: write event files too.
    """

    def __init__(self, folder: Path, *, steps_done: int, tensorboard: bool) -> None:
        self._path = folder / FILE
        kept = [line for line in _lines(self._path) if msgspec.json.decode(line)["step"] <= steps_done]
        with atomic_file(self._path) as temporary:
            temporary.write_bytes(b"".join(kept if steps_done else []))
        self._stream = self._path.open("ab")
        self._events: Any = None
        if tensorboard:
            writers = require("torch.utils.tensorboard", purpose="write TensorBoard logs", extra="train")
            purge = steps_done + 1 if steps_done else None
            self._events = writers.SummaryWriter(str(folder / EVENTS), purge_step=purge)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Add a line; ``values`` are scalars."""
        self._stream.write(msgspec.json.encode({"step": step, **values}) + b"\n")
        self._stream.flush()
        if self._events:
            for name, value in values.items():
                self._events.add_scalar(_TAGS.get(name, f"train/{name}"), value, step)

    def close(self) -> None:
        """Close the files."""
        self._stream.close()
        if self._events:
            self._events.close()


def _lines(path: Path) -> list[bytes]:
    """Whole lines; the last one may have been cut off by a kill."""
    data = path.read_bytes() if path.is_file() else b""
    return [line for line in data.splitlines(keepends=True) if line.endswith(b"\n")]


class Speed:
    """Samples a second since the last reading, over all processes."""

    def __init__(self) -> None:
        self._start, self._samples = time.perf_counter(), 0

    def add(self, samples: int) -> None:
        """Count samples."""
        self._samples += samples

    def read(self) -> float:
        """The speed, and start anew."""
        now = time.perf_counter()
        speed = self._samples / (now - self._start)
        self._start, self._samples = now, 0
        return speed

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leave out what takes place inside: evaluation and saving are no training."""
        begun = time.perf_counter()
        yield
        self._start += time.perf_counter() - begun


class Bar:
    """Steps, loss, samples a second and the time left; nothing where there is no terminal.

    Args:
        total: steps in all.
        done: steps done before.
        shown: false in all processes but the first.
    """

    def __init__(self, console: Console, *, total: int, done: int, shown: bool) -> None:
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[said]}", markup=False),
            TimeRemainingColumn(),
            console=console,
            disable=not (shown and console.is_terminal),
        )
        self._task: TaskID = self.progress.add_task("steps", total=total, completed=done, said="")

    def show(self, step: int, *, loss: float, speed: float) -> None:
        """The state after ``step`` steps."""
        self.progress.update(self._task, completed=step, said=f"loss {loss:.3f}  {speed:,.0f} samples/s")

    def __enter__(self) -> Bar:
        self.progress.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.progress.stop()
