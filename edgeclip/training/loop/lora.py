"""A module in, the same module with low-rank adapters to train out; and merged again, so that nothing of them is left.

LoRA (Hu 2021) trains ``weight + scale · B A`` with B and A of low rank, and leaves the weight itself alone. The
adapters are those of the library peft.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn

from edgeclip.errors import TrainingError
from edgeclip.extras import require
from edgeclip.training.recipe import LoraOptions
from edgeclip.training.two_tower import TwoTower

_ADAPTER = "edgeclip"
_LORA = ".lora_A."  # what peft calls the first half of an adapter
_SIDES = ("image", "text")


def apply_lora(module: nn.Module, options: LoraOptions | None = None) -> nn.Module:
    """Put adapters into a module, in place, and freeze everything else.

    The adapters begin as nothing: the module computes what it did. Train the parameters that ask for gradients, then
    call ``merge_lora``.

    Args:
        module: an image or text tower.
        options: by default rank 8 on all that can be adapted.

    Returns:
        ``module``.

    Raises:
        TrainingError: a rank below 1, or no layer to adapt.
        MissingExtraError: peft is not installed.
    """
    options = options or LoraOptions()
    if options.rank < 1 or options.alpha <= 0 or not 0 <= options.dropout < 1:
        raise TrainingError(
            f"expected a rank of at least 1, alpha above 0 and dropout in [0, 1), got {options.rank}, "
            f"{options.alpha}, {options.dropout}"
        )
    peft = require("peft", purpose="train with LoRA")
    names = adaptable(module, options.layers)
    if not names:
        raise TrainingError(
            f"expected linear layers, attention or 1×1 convolutions to adapt in {type(module).__name__}, got none"
            + (f" whose names hold {', '.join(options.layers)}" if options.layers else "")
        )
    config = peft.LoraConfig(
        r=options.rank, lora_alpha=options.alpha, lora_dropout=options.dropout, target_modules=names, bias="none"
    )
    peft.inject_adapter_in_model(config, module, adapter_name=_ADAPTER)
    return module


def merge_lora(module: nn.Module) -> nn.Module:
    """Add every adapter to its weight and take it out, in place: the names of the parameters are the old ones again.

    Returns:
        ``module``, frozen as ``apply_lora`` left its own weights.

    Raises:
        TrainingError: there is no adapter in it.
    """
    tuners = require("peft.tuners.tuners_utils", purpose="merge LoRA", extra="train")
    found: dict[str, nn.Module] = {}
    for name, part in module.named_modules():
        inside = any(name.startswith(f"{above}.") for above in found)  # attention merges its own output projection
        if isinstance(part, tuners.BaseTunerLayer) and not inside:
            found[name] = part
    if not found:
        raise TrainingError(f"expected adapters to merge in {type(module).__name__}, got none: call apply_lora first")
    for name, adapted in found.items():
        part = cast("Any", adapted)
        if isinstance(part.get_base_layer(), nn.MultiheadAttention):
            whole = part.unload_and_optionally_merge_module(merge=True, safe_merge=True, adapter_names=None)
        else:
            part.merge(safe_merge=True)
            whole = part.get_base_layer()
        parent, _, own = name.rpartition(".")
        setattr(module.get_submodule(parent), own, whole)
    return module


def apply_to_towers(two_tower: TwoTower, options: LoraOptions) -> None:
    """Put adapters into every tower that is trained, in place; projections and temperature are trained as they were.

    Raises:
        TrainingError, MissingExtraError: as ``apply_lora``.
    """
    for side in _SIDES:
        tower = getattr(two_tower, side)
        if side not in two_tower.locked and next(tower.parameters(), None) is not None:  # a student has no text tower
            apply_lora(tower, options)


def merged_weights(two_tower: TwoTower, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a model with adapters in, those of the same model without them out; the model stays as it is.

    Args:
        two_tower: from ``apply_to_towers``.
        state: its weights, on the CPU, or others of the same names, such as averaged ones.
    """
    merged = dict(state)
    for side in _SIDES:
        prefix = f"{side}."
        own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        if any(_LORA in name for name in own):
            tower = copy.deepcopy(getattr(two_tower, side)).cpu()
            tower.load_state_dict(own)
            merged = {name: value for name, value in merged.items() if not name.startswith(prefix)}
            merged.update({f"{prefix}{name}": value for name, value in merge_lora(tower).state_dict().items()})
    return merged


def adaptable(module: nn.Module, layers: tuple[str, ...] = ()) -> list[str]:
    """Names of the layers that can be adapted; attention counts as one, its own projections are not named again."""
    names: list[str] = []
    for name, part in module.named_modules():
        inside = any(name.startswith(f"{above}.") for above in names)
        pointwise = isinstance(part, nn.Conv2d) and part.kernel_size == (1, 1) and part.groups == 1
        wanted = not layers or any(layer in name for layer in layers)
        if name and not inside and wanted and (isinstance(part, nn.Linear | nn.MultiheadAttention) or pointwise):
            names.append(name)
    return names
