"""A ViT in, the same ViT that merges alike tokens in each block out: fewer products, nothing trained.

Token merging (ToMe: Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023). Between attention and perceptron of
each block the tokens are dealt in turn to two sets, even places and odd; each even token is matched with the odd one
whose attention key is most like its own, and the R best matched even tokens are averaged into their partners. A token
then stands for several patches: averages are weighted by how many, and attention adds the logarithm of that number to
its logits, as if every patch were still there (proportional attention). The class token, always at an even place, is
never merged.

R is fixed, so every shape is. Which tokens go where is written as comparisons and one product with a matrix of weights:
no sort, no scatter, nothing that an engine for edge devices would lack.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, scaled_dot_product_attention

from edgeclip.errors import InputError, ModelError
from edgeclip.training.towers.vit import VisionTransformer


def merge_tower(tower: nn.Module, merged: int, *, image_size: tuple[int, int], name: str) -> nn.Module:
    """A copy of an image tower whose blocks merge ``merged`` tokens each, or as many as are left to merge.

    A block of L tokens, one of them a class token or none, merges at most (L − 1) // 2 or L // 2 of them, as in ToMe.
    Where only the class token is pooled, the last block computes nothing else and merges nothing. Any other pooling
    sees each merged token once for every patch that it stands for.

    Args:
        tower: (N, 3, H, W) float32 → (N, D) float32; of our own ViT, open_clip's VisionTransformer, or CLIP's or
            SigLIP's of transformers, as ``ContrastiveModel.exportable`` gives it.
        merged: 0 leaves everything as it is, but for rounding.
        image_size: H and W, pixels.
        name: of the model, for errors.

    Raises:
        ModelError: another tower.
        InputError: ``merged`` is negative, or more than the first block can merge.
    """
    if merged < 0:
        raise InputError(f"expected a number of tokens to merge a block of at least 0, got {merged}")
    copied = copy.deepcopy(tower).eval()
    found = _find(copied, name)
    tokens = _count_tokens(copied, found.blocks[0], image_size)
    protected = int(found.class_token)
    most = (tokens - protected) // 2
    if merged > most:
        raise InputError(
            f"expected at most {most} tokens to merge a block, half of the {tokens - protected} patches of {name}, got "
            f"{merged}: choose fewer"
        )
    made: list[MergingBlock] = []
    for block in found.blocks:
        last = len(made) == len(found.blocks) - 1
        count = 0 if last and found.class_only else min(merged, (tokens - protected) // 2)
        made.append(
            MergingBlock(_read(block, name), Merge(tokens, count, protected), class_only=last and found.class_only)
        )
        tokens -= count
    # The tower's own loop over its blocks now goes round once.
    setattr(found.owner, found.attribute, nn.ModuleList([MergingBlocks(made, restores=not found.class_only)]))
    return copied.eval().requires_grad_(requires_grad=False)


class Merge(nn.Module):
    """Bipartite soft matching of L tokens, and the average of those matched best (ToMe, section 3).

    Args:
        tokens: L.
        count: how many of them are merged.
        protected: 1 if the first is a class token, else 0.
    """

    earlier: Tensor
    first: Tensor
    slots: Tensor
    order: Tensor

    def __init__(self, tokens: int, count: int, protected: int) -> None:
        super().__init__()
        even = (tokens + 1) // 2  # A; B = L - A are odd
        self.tokens = tokens
        self.count = count
        self.kept = even - count
        index = torch.arange(even)
        places = torch.arange(tokens)
        constants = {
            "earlier": (index[None, :] < index[:, None]).float(),  # (A, A)
            "first": (index < protected).float(),  # (A,), 1 for the class token
            "slots": torch.arange(tokens - count, dtype=torch.float32),  # (L - count,)
            "order": torch.where(places % 2 == 0, places // 2, even + places // 2),  # (L,), into evens before odds
        }
        for name, value in constants.items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, x: Tensor, sizes: Tensor, metric: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (N, L, C), sizes (N or 1, L) and keys (N, L, K) → tokens and sizes of L - count, and where each went.

        Returns:
            Tokens (N, L - count, C): first the even ones that are left, in their order, then the odd ones; their sizes
            (N, L - count); the new place (N, L) int64 of each token that came in.
        """
        unit = normalize(metric, dim=-1)
        similarity = unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)  # (N, A, B)
        best = similarity.amax(dim=-1)  # (N, A)
        partner = similarity.argmax(dim=-1).float()  # (N, A)

        # Ranks by counting, the earlier first of two alike: a library's sort might put them the other way. The class
        # token is before none and behind all. Constants come in before a sum: in batches above 1, OpenVINO 2026.4 on
        # CPUs loses a vector that is added to a maximum or a sum over the last axis.
        mine, others = best[:, :, None], best[:, None, :]
        ahead = (others > mine).float() + (others == mine).float() * self.earlier  # (N, A, A)
        rank = (ahead * (1 - self.first) + self.first[:, None]).sum(dim=-1)  # (N, A)
        goes = (rank < self.count).float()  # (N, A), 1 for those that are merged
        stays = 1 - goes
        place = goes * (self.kept + partner) + stays * (stays[:, None, :] * self.earlier).sum(dim=-1)  # (N, A)

        even, odd = sizes[:, None, ::2], sizes[:, 1::2]
        weights = (place[:, None, :] == self.slots[:, None]).float() * even  # (N, L - count, A)
        arriving = weights.sum(dim=-1)  # (N, L - count)
        grown = arriving[:, self.kept :] + odd  # (N, B)
        sizes = torch.cat([arriving[:, : self.kept], grown], dim=1)
        # Divided before the product, so that FP16 never sees a sum of many tokens; where nothing is added it is 1.
        moved = (weights / sizes[:, :, None]) @ x[:, ::2]  # (N, L - count, C)
        stayed = x[:, 1::2] * (odd / grown)[:, :, None]  # (N, B, C)
        x = torch.cat([moved[:, : self.kept], moved[:, self.kept :] + stayed], dim=1)

        odd_places = (self.kept + torch.arange(odd.shape[1])).expand(place.shape[0], -1)
        places = torch.cat([place.long(), odd_places], dim=1)
        return x, sizes, places.index_select(1, self.order)


