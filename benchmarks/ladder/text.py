"""The starter's text tower, damaged, in; the rows of its prompt tables out: the ladder of ``gate.py`` for a MiniLM."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgeclip import Bundle, load_templates
from edgeclip.evaluation.data.class_sets import class_prompts
from edgeclip.files import atomic_file
from edgeclip.prompts import FloatArray, PromptClass, encode_table
from edgeclip.runtime.images import list_labelled
from edgeclip.training.load import load_text_tower

Change = Callable[[Any, "Ranges"], None]
SETS = ("caltech101", "cifar10-test")


class Ranges:
    """What goes into each linear layer, on the prompts of some classes."""

    def __init__(self, tower: Any, texts: Sequence[str]) -> None:
        self.samples: dict[str, FloatArray] = {}
        hooks = [module.register_forward_pre_hook(self._keeper(name)) for name, module in linears(tower)]
        tower.encode_text(texts)
        for hook in hooks:
            hook.remove()

    def _keeper(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def keep(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            self.samples[name] = given[0].detach().reshape(-1).numpy()

        return keep

    def largest(self, name: str, percentile: float) -> float:
        """The magnitude that so many percent of the numbers lie within."""
        return float(np.percentile(np.abs(self.samples[name]), percentile))


def linears(tower: Any) -> list[tuple[str, nn.Linear]]:
    """All linear layers, in their order."""
    return [
        (f"{number}.{name}", module)
        for number, part in enumerate(tower.modules())
        for name, module in part.named_modules()
        if isinstance(module, nn.Linear)
    ]


def rounding(
    weights: int = 0,
    values: int = 0,
    *,
    per_tensor: bool = False,
    percentile: float = 100.0,
    step: int = 1,
) -> Change:
    """Weights and inputs of every ``step``-th linear layer on so many bits (0: as they are)."""

    def change(tower: Any, ranges: Ranges) -> None:
        for name, module in linears(tower)[::step]:
            if weights:
                weight = module.weight.data
                top = weight.abs().max() if per_tensor else weight.abs().amax(dim=1, keepdim=True)
                module.weight.data = _levels(weight, top, weights)
            if values:
                top = torch.tensor(ranges.largest(name, percentile))
                module.register_forward_pre_hook(_rounder(top, values))

    return change


def _rounder(top: Tensor, bits: int) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    return lambda _, given: (_levels(given[0], top, bits),)


def _levels(values: Tensor, top: Tensor, bits: int) -> Tensor:
    most = 2 ** (bits - 1) - 1
    step = torch.clamp(top / most, min=1e-12)
    return (values / step).round().clamp(-most, most) * step


def dropped_layer(number: int) -> Change:
    """One of the layers left out."""

    def change(tower: Any, _: Ranges) -> None:
        layers = tower.tower.bert.encoder.layer
        del layers[number]

    return change


def shuffled(number: int, share: float) -> Change:
    """A share of one layer's outputs change places."""

    def change(tower: Any, _: Ranges) -> None:
        module = linears(tower)[number][1]
        order = torch.arange(module.out_features)
        count = max(2, round(share * module.out_features))
        order[:count] = torch.roll(order[:count], 1)
        module.weight.data = module.weight.data[order]

    return change


def low(dtype: torch.dtype) -> Change:
    """Weights and every layer's result rounded to float16 or bfloat16."""

    def change(tower: Any, _: Ranges) -> None:
        for part in tower.modules():
            for module in part.modules():
                if isinstance(module, nn.Linear | nn.LayerNorm | nn.Embedding):
                    module.weight.data = module.weight.data.to(dtype).float()
                    module.register_forward_hook(lambda _m, _i, result: result.to(dtype).float())

    return change


LADDER: dict[str, tuple[str, Change]] = {
    "linears-only int8": ("shipped", rounding(8, 8)),
    "raw fp16": ("half", low(torch.float16)),
    "raw bf16": ("half", low(torch.bfloat16)),
    "w8 per tensor": ("per tensor", rounding(8, per_tensor=True)),
    "w7 per tensor": ("per tensor", rounding(7, per_tensor=True)),
    "w6 per tensor": ("per tensor", rounding(6, per_tensor=True)),
    "w5 per tensor": ("per tensor", rounding(5, per_tensor=True)),
    "w7": ("bits", rounding(7)),
    "w6": ("bits", rounding(6)),
    "w5": ("bits", rounding(5)),
    "w4": ("bits", rounding(4)),
    "w5, every other": ("bits", rounding(5, step=2)),
    "w4, every third": ("bits", rounding(4, step=3)),
    "a7": ("bits", rounding(0, 7)),
    "a6": ("bits", rounding(0, 6)),
    "a5": ("bits", rounding(0, 5)),
    "a6, every third": ("bits", rounding(0, 6, step=3)),
    "w6a8": ("bits", rounding(6, 8)),
    "w5a7": ("bits", rounding(5, 7)),
    "w8a8 99.99%": ("clipped", rounding(8, 8, percentile=99.99)),
    "w8a8 99.9%": ("clipped", rounding(8, 8, percentile=99.9)),
    "w8a8 99.5%": ("clipped", rounding(8, 8, percentile=99.5)),
    "w8a8 99%": ("clipped", rounding(8, 8, percentile=99)),
    "w8a8 98%": ("clipped", rounding(8, 8, percentile=98)),
    "w8a8 97%, every third": ("clipped", rounding(8, 8, percentile=97, step=3)),
    "first block dropped": ("branch", dropped_layer(0)),
    "last block dropped": ("branch", dropped_layer(5)),
    "channels shuffled, 10%": ("channels", shuffled(12, 0.1)),
    "channels shuffled, 2%": ("channels", shuffled(16, 0.02)),
}


def run_text(data: Path, folder: Path, *, slug: Callable[[str], str]) -> None:
    """Keep every variant's rows of the labelled sets' classes and of the everyday ones, and FP32's."""
    bundle = Bundle.open("starter")
    asked: dict[str, tuple[Sequence[PromptClass], Sequence[str]]] = {
        name: (class_prompts(list_labelled(data / name)[1], None), load_templates("simple")) for name in SETS
    }
    asked["gate"] = (bundle.table("objects").classes, ("a photo of a {}.",))
    exact = load_text_tower(bundle.manifest.model)
    ranges = Ranges(exact, [f"a photo of a {item.names[0]}." for item in asked["gate"][0][:32]])
    for name, change in {"fp32": None, **{key: change for key, (_, change) in LADDER.items()}}.items():
        target = folder / "minilm" / "runs" / f"{slug(name)}.npz"
        if target.exists():
            continue
        tower = copy.deepcopy(exact)
        if change is not None:
            change(tower, ranges)
        rows = {
            key: encode_table(tower, classes, templates, name=key, model_id="").embeddings
            for key, (classes, templates) in asked.items()
        }
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(target) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **rows)
        print(f"minilm: {name}", flush=True)
