"""A sequence of vectors in, the sequence after some pre-norm transformer blocks out; both our towers stand on it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani 2017).

    Args:
        width: C, a multiple of ``heads``.
        causal: a position sees itself and what is before it, nothing after.
    """

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, C) → (N, T, C)."""
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in self.qkv(x).chunk(3, dim=-1))
        y = scaled_dot_product_attention(q, k, v, is_causal=self.causal)  # (N, nh, T, hs)
        mixed: Tensor = self.out(y.transpose(1, 2).flatten(2))  # (N, T, nh * hs = C)
        return mixed


class Block(nn.Module):
    """Attention, then a two-layer perceptron, each normalised before and added to what came in."""

    def __init__(self, width: int, heads: int, *, mlp_ratio: float, causal: bool) -> None:
        super().__init__()
        hidden = round(width * mlp_ratio)
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, causal=causal)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, C) → (N, T, C)."""
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class Transformer(nn.Module):
    """``depth`` blocks and a last normalisation.

    Weights start as GPT-2's: normal with deviation 0.02, and what is added to the residual stream smaller by
    sqrt(2 * depth), so that the stream's size does not grow with depth. Biases start at 0.
    """

    def __init__(self, width: int, depth: int, heads: int, *, mlp_ratio: float = 4.0, causal: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio=mlp_ratio, causal=causal) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.checkpointing = False
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                added = name.endswith(("attention.out.weight", "mlp.2.weight"))
                nn.init.trunc_normal_(parameter, std=0.02 / (2 * depth) ** 0.5 if added else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, C) → (N, T, C)."""
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        out: Tensor = self.norm(x)
        return out
