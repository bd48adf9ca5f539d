"""A checkpoint and its fine-tuned form in, the checkpoints between them out, one at a time (WiSE-FT, Wortsman 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from edgeclip.errors import ModelError
from edgeclip.training.checkpoint import load_two_tower, save_checkpoint
from edgeclip.training.checkpoint_config import read_config
from edgeclip.training.checkpoint_place import checkpoint_folder
from edgeclip.training.checkpoint_v1 import ConfigV1
from edgeclip.training.distill import GivenText
from edgeclip.training.two_tower import TwoTower
from edgeclip.training.wise_ft import interpolate

_LONGEST_NAME = 80  # a checkpoint's name has at most 100 characters, and ``-wise-ALPHA`` is added


class WiseRecipe(msgspec.Struct, frozen=True, kw_only=True):
    """How a checkpoint between two others came about; the digests are those of their weights files."""

    name: str
    zero_shot: str
    fine_tuned: str
    zero_shot_sha256: str
    fine_tuned_sha256: str
    alpha: float
    task: str = "wise-ft"


class CheckpointsBetween:
    """The models on the way from one checkpoint to another; there is one in memory, and weights that differ twice.

    Args:
        zero_shot: folder of the checkpoint that fine-tuning started from, or ``starter``; ``alpha`` 0.
        fine_tuned: the checkpoint that it ended with; ``alpha`` 1.

    Attributes:
        zero_shot, fine_tuned: as given.
        shared: which of the towers ``image`` and ``text`` are the same in both, as a locked one is.

    Raises:
        ModelError: no such checkpoint, or two of different architectures.
    """

    def __init__(self, zero_shot: str, fine_tuned: str) -> None:
        self.zero_shot, self.fine_tuned = zero_shot, fine_tuned
        first, self._model = load_two_tower(zero_shot), load_two_tower(fine_tuned)
        ends = first.state_dict(), self._model.state_dict()
        self._check_alike(_architecture(first), _architecture(self._model))
        self._check_alike(_shapes(ends[0]), _shapes(ends[1]))
        changed = [name for name, value in ends[0].items() if not torch.equal(value, ends[1][name])]
        self._first, self._second = ({name: end[name].clone() for name in changed} for end in ends)
        towers = ("image", "text")
        self.shared = frozenset(side for side in towers if not any(name.startswith(f"{side}.") for name in changed))

    def to(self, device: torch.device | str) -> CheckpointsBetween:
        """Compute on another device."""
        self._model.to(device)
        return self

    def at(self, alpha: float) -> TwoTower:
        """The model at ``alpha``, in eval mode and frozen; it becomes another one with the next call.

        Raises:
            ModelError: an alpha outside [0, 1].
        """
        self._model.load_state_dict(interpolate(self._first, self._second, alpha), strict=False)  # the rest is shared
        return self._model.requires_grad_(requires_grad=False).eval()

    def save(self, folder: Path, alpha: float, *, results: Mapping[str, float] | None = None) -> None:
        """Write the checkpoint at ``alpha``, whole or not at all.

        Args:
            results: what was measured of it.

        Raises:
            InputError: the folder exists, or cannot be written.
            ModelError: an alpha outside [0, 1].
        """
        state = self._model.state_dict() | interpolate(self._first, self._second, alpha)
        configs = [read_config(checkpoint_folder(name)) for name in (self.zero_shot, self.fine_tuned)]
        name = configs[1].recipe.name if isinstance(configs[1], ConfigV1) else configs[1].name
        recipe = WiseRecipe(
            name=f"{name[:_LONGEST_NAME]}-wise-{alpha:g}",
            zero_shot=self.zero_shot,
            fine_tuned=self.fine_tuned,
            zero_shot_sha256=configs[0].weights_sha256,
            fine_tuned_sha256=configs[1].weights_sha256,
            alpha=alpha,
        )
        save_checkpoint(folder, self._model, recipe=recipe, results=results, state=state)

    def _check_alike(self, first: Mapping[str, object], second: Mapping[str, object]) -> None:
        for what in sorted({*first, *second}):
            one, other = first.get(what, "none"), second.get(what, "none")
            if one != other:
                raise ModelError(
                    f"expected two checkpoints of one architecture, got {what} {one} in {self.zero_shot} and {other} "
                    f"in {self.fine_tuned}: give the checkpoint that the fine-tuning started from"
                )


def _architecture(model: TwoTower) -> dict[str, object]:
    described: dict[str, object] = {
        "embedding_dim": model.embedding_dim,
        "image tower": model.model.image.name,
        "image preprocessing": msgspec.json.encode(model.preprocess).decode(),
    }
    if isinstance(model.text, GivenText):
        described["teacher"] = model.text.teacher.id
    else:
        described["text tower"] = model.model.text.name
    return described


def _shapes(state: Mapping[str, Tensor]) -> dict[str, object]:
    return {f"weight {name}": f"{tuple(value.shape)} {value.dtype}" for name, value in state.items()}
