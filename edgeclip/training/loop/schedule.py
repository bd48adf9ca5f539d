"""A step in, its learning rate out; parameters in, an optimizer with their groups and an average of them out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from edgeclip.errors import RecipeError
from edgeclip.training.recipe import Model, Optimizer


def warmup_cosine(step: int, settings: Optimizer) -> float:
    """Share of the learning rate at ``step`` (from 0): linear rise, then half a cosine down to ``final_lr``."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.final_lr + (1 - settings.final_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def make_optimizer(model: nn.Module, recipe: Model, settings: Optimizer) -> torch.optim.Optimizer:
    """AdamW over what is trained: matrices decay, vectors and scalars do not; a tower has its ``lr_scale``.

    Raises:
        RecipeError: nothing is trained.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    scales = {"image.": recipe.image.lr_scale, "text.": recipe.text.lr_scale}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        scale = next((scale for prefix, scale in scales.items() if name.startswith(prefix)), 1.0)
        decay = settings.weight_decay if parameter.dim() > 1 else 0.0
        groups.setdefault((scale, decay), []).append(parameter)
    if not groups:
        raise RecipeError("expected something to train, got a model that is locked from end to end: unlock a tower")
    return torch.optim.AdamW(
        [
            {"params": parameters, "lr": settings.lr * scale, "weight_decay": decay}
            for (scale, decay), parameters in groups.items()
        ],
        betas=settings.betas,
        eps=settings.eps,
        fused=True,
    )


class Average:
    """Exponential moving average of what is trained.

    Args:
        decay: share of the average that stays at each step. Early on it is (1 + t) / (10 + t) if that is less, so that
            the random start is soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._parameters = {name: item for name, item in model.named_parameters() if item.requires_grad}
        self.decay = decay
        self.values = {name: item.detach().clone() for name, item in self._parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the present weights, after step ``step`` (from 0)."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.values.values()), list(self._parameters.values()), share)

    @contextmanager
    @torch.no_grad()
    def in_place(self) -> Iterator[None]:
        """Inside, the model has the averaged weights."""
        present = {name: item.detach().clone() for name, item in self._parameters.items()}
        try:
            self._copy(self.values)
            yield
        finally:
            self._copy(present)

    @torch.no_grad()
    def _copy(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self._parameters[name].copy_(value)