class _Parts(NamedTuple):
    """What a block is made of, whichever library it comes from: ``weight`` (3C, C) and ``bias`` (3C,) of q, k and v."""

    weight: Tensor
    bias: Tensor
    out: nn.Module
    heads: int
    norm1: nn.Module
    norm2: nn.Module
    mlp: nn.Module
    scale1: nn.Module = nn.Identity()
    scale2: nn.Module = nn.Identity()


class MergingBlock(nn.Module):
    """A pre-norm transformer block that merges between attention and perceptron.

    Args:
        parts: of the block.
        merge: for the tokens that enter.
        class_only: whether only the first token leaves.
    """

    def __init__(self, parts: _Parts, merge: Merge, *, class_only: bool) -> None:
        super().__init__()
        width = parts.weight.shape[1]
        self.heads = parts.heads
        self.merge = merge
        self.class_only = class_only
        rows = [width, 2 * width] if class_only else [3 * width]
        pairs = zip(torch.split(parts.weight, rows), torch.split(parts.bias, rows), strict=True)
        self.projections = nn.ModuleList(_linear(weight, bias) for weight, bias in pairs)
        self.out, self.norm1, self.norm2, self.mlp = parts.out, parts.norm1, parts.norm2, parts.mlp
        self.scale1, self.scale2 = parts.scale1, parts.scale2

    def forward(self, x: Tensor, sizes: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Tokens (N, L, C) and their sizes (N, L), None for all 1 → the same after the block, and where each went."""
        normed = self.norm1(x)
        if self.class_only:
            query, rest = self.projections[0](normed[:, :1]), self.projections[1](normed)
            (key, value), x = rest.chunk(2, dim=-1), x[:, :1]
        else:
            query, key, value = self.projections[0](normed).chunk(3, dim=-1)  # (N, L, C) each
        query, key, value = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (query, key, value))
        bias = None if sizes is None else sizes.log()[:, None, None, :]  # (N, 1, 1, L)
        attended = scaled_dot_product_attention(query, key, value, attn_mask=bias)  # (N, nh, L, C / nh)
        x = x + self.scale1(self.out(attended.transpose(1, 2).flatten(2)))
        places = None
        if self.merge.count:
            ones = torch.ones(1, self.merge.tokens) if sizes is None else sizes
            x, sizes, places = self.merge(x, ones, key.mean(dim=1))
        return x + self.scale2(self.mlp(self.norm2(x))), sizes, places


class MergingBlocks(nn.Module):
    """All blocks of a tower, one after the other, in the place of one.

    Args:
        blocks: in their order.
        restores: whether each token is given once for every patch that it stands for, in the order of the patches.

    Attributes:
        tokens: how many enter each block, and last how many leave the last one.
    """

    def __init__(self, blocks: Sequence[MergingBlock], *, restores: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.restores = restores
        left = 1 if blocks[-1].class_only else blocks[-1].merge.tokens - blocks[-1].merge.count
        self.tokens = (*(block.merge.tokens for block in blocks), left)

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        """(N, T, C) → (N, T, C), or (N, 1, C) of the class token; what else a library gives (no mask) is left."""
        sizes: Tensor | None = None
        origin: Tensor | None = None  # (N, T) int64: the token that each patch is in
        for block in self.blocks:
            x, sizes, places = block(x, sizes)
            if places is not None:
                origin = places if origin is None else places.gather(1, origin)
        if not self.restores or origin is None:
            return x
        return (origin[:, :, None] == torch.arange(x.shape[1])).float() @ x


class _Found(NamedTuple):
    """Where a tower's blocks are, whether a class token is before the patches, and whether it alone is pooled."""

    owner: nn.Module
    attribute: str
    class_token: bool
    class_only: bool

    @property
    def blocks(self) -> list[nn.Module]:
        """The tower's own, which for export may be wrapped already."""
        return list(getattr(self.owner, self.attribute))


def _find(tower: nn.Module, name: str) -> _Found:
    for module in tower.modules():
        part: Any = module
        if isinstance(part, VisionTransformer):
            return _Found(part.transformer, "blocks", class_token=False, class_only=False)
        if hasattr(getattr(part, "transformer", None), "resblocks") and hasattr(part, "class_embedding"):
            class_only = part.pool_type == "tok" and part.attn_pool is None
            return _Found(part.transformer, "resblocks", class_token=True, class_only=class_only)
        if layers := list(getattr(getattr(part, "encoder", None), "layers", ())):
            clip = type(_unwrapped(layers[0])).__name__ == "CLIPEncoderLayer"
            return _Found(part.encoder, "layers", class_token=clip, class_only=clip)
    raise _unknown(name, "no such tower")


def _unknown(name: str, got: str) -> ModelError:
    return ModelError(
        "expected a ViT to merge tokens in (ours, open_clip's VisionTransformer, CLIP or SigLIP of transformers), got "
        f"{name} ({got}): export it without merging tokens"
    )


def _count_tokens(tower: nn.Module, block: nn.Module, image_size: tuple[int, int]) -> int:
    """How many tokens enter a block, found by running one blank image."""
    seen: list[int] = []
    hook = block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    with torch.inference_mode():
        tower(torch.zeros(1, 3, *image_size))
    hook.remove()
    return seen[0]


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    rows, columns = weight.shape
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, columns, rows)  # type: ignore[no-untyped-call]
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer


