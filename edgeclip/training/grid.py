"""Weights in, the nearest weights on an 8-bit grid out: they can be stored in a quarter of the space, exactly."""

from __future__ import annotations

import torch
from torch import Tensor

LEVELS = 127
# A scale keeps 15 significant bits and a level has 7, so their product is exact in float32: whoever multiplies them
# again, on any machine, gets the same bits.
_SCALE_BITS = 15


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
    """The float32 weight of :func:`pack`, bit for bit."""
    return levels.float() * scale.reshape(-1, *[1] * (levels.dim() - 1))
