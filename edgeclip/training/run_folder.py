"""Where a run is written in; which file of it is which out.

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
from collections.abc import Sequence
from pathlib import Path

from edgeclip.errors import InputError
from edgeclip.files import write_json
from edgeclip.training.recipe import Recipe
from edgeclip.training.run_log import EVENTS, FILE

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
            raise InputError(f"{self.path} exists already: choose another --output, or pass --resume or --overwrite")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make {self.path} ({error.strerror}): choose another --output") from error
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
