"""Images in, pooled features out: a small Vision Transformer that reads from top to bottom."""

from __future__ import annotations

import math
from typing import Annotated

import msgspec
import torch
from torch import Tensor, nn

from edgeclip.spec import PreprocessSpec
from edgeclip.training.towers.transformer import Transformer

_Size = Annotated[int, msgspec.Meta(ge=1)]


class VitOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sizes of a small ViT; the defaults are ViT-Ti/16 (Touvron 2021; 5.5 M parameters).

    Attributes:
        width: C of the tokens, a multiple of ``heads`` and of 4.
        depth, heads: blocks, and attention heads in each.
        patch: side of a patch, pixels.
        image_size: side of the input, pixels; a multiple of ``patch``.
        mlp_ratio: the perceptron's hidden width as a multiple of ``width``.
    """

    width: _Size = 192
    depth: _Size = 12
    heads: _Size = 3
    patch: _Size = 16
    image_size: _Size = 224
    mlp_ratio: Annotated[float, msgspec.Meta(gt=0)] = 4.0

    def __post_init__(self) -> None:
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"expected width as a multiple of heads ({self.heads}) and of 4, got {self.width}")
        if self.image_size % self.patch:
            raise ValueError(f"expected image_size as a multiple of patch ({self.patch}), got {self.image_size}")


class VisionTransformer(nn.Module):
    """ViT (Dosovitskiy 2021) with the plain choices of Beyer 2022: no class token, the output is the patches' mean.

    Positions are learned and start as the fixed sine and cosine grid, which small data sets need.

    Attributes:
        width: of the features.
        preprocess: what an image goes through before.
    """

    def __init__(self, options: VitOptions) -> None:
        super().__init__()
        side = options.image_size // options.patch
        self.width = options.width
        self.preprocess = PreprocessSpec(
            height=options.image_size,
            width=options.image_size,
            resize_to=options.image_size,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
        )
        self.patches = nn.Conv2d(3, options.width, options.patch, stride=options.patch)
        self.positions = nn.Parameter(position_grid(side, options.width))  # (T, C), T = side²
        self.transformer = Transformer(options.width, options.depth, options.heads, mlp_ratio=options.mlp_ratio)
        fan_in = 3 * options.patch**2
        nn.init.trunc_normal_(self.patches.weight, std=fan_in**-0.5)
        nn.init.zeros_(self.patches.bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) float32, preprocessed → (N, C) features."""
        x: Tensor = self.patches(images)  # (N, C, side, side)
        x = x.flatten(2).transpose(1, 2)  # (N, T, C)
        x = self.transformer(x + self.positions)  # (N, T, C)
        return x.mean(dim=1)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.transformer.checkpointing = enable


def position_grid(side: int, width: int, *, longest: float = 10_000.0) -> Tensor:
    """Sines and cosines of the row and the column of each cell of a grid: (side², width) float32.

    Args:
        width: a multiple of 4: sine and cosine of row and column at ``width / 4`` wavelengths each.
        longest: ratio of the longest to the shortest wavelength.
    """
    quarter = width // 4
    frequencies = torch.exp(-math.log(longest) * torch.arange(quarter) / max(quarter - 1, 1))  # (width / 4,)
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = [place.flatten()[:, None] * frequencies for place in (column, row)]  # each (side², width / 4)
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)
