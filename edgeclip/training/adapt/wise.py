"""A model and its fine-tuned form in, the models between them out, and how accuracy and robustness trade along the way.

WiSE-FT (Wortsman 2022): fine-tuning gains accuracy where it was tuned and loses it elsewhere. The weights half-way
between a model and its fine-tuned form often keep most of the one and regain most of the other. ``between`` takes any
two models of one architecture, ``CheckpointsBetween`` two checkpoints, which it can save again.
"""

from __future__ import annotations

import copy
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from edgeclip.errors import ModelError
from edgeclip.extras import require
from edgeclip.files import atomic_file
from edgeclip.training.checkpoint.checkpoint import load_two_tower, save_checkpoint
from edgeclip.training.checkpoint.files import ConfigV1, checkpoint_folder, read_config
from edgeclip.training.load import load_text_tower
from edgeclip.training.model import ContrastiveModel
from edgeclip.training.student import GivenText
from edgeclip.training.two_tower import TwoTower

ALPHAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

_LABEL_WIDTH = 44  # characters that fit beside an axis
_LONGEST_NAME = 80  # a checkpoint's name has at most 100 characters, and ``-wise-ALPHA`` is added


class WisePoint(msgspec.Struct, frozen=True):
    """One model on the way: ``alpha`` 0 is the first one, 1 the fine-tuned one; both accuracies in [0, 1].

    Attributes:
        accuracy_ci95, robustness_ci95: their 95 % intervals; None if they are not known.
    """

    alpha: float
    accuracy: float
    robustness: float
    accuracy_ci95: tuple[float, float] | None = None
    robustness_ci95: tuple[float, float] | None = None


def interpolate(first: Mapping[str, Tensor], second: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Weights ``(1 − alpha) · first + alpha · second``; what is not floating point is taken from the nearer one.

    Raises:
        ModelError: other names, shapes or dtypes, or an alpha outside [0, 1].
    """
    if not 0 <= alpha <= 1:
        raise ModelError(f"expected alpha from 0 (the first model) to 1 (the second), got {alpha}")
    if strange := sorted(set(first) ^ set(second)):
        raise ModelError(f"expected two models of one architecture, got weights that only one has: {strange[0]}, …")
    mixed: dict[str, Tensor] = {}
    for name, one in first.items():
        other = second[name]
        if one.shape != other.shape or one.dtype != other.dtype:
            raise ModelError(
                f"expected two models of one architecture, got {name} of {tuple(one.shape)} {one.dtype} and of "
                f"{tuple(other.shape)} {other.dtype}"
            )
        if one.is_floating_point():
            mixed[name] = torch.lerp(one, other, alpha)
        else:
            mixed[name] = (one if alpha < 0.5 else other).clone()
    return mixed


def between(first: ContrastiveModel, second: ContrastiveModel, alpha: float) -> ContrastiveModel:
    """A new model whose image and text weights, and logarithm of the logit scale, lie between two models'.

    Args:
        first: as it was before fine-tuning; ``alpha`` 0.
        second: fine-tuned; ``alpha`` 1.

    Raises:
        ModelError: they are not of one architecture, or do not preprocess alike.
    """
    one, other = first.encoder, second.encoder
    if (one.preprocess, one.embedding_dim, one.score) != (other.preprocess, other.embedding_dim, other.score):
        raise ModelError(
            f"expected two models that preprocess and score alike, got {first.name} and {second.name}, which do not"
        )
    mixed = copy.deepcopy(first)
    for kept in (mixed, mixed.text):  # digests of other weights
        for known in ("identity", "sha256"):
            vars(kept).pop(known, None)
    sides = ((mixed.image_modules(), second.image_modules()), (mixed.text.modules(), second.text.modules()))
    for ours, theirs in sides:
        if len(ours) != len(theirs):
            raise ModelError(f"expected two models of one architecture, got {first.name} and {second.name}")
        for module, source in zip(ours, theirs, strict=True):
            module.load_state_dict(interpolate(module.state_dict(), source.state_dict(), alpha))
    mixed.encoder = msgspec.structs.replace(
        one,
        logit_scale=one.logit_scale ** (1 - alpha) * other.logit_scale**alpha,
        logit_bias=(1 - alpha) * one.logit_bias + alpha * other.logit_bias,
    )
    mixed.name = f"{first.name} + {alpha:g} × ({second.name} - {first.name})"
    return mixed


def wise_curve(
    first: ContrastiveModel,
    second: ContrastiveModel,
    accuracy: Callable[[ContrastiveModel], float],
    robustness: Callable[[ContrastiveModel], float],
    *,
    alphas: Sequence[float] = ALPHAS,
) -> list[WisePoint]:
    """Measure models along the way from the first to the fine-tuned one.

    Args:
        accuracy: top-1 on data like that of the fine-tuning, in [0, 1].
        robustness: the same on data that is unlike it.
    """
    points = []
    for alpha in alphas:
        model = between(first, second, alpha)
        points.append(WisePoint(alpha, accuracy(model), robustness(model)))
    return points


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
        first, self._model = (load_two_tower(name, teachers_text=load_text_tower) for name in (zero_shot, fine_tuned))
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


class WiseRecipe(msgspec.Struct, frozen=True, kw_only=True):
    """How a checkpoint between two others came about; the digests are those of their weights files."""

    name: str
    zero_shot: str
    fine_tuned: str
    zero_shot_sha256: str
    fine_tuned_sha256: str
    alpha: float
    task: str = "wise-ft"


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


def plot_wise(points: Sequence[WisePoint], path: Path, *, accuracy: str, robustness: str) -> None:
    """Draw the curve of Wortsman 2022: accuracy to the right, robustness upwards, a mark for each alpha.

    Where 95 % intervals are known, they are drawn as bars.

    Args:
        accuracy, robustness: what the axes say, e.g. names of the data sets.
    """
    figures: Any = require("matplotlib.figure", purpose="draw a curve", extra="train")
    figure = figures.Figure(figsize=(5.2, 4.0), layout="constrained")
    panel = figure.subplots()
    panel.plot(
        [point.accuracy for point in points], [point.robustness for point in points], "o-", color="#0072B2", ms=4
    )
    for point in points:
        if point.accuracy_ci95 and point.robustness_ci95:
            panel.hlines(point.robustness, *point.accuracy_ci95, color="0.75", lw=1, zorder=1)
            panel.vlines(point.accuracy, *point.robustness_ci95, color="0.75", lw=1, zorder=1)
        panel.annotate(
            f"{point.alpha:g}",
            (point.accuracy, point.robustness),
            xytext=(4, 4),
            textcoords="offset points",
            fontsize=8,
        )
    panel.set_xlabel(textwrap.fill(f"top-1, {accuracy}", _LABEL_WIDTH))
    panel.set_ylabel(textwrap.fill(f"top-1, {robustness}", _LABEL_WIDTH))
    bars = "; bars: 95 %" if any(point.accuracy_ci95 for point in points) else ""
    panel.set_title(f"alpha 0: first model, 1: fine-tuned{bars}", fontsize=10)
    panel.grid(alpha=0.3)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=110)
