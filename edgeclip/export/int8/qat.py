"""A torch encoder in, the same encoder with trained 8-bit quantizers out: quantization-aware fine-tuning.

NNCF places the quantizers, smooths and measures ranges on the torch module, by the recipe and options that the export
uses for its ONNX graph. Then weights and step sizes are trained so that the embeddings match those of the FP32 encoder:
images are all that is needed. Rounding passes gradients straight through; step sizes learn as in LSQ (Esser 2020).
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgeclip.errors import InputError, ModelError, TrainingError
from edgeclip.export.int8.quantization import QuantizationRecipe, nncf_options
from edgeclip.export.onnx import EncoderModule
from edgeclip.extras import require
from edgeclip.prompts import FloatArray
from edgeclip.training.towers.quiet import silent

_HIGH = 127
_BATCH = 32
_LOOKS = 4  # at how well all images do, over the training


@dataclass(frozen=True)
class QatOptions:
    """How the quantized encoder is trained.

    Attributes:
        steps: of AdamW.
        batch_size: images a step.
        lr: of the weights, at the start of a cosine schedule; step sizes, which are trained on a log scale, take it
            a hundredfold.
        seed: of the order of the images.

    Raises:
        InputError: a value out of range.
    """

    steps: int = 200
    batch_size: int = 16
    lr: float = 3e-5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1 or not self.lr > 0:
            raise InputError(
                f"expected steps and batch_size of 1 and lr above 0 at least, got {self.steps}, {self.batch_size} and "
                f"{self.lr}"
            )


class Quantizer(nn.Module):
    """Rounds to ``step`` times -128 … 127 (weights: -127); the step size is one number, or one a channel, and trained.

    Args:
        step: of shape (1,), or with one axis longer than 1, along which the channels lie.
        weight: whether what is rounded is a weight.

    Attributes:
        exported_step: the one step size as a plain number, which the exporter asks for; see ``freeze``.
    """

    exported_step: float = 1.0

    def __init__(self, step: Tensor, *, weight: bool) -> None:
        super().__init__()
        self.log_step = nn.Parameter(step.detach().clone().clamp_min(1e-9).log())
        self.weight = weight

    def forward(self, values: Tensor) -> Tensor:
        """The rounded values, of the same shape; as ONNX has it (quantize, dequantize) while being exported."""
        if torch.compiler.is_exporting():
            return self._exported(values)
        step = self.log_step.exp()
        levels = (values / step).clamp(-127 if self.weight else -128, _HIGH)
        return (levels + (levels.round() - levels).detach()) * step

    def _exported(self, values: Tensor) -> Tensor:
        ops = torch.ops.quantized_decomposed
        kept: Tensor
        step = self.log_step.exp()
        if step.numel() > 1:
            axis = next(axis for axis, size in enumerate(step.shape) if size > 1)
            channels = (step.reshape(-1), torch.zeros(step.numel(), dtype=torch.int8), axis, -128, 127, torch.int8)
            kept = ops.dequantize_per_channel(ops.quantize_per_channel(values, *channels), *channels)
        else:
            whole = (self.exported_step, 0, -128, 127, torch.int8)
            kept = ops.dequantize_per_tensor(ops.quantize_per_tensor(values, *whole), *whole)
        return kept


def insert_quantizers(
    module: nn.Module, images: FloatArray, recipe: QuantizationRecipe, *, transformer: bool
) -> nn.Module:
    """A copy of ``module`` with quantizers where NNCF puts them, their ranges measured on ``images``.

    Args:
        module: in eval mode, (N, 3, H, W) → (N, D).
        images: preprocessed, (N, 3, H, W) float32.
        recipe: as for the ONNX graph. Biases are not corrected here: training sees to them.
        transformer: whether attention is in it.

    Raises:
        InputError: the recipe keeps nodes in FP32; their names are those of the ONNX graph.
        ModelError: NNCF cannot quantize the module.
    """
    if recipe.keep_float:
        raise InputError(
            f"expected a recipe with everything quantized, got one that keeps {recipe.keep_float[0]!r} in FP32: "
            "quantization-aware training makes up for that instead"
        )
    require("torch.ao.quantization.fx._decomposed", purpose="export quantizers")  # registers the operators
    with silent():
        nncf = require("nncf", purpose="quantize")
        hooks = require("nncf.torch.function_hook", purpose="quantize")
        layers = require("nncf.torch.quantization.layers", purpose="quantize")
        nncf.set_log_level(logging.ERROR)
        try:
            quantized: nn.Module = nncf.quantize(
                # NNCF keeps its own modules beside those of the outermost one, which a Sequential would call.
                EncoderModule(copy.deepcopy(module)).requires_grad_(requires_grad=True).eval(),
                nncf.Dataset([torch.from_numpy(image[None]) for image in images]),
                subset_size=len(images),
                **nncf_options(recipe, transformer=transformer, bias_correction=False),
            )
        except Exception as error:  # NNCF and torch raise a dozen unrelated types
            reason = str(error).strip().partition("\n")[0]
            raise ModelError(f"NNCF {nncf.__version__} cannot quantize this module ({reason})") from error
        storage = hooks.get_hook_storage(quantized)
        placed = [(name, hook) for name, hook in storage.named_hooks() if isinstance(hook, layers.BaseQuantizer)]
        for name, hook in placed:
            if not isinstance(hook, layers.SymmetricQuantizer):
                raise ModelError(f"expected symmetric quantizers from NNCF, got {type(hook).__name__} at {name}")
            scale = hook.scale.detach()
            storage.set_submodule(name, Quantizer(scale / _HIGH, weight=hook.narrow_range or scale.numel() > 1))
    return quantized


def quantizers(module: nn.Module) -> list[Quantizer]:
    """Those in a module, in the order of their names."""
    return [part for part in module.modules() if isinstance(part, Quantizer)]


def train_quantized(
    quantized: nn.Module,
    reference: nn.Module,
    images: FloatArray,
    options: QatOptions = QatOptions(),
    *,
    progress: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Train weights and step sizes, in place, until the embeddings match those of ``reference``.

    The loss is 1 − cosine, plus 1 − cosine of what remains when the mean embedding is taken off: that is what tells
    images apart, and what the gate asks for. What is kept is the best of the start, three states on the way and the
    end, by the loss over all images: step sizes learn fast, and too high a rate makes an encoder worse.

    Args:
        reference: the FP32 encoder.
        images: preprocessed, (N, 3, H, W) float32.
        progress: called with (steps done, loss).

    Returns:
        The loss of every step.

    Raises:
        TrainingError: a loss that is not finite.
    """
    pictures = torch.from_numpy(np.ascontiguousarray(images))
    with torch.no_grad():
        target = torch.cat([reference(batch) for batch in torch.split(pictures, _BATCH)])
        target = nn.functional.normalize(target, dim=1)  # (N, D)
    mean = target.mean(dim=0)

    def loss_of(rows: Tensor) -> Tensor:
        found = nn.functional.normalize(quantized(pictures[rows]), dim=1)
        whole = nn.functional.cosine_similarity(found, target[rows])
        centred = nn.functional.cosine_similarity(found - mean, target[rows] - mean)
        return (2 - whole - centred).mean()

    @torch.no_grad()
    def loss_of_all() -> float:
        batches = torch.split(torch.arange(len(pictures)), _BATCH)
        return sum(loss_of(rows).item() * len(rows) for rows in batches) / len(pictures)

    steps = [part.log_step for part in quantizers(quantized)]
    known = {id(parameter) for parameter in steps}
    weights = [parameter for parameter in quantized.parameters() if id(parameter) not in known]
    optimizer = torch.optim.AdamW(
        [{"params": weights, "lr": options.lr}, {"params": steps, "lr": 100 * options.lr}], weight_decay=0.0
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    chooser = torch.Generator().manual_seed(options.seed)
    quantized.eval()  # batch norms keep their statistics; the gradients do not mind
    best, kept = loss_of_all(), copy.deepcopy(quantized.state_dict())
    losses: list[float] = []
    while len(losses) < options.steps:
        for rows in torch.split(torch.randperm(len(pictures), generator=chooser), options.batch_size):
            loss = loss_of(rows)
            if not torch.isfinite(loss):
                raise TrainingError(f"the loss is not finite at step {len(losses) + 1}: lower the learning rate")
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            if progress:
                progress(len(losses), losses[-1])
            look = len(losses) % -(-options.steps // _LOOKS) == 0 or len(losses) == options.steps
            if look and (now := loss_of_all()) < best:
                best, kept = now, copy.deepcopy(quantized.state_dict())
            if len(losses) == options.steps:
                break
    quantized.load_state_dict(kept)
    return losses


def freeze(quantized: nn.Module) -> Any:
    """The module ready for export: no gradients, and plain numbers where ONNX wants them."""
    quantized.requires_grad_(requires_grad=False).eval()
    for part in quantizers(quantized):
        part.exported_step = float(part.log_step.exp().reshape(-1)[0])
    return quantized
