"""A vision transformer that is pooled at its class token in; the same with less to compute, for export, out.

What the last block makes of the patches goes nowhere: only the class token is pooled. Its attention needs keys and
values of every token, but one query; all after that is needed of one token. In ViT-B/32 that is 7 % of all products.
open_clip's attention besides is ``nn.MultiheadAttention``, which puts tokens before the batch and back again in every
block; written batch first it leaves an engine half the transposes, and a pattern that engines know.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention


def for_class_token(visual: nn.Module) -> nn.Module:
    """open_clip's ``VisionTransformer`` with blocks for export, the last for its class token only; others as they are.

    The copy shares all weights. Its tokens beside the pooled one, which CoCa returns too, are no longer there.
    """
    blocks = getattr(getattr(visual, "transformer", None), "resblocks", None)
    pooled = getattr(visual, "pool_type", None) == "tok" and getattr(visual, "attn_pool", None) is None
    # By name: what another block does between its norms is not known here.
    if not pooled or not blocks or {type(block).__name__ for block in blocks} != {"ResidualAttentionBlock"}:
        return visual
    if not all(block.attn.batch_first and block.attn.in_proj_bias is not None for block in blocks):
        return visual
    *others, last = blocks
    rewritten = [_OpenClipBlock(block) for block in others] + [_OpenClipBlock(last, queries=1)]
    return _replaced(visual, "transformer.resblocks", nn.ModuleList(rewritten))


def for_clip_class_token(vision_model: nn.Module) -> nn.Module:
    """transformers' CLIP vision tower with a last layer for its class token only; any other module as it is."""
    layers = getattr(getattr(vision_model, "encoder", None), "layers", None)
    if not layers or type(layers[-1]).__name__ != "CLIPEncoderLayer":
        return vision_model
    return _replaced(vision_model, f"encoder.layers.{len(layers) - 1}", _ClipLayer(layers[-1]))


class _OpenClipBlock(nn.Module):
    """The residual attention block of open_clip: (N, L, W) → (N, L, W), or the first ``queries`` tokens of it."""

    def __init__(self, block: Any, *, queries: int | None = None) -> None:
        super().__init__()
        self.block = block
        self.queries = queries
        attention = block.attn
        # Views, made here: a graph that slices a weight has none there that a quantizer would recognise.
        parts = [3] if queries is None else [1, 2]
        rows = [part * attention.embed_dim for part in parts]
        self.weights = nn.ParameterList(attention.in_proj_weight.detach().split(rows))
        self.biases = nn.ParameterList(attention.in_proj_bias.detach().split(rows))

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Batch first."""
        block = self.block
        assert attn_mask is None, "an image tower has no mask"
        attended = self._attend(block.ln_1(x))
        x = x[:, : self.queries] + block.ls_1(attended)
        out: Tensor = x + block.ls_2(block.mlp(block.ln_2(x)))
        return out

    def _attend(self, normed: Tensor) -> Tensor:
        if self.queries is None:
            query, key, value = linear(normed, self.weights[0], self.biases[0]).chunk(3, dim=-1)  # (N, L, W) each
        else:
            query = linear(normed[:, : self.queries], self.weights[0], self.biases[0])  # (N, queries, W)
            key, value = linear(normed, self.weights[1], self.biases[1]).chunk(2, dim=-1)  # (N, L, W) each
        attention = self.block.attn
        query, key, value = (_split(rows, attention.num_heads) for rows in (query, key, value))
        attended = scaled_dot_product_attention(query, key, value)
        out: Tensor = attention.out_proj(_join(attended))
        return out


class _ClipLayer(nn.Module):
    """The encoder layer of transformers' CLIP, (N, L, W) → its first token only (N, 1, W)."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **_: Any) -> Tensor:
        """A vision tower gives no mask."""
        layer, attention = self.layer, self.layer.self_attn
        assert attention_mask is None, "an image tower has no mask"
        normed = layer.layer_norm1(hidden_states)
        query, key, value = attention.q_proj(normed[:, :1]), attention.k_proj(normed), attention.v_proj(normed)
        query, key, value = (_split(rows, attention.num_heads) for rows in (query, key, value))
        attended = scaled_dot_product_attention(query, key, value, scale=attention.scale)
        x = hidden_states[:, :1] + attention.out_proj(_join(attended))  # (N, 1, W)
        out: Tensor = x + layer.mlp(layer.layer_norm2(x))
        return out


def _split(rows: Tensor, heads: int) -> Tensor:
    """(N, L, W) → (N, nh, L, W / nh)."""
    return rows.reshape(*rows.shape[:2], heads, -1).transpose(1, 2)


def _join(rows: Tensor) -> Tensor:
    """(N, nh, L, W / nh) → (N, L, W)."""
    return rows.transpose(1, 2).flatten(2)


def _replaced(module: nn.Module, path: str, part: nn.Module) -> nn.Module:
    """A copy with the part at a dotted path replaced; all else is shared with ``module``, which stays as it is."""
    head, _, rest = path.partition(".")
    copied = copy.copy(module)
    parts = dict(module._modules)
    below = parts[head]
    assert below is not None
    parts[head] = _replaced(below, rest, part) if rest else part
    copied._modules = parts
    return copied
