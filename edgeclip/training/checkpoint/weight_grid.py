"""Weights in, the nearest weights on an 8-bit grid out: they can be stored in a quarter of the space, exactly.

The grid is that of symmetric INT8 quantization with one scale a row: a weight is a whole level in [-127, 127] times the
scale of its row. Here it is a form of storage: the model computes in float32 with the weights that lie on it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import torch
from torch import Tensor

LEVELS = 127
# A scale keeps 15 significant bits and a level has 7, so their product is exact in float32: whoever multiplies them
# again, on any machine, gets the same bits.
_SCALE_BITS = 15
_LEVELS, _SCALE = ".levels", ".scale"  # ends of the names of what is stored of a packed tensor


def grid_scale(weight: Tensor) -> Tensor:
    """One scale for each row (first axis) of ``weight`` so that the row's largest magnitude is ``127 * scale``.

    Args:
        weight: (O, ...) float32.

    Returns:
        (O, 1, ...) float32; 1 for a row of zeros.
    """
    largest = weight.abs().amax(dim=tuple(range(1, weight.dim())), keepdim=True)
    mantissa, exponent = torch.frexp(largest / LEVELS)
    scale = torch.ldexp(torch.ceil(mantissa * 2**_SCALE_BITS) / 2**_SCALE_BITS, exponent)
    return torch.where(largest > 0, scale, torch.ones_like(scale))


def to_grid(weight: Tensor) -> Tensor:
    """The nearest weights ``level * scale`` with whole levels in [-127, 127] and one scale a row; float32."""
    scale = grid_scale(weight)
    return (weight / scale).round().clamp(-LEVELS, LEVELS) * scale


def without_negative_zeros(weight: Tensor) -> Tensor:
    """The same numbers, with 0.0 for -0.0: a level cannot hold a zero's sign, so ``pack_all`` would not pack it."""
    return weight + 0.0


def pack(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Levels int8 of the shape of ``weight``, and scales (O,) float32, of a weight that lies on the grid.

    Raises:
        ValueError: it does not.
    """
    scale = grid_scale(weight)
    levels = (weight / scale).round()
    if not torch.equal(levels * scale, weight):
        raise ValueError("expected a weight on the 8-bit grid: call to_grid first")
    return levels.to(torch.int8), scale.reshape(-1)


def unpack(levels: Tensor, scale: Tensor) -> Tensor:
    """The float32 weight of ``pack``, bit for bit."""
    return levels.float() * scale.reshape(-1, *[1] * (levels.dim() - 1))


def pack_all(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by name, those that lie on the grid as ``NAME.levels`` and ``NAME.scale``; ``unpack_all`` undoes it.

    Only matrices and kernels in float32 are packed, and only where every bit comes back.
    """
    packed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        if value.dim() >= 2 and value.dtype == torch.float32 and value.numel():
            with contextlib.suppress(ValueError):
                levels, scale = pack(value)
                if torch.equal(unpack(levels, scale).view(torch.int32), value.view(torch.int32)):  # -0.0 would not
                    packed[f"{name}{_LEVELS}"], packed[f"{name}{_SCALE}"] = levels, scale
                    continue
        packed[name] = value
    return packed


def unpack_all(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What was given to ``pack_all``, bit for bit."""
    bases = [name.removesuffix(_LEVELS) for name in tensors if name.endswith(_LEVELS)]
    parts = {f"{base}{end}" for base in bases for end in (_LEVELS, _SCALE)}
    plain = {name: value for name, value in tensors.items() if name not in parts}
    return plain | {base: unpack(tensors[f"{base}{_LEVELS}"], tensors[f"{base}{_SCALE}"]) for base in bases}
