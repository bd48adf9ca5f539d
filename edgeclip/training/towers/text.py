"""Texts in, features out: CLIP's causal text transformer at any size, with open_clip's byte-pair tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import torch
from torch import Tensor, nn

from edgeclip.extras import require
from edgeclip.training.model import TextModule
from edgeclip.training.towers.transformer import Transformer

VOCABULARY = 49408  # CLIP's; its last id is end-of-text
_Size = Annotated[int, msgspec.Meta(ge=1)]


class TextOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sizes of a small text transformer; most of the weights are the table of tokens (49,408 × width).

    Attributes:
        width: C of the tokens, a multiple of ``heads``.
        depth, heads: blocks, and attention heads in each.
        context: tokens at most, with start and end of text; what is longer is cut.
    """

    width: _Size = 256
    depth: _Size = 6
    heads: _Size = 4
    context: Annotated[int, msgspec.Meta(ge=3)] = 77

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"expected width as a multiple of heads ({self.heads}), got {self.width}")


def cut_texts(tokenizer: Any, texts: Sequence[str], context: int) -> list[str]:
    """Those of the texts that an open_clip tokenizer cuts to ``context`` tokens.

    A text that fits has the same tokens where there is room for one more, and padding after them.
    """
    if not texts:
        return []
    narrow: Tensor = tokenizer([*texts, ""], context_length=context)  # (N + 1, L)
    wide: Tensor = tokenizer([*texts, ""], context_length=context + 1)  # (N + 1, L + 1)
    fits = (wide[:, :-1] == narrow).all(dim=1) & (wide[:, -1] == wide[-1, -1])
    return [text for text, whole in zip(texts, fits.tolist(), strict=False) if not whole]


class TextTransformer(TextModule):
    """The text tower of CLIP (Radford 2021, section 2.4): causal attention, pooled at the end-of-text token.

    Attributes:
        width: of the features.
    """

    def __init__(self, options: TextOptions) -> None:
        super().__init__()
        tokenizers = require("open_clip.tokenizer", purpose="tokenize text")
        self.tokenizer = tokenizers.SimpleTokenizer(context_length=options.context)
        self.width = options.width
        self.tokens = nn.Embedding(VOCABULARY, options.width)
        self.positions = nn.Parameter(torch.empty(options.context, options.width))
        self.transformer = Transformer(options.width, options.depth, options.heads, causal=True)
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.01)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids (N, L) int64; L is the longest of these texts, 0 after the end of the others."""
        ids: Tensor = self.tokenizer(list(texts))  # (N, context)
        return ids[:, : int(ids.argmax(dim=1).max()) + 1]

    def too_long(self, texts: Sequence[str]) -> list[str]:
        """Those of the texts that ``tokenize`` cuts."""
        return cut_texts(self.tokenizer, texts, self.tokenizer.context_length)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, L) int64 → (N, C). What follows end-of-text is never looked at: attention is causal."""
        x: Tensor = self.tokens(tokens) + self.positions[: tokens.shape[1]]  # (N, L, C)
        x = self.transformer(x)  # (N, L, C)
        end = tokens.argmax(dim=1)  # (N,), end-of-text is the largest id
        return x[torch.arange(len(x), device=x.device), end]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.transformer.checkpointing = enable
