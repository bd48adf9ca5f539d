"""An open_clip name and pretrained tag in, a ContrastiveModel out; its image tower with less to compute for export.

What the last block of a vision transformer makes of the patches goes nowhere where only the class token is pooled. Its
attention needs keys and values of every token, but one query; all after that is needed of one token. In ViT-B/32 that
is 7 % of all products. open_clip's attention besides is ``nn.MultiheadAttention``, which puts tokens before the batch
and back again in every block; written batch first it leaves an engine half the transposes, and a pattern that engines
know. transformers' CLIP has the same last block, and ``for_clip_class_token`` does the same to it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from edgeclip.extras import require
from edgeclip.prompts import FloatArray
from edgeclip.spec import NO_OPTIONS, EncoderSpec, ModelOptions, ModelOrigin
from edgeclip.training.model import ContrastiveModel, TextTower, check_vocabulary
from edgeclip.training.towers.open_clip_load import FOLDER, HUB, Loaded, load_open_clip, preprocess_of
from edgeclip.training.towers.quiet import downloads
from edgeclip.training.towers.text import cut_texts

Tokenizer = Callable[[list[str]], Tensor]


class OpenClipModel(ContrastiveModel):
    """A model of open_clip, in eval mode and float32 on the CPU.

    Args:
        name: an open_clip model name, e.g. ``ViT-B-32`` (``open_clip.list_models()``), or ``local-dir:FOLDER`` or
            ``hf-hub:ORG/NAME`` with ``open_clip_config.json``.
        pretrained: a tag of that model, or the path of a checkpoint file; ``"none"`` for random weights, and so is
            None but for a folder or the hub, where it means their own.
        seed: of the random weights; recorded in the origin.
        options: what is known of the model beside.

    Raises:
        ModelError: unknown name or tag, weights that cannot be had or do not fit, or preprocessing that nobody states
            or a PreprocessSpec cannot.
    """

    def __init__(
        self, name: str, pretrained: str | None = None, *, seed: int = 0, options: ModelOptions = NO_OPTIONS
    ) -> None:
        loaded = load_open_clip(name, pretrained, seed=seed, options=options)
        model, tag, random = loaded.model, loaded.source.tag, loaded.source.weights is None
        self._model = model
        called = Path(name).name if name.startswith(FOLDER) else name
        self.name = f"{called} ({tag or f'random, seed {seed}'})" if tag or random else called
        self.origin = ModelOrigin(
            loader="open_clip",
            name=name,
            pretrained="none" if random and name.startswith((FOLDER, HUB)) else tag,
            seed=seed if random else None,
            options=msgspec.UNSET if loaded.options == NO_OPTIONS else loaded.options,
        )
        self.text = OpenClipTextTower(loaded)
        self.encoder = EncoderSpec(
            preprocess=preprocess_of(loaded, options, random=random),
            embedding_dim=loaded.source.config["embed_dim"],
            logit_scale=float(model.logit_scale.detach().exp().reshape(())),
            logit_bias=0.0 if model.logit_bias is None else float(model.logit_bias.detach().reshape(())),
            score="softmax" if model.logit_bias is None else "sigmoid",
        )
        self.notes = tuple(loaded.notes)

    def encode_image(self, images: Tensor) -> Tensor:
        """open_clip's own ``encode_image``: (N, 3, H, W) float32 → (N, D) float32, not normalised."""
        with torch.inference_mode():
            embeddings: Tensor = self._model.encode_image(images, normalize=False)
        return embeddings.float()

    def exportable(self) -> nn.Module:
        """The image tower; train-time branches (MobileCLIP's FastViT, RepVGG blocks) are merged in a copy."""
        return OpenClipImageTower(for_class_token(merge_branches(self._model.visual))).eval()

    def image_modules(self) -> Sequence[nn.Module]:
        """The image tower, as loaded."""
        return [self._model.visual]


class OpenClipImageTower(nn.Module):
    """``visual`` with one output: CoCa's tower also returns its tokens."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) float32 → (N, D) float32."""
        output = self.visual(image)
        embedding: Tensor = output[0] if isinstance(output, tuple) else output
        return embedding

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.visual.set_grad_checkpointing(enable)  # type: ignore[operator]