def _unwrapped(block: Any) -> Any:
    """A library's block, out of what ``training/towers/open_clip.py`` put around it."""
    return getattr(block, "block", getattr(block, "layer", block))


def _read(block: nn.Module, name: str) -> _Parts:
    inner = _unwrapped(block)
    kind = type(inner).__name__
    if kind not in _READERS or (kind == "ResidualAttentionBlock" and not inner.attn.batch_first):
        raise _unknown(name, f"blocks of type {kind}")
    return _READERS[kind](inner)


def _ours(block: Any) -> _Parts:
    attention = block.attention
    qkv, out = attention.qkv, attention.out
    return _Parts(qkv.weight, qkv.bias, out, attention.heads, block.norm1, block.norm2, block.mlp)


def _open_clip(block: Any) -> _Parts:
    attention = block.attn
    weight, bias, out = attention.in_proj_weight, attention.in_proj_bias, attention.out_proj
    return _Parts(weight, bias, out, attention.num_heads, block.ln_1, block.ln_2, block.mlp, block.ls_1, block.ls_2)


def _transformers(layer: Any) -> _Parts:
    attention = layer.self_attn
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    weight, bias = (torch.cat([getattr(part, what) for part in projections]) for what in ("weight", "bias"))
    heads, out = attention.num_heads, attention.out_proj
    return _Parts(weight, bias, out, heads, layer.layer_norm1, layer.layer_norm2, layer.mlp)


# By the type of a block.
_READERS: dict[str, Callable[[Any], _Parts]] = {
    "Block": _ours,
    "ResidualAttentionBlock": _open_clip,
    "CLIPEncoderLayer": _transformers,
    "SiglipEncoderLayer": _transformers,
}