class OpenClipTextTower(TextTower):
    """Text side of an open_clip model; the tokenizer is made when the first text comes (some must be downloaded)."""

    def __init__(self, loaded: Loaded) -> None:
        self._name = loaded.source.name
        self._context = loaded.context_length
        self._vocabulary = loaded.vocabulary
        model = loaded.model
        # CLIP keeps its text layers at its own root; CustomTextCLIP and CoCa in `.text`.
        source = model if not hasattr(model, "text") else model.text
        self._module: nn.Module = CausalText(source) if _only_looks_back(source) else FullText(source)
        self._module.eval()
        self._tokenizer: Tokenizer | None = None

    def encode_text(self, texts: Sequence[str]) -> FloatArray:
        """Tokenize and encode; embeddings (N, D) float32, not normalised.

        Raises:
            ModelError: the tokenizer's files cannot be had.
        """
        return self.encode_tokens(self.tokenize(texts))

    def encode_tokens(self, tokens: Tensor) -> FloatArray:
        """Token ids (N, L) int64, padded to the model's context → embeddings (N, D) float32."""
        with torch.inference_mode():
            embeddings: FloatArray = self._module(tokens).float().numpy()
        return embeddings

    def modules(self) -> Sequence[nn.Module]:
        """The text layers."""
        return [self._module]

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids (N, L) int64, padded to the model's context; raises as ``encode_text`` does."""
        return self.tokenizer(list(texts))

    def too_long(self, texts: Sequence[str]) -> list[str]:
        """Those of the texts that ``tokenize`` cuts."""
        return cut_texts(self.tokenizer, texts, self._context)

    @property
    def tokenizer(self) -> Tokenizer:
        """open_clip's tokenizer, made when it is first asked for; raises as ``encode_text`` does."""
        if self._tokenizer is None:
            open_clip = require("open_clip", purpose="tokenize text")
            with downloads(f"the tokenizer of {self._name}"):
                made = open_clip.get_tokenizer(self._name, context_length=self._context)
            of_library = getattr(made, "tokenizer", None)  # of transformers, where there is one
            check_vocabulary(made.vocab_size if of_library is None else len(of_library), self._vocabulary, self._name)
            self._tokenizer = made
        return self._tokenizer


class FullText(nn.Module):
    """A text tower run at its full context: its padding is attended to (MobileCLIP, SigLIP) or pooled from."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        if hasattr(source, "visual"):  # CLIP's root: take the text layers only
            source = _TextLayers(source)
        self.tower = source

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, L) int64 → (N, D) float32."""
        output = self.tower(tokens)
        embedding: Tensor = output[0] if isinstance(output, tuple) else output
        return embedding


class _TextLayers(nn.Module):
    """The layers of an open_clip text transformer, shared with the model they come from."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.attn_mask: Tensor | None
        self.token_embedding = source.token_embedding
        self.positional_embedding = source.positional_embedding
        self.transformer = source.transformer
        self.ln_final = source.ln_final
        self.text_projection = source.text_projection
        self.register_buffer("attn_mask", source.attn_mask, persistent=False)
        self.pool_type, self.eos_id = _pooling(source)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, L) int64 → (N, D) float32; what ``open_clip.CLIP.encode_text`` does, for any L up to the context."""
        pool = require("open_clip.transformer", purpose="encode text").text_global_pool
        length = tokens.shape[1]
        mask = None if self.attn_mask is None else self.attn_mask[:length, :length]
        x = self.token_embedding(tokens) + self.positional_embedding[:length]  # (N, L, W)
        x = self.ln_final(self.transformer(x, attn_mask=mask))
        pooled: Tensor = pool(x, tokens, self.pool_type, eos_token_id=self.eos_id)  # (N, W)
        if isinstance(self.text_projection, nn.Linear):
            return self.text_projection(pooled)  # type: ignore[no-any-return]
        return pooled if self.text_projection is None else pooled @ self.text_projection


class CausalText(_TextLayers):
    """A causal text tower pooled at its end-of-text token, run only as far as the longest prompt of the batch.

    Under a causal mask a token sees nothing after it, so what follows end-of-text cannot change the embedding.
    """

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, L) int64 → (N, D) float32."""
        ends = tokens.argmax(dim=1) if self.pool_type == "argmax" else tokens.eq(self.eos_id or 0).int().argmax(dim=1)
        return super().forward(tokens[:, : int(ends.max()) + 1])


def _pooling(source: Any) -> tuple[str, int | None]:
    """How a text tower pools and its end-of-text id; CLIP's root spells both with a prefix."""
    prefix = "text_" if hasattr(source, "text_pool_type") else ""
    return getattr(source, f"{prefix}pool_type"), getattr(source, f"{prefix}eos_id", None)


def _only_looks_back(source: Any) -> bool:
    """Whether the text tower is causal and pooled at end-of-text, with no appended class token (CoCa) or pad mask."""
    if getattr(source, "attn_mask", None) is None or not hasattr(source, "positional_embedding"):
        return False
    extra = getattr(source, "cls_emb", None) is not None or getattr(source, "use_pad_mask", False)
    return _pooling(source)[0] in {"argmax", "eos"} and not extra


def merge_branches(module: nn.Module) -> nn.Module:
    """A copy with re-parameterisable branches merged (timm), or the module itself where there are none."""
    if not any(
        hasattr(part, how) for part in module.modules() for how in ("fuse", "reparameterize", "switch_to_deploy")
    ):
        return module
    timm_utils = require("timm.utils", purpose="merge a model's training branches")
    merged: nn.Module = timm_utils.reparameterize_model(copy.deepcopy(module).eval(), inplace=True)
    return merged


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
