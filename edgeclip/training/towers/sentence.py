"""A folder of a pretrained sentence encoder in, a text tower out: texts become one vector each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from edgeclip.documents import read_json
from edgeclip.errors import ModelError
from edgeclip.extras import require
from edgeclip.training.model import TextModule, check_vocabulary
from edgeclip.training.towers.quiet import downloads

MAX_TOKENS = 128
Pooling = Literal["mean", "cls"]


class SentenceEncoder(TextModule):
    """A bidirectional language model whose last layer is pooled to one unit vector (Reimers and Gurevych 2019).

    Attributes:
        width: of the vectors.
        bert: the language model. Digests of checkpoints hold this name, whatever the model's kind.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, *, pooling: Pooling = "mean") -> None:
        super().__init__()
        self.bert = model
        self.tokenizer = tokenizer  # of the library `tokenizers`, padding and truncation set
        self.pooling = pooling
        self.width = int(model.config.hidden_size)  # type: ignore[union-attr, arg-type]

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids and their mask, 1 on text and 0 on padding: (N, 2, L) int64; L is the longest of these texts."""
        encoded = self.tokenizer.encode_batch(list(texts))
        return torch.tensor([[item.ids, item.attention_mask] for item in encoded])

    def too_long(self, texts: Sequence[str]) -> list[str]:
        """Those of the texts that ``tokenize`` cuts."""
        encoded = self.tokenizer.encode_batch(list(texts))
        return [text for text, item in zip(texts, encoded, strict=True) if item.overflowing]

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, 2, L) int64 → unit vectors (N, T)."""
        ids, mask = tokens.unbind(dim=1)  # (N, L) each
        states = self.bert(input_ids=ids, attention_mask=mask).last_hidden_state  # (N, L, T)
        if self.pooling == "cls":
            pooled = states[:, 0]
        else:
            weights = mask.unsqueeze(-1).to(states.dtype)
            pooled = (states * weights).sum(dim=1) / weights.sum(dim=1)
        return nn.functional.normalize(pooled, dim=-1)

    @torch.inference_mode()
    def sentences(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors (N, T) of texts, without gradients."""
        vectors: Tensor = self(self.tokenize(texts))
        return vectors

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each layer in the backward pass instead of keeping its activations."""
        set_layers_checkpointing(self.bert, enable)

    def save_files(self, folder: Path) -> None:
        """Write what the tower is built again from, but its weights: configuration, tokenizer, pooling."""
        folder.mkdir(parents=True, exist_ok=True)
        self.bert.config.save_pretrained(folder)  # type: ignore[union-attr, operator]
        self.tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "1_Pooling").mkdir()
        settings = {"pooling_mode_cls_token": self.pooling == "cls", "pooling_mode_mean_tokens": self.pooling == "mean"}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings), encoding="utf-8")


def load_sentence_encoder(name: str, *, weights: bool = True) -> SentenceEncoder:
    """A sentence encoder of transformers, in float32 and eval mode.

    Args:
        name: a folder with ``config.json`` and ``tokenizer.json``, or a hub name. How it pools is read from
            ``1_Pooling/config.json``, as sentence-transformers writes it; without that file it is the mean.
        weights: load them too; otherwise they are random.

    Raises:
        ModelError: it cannot be found or read, lacks weights, or pools in another way.
    """
    transformers = require("transformers", purpose="encode text")
    tokenizers = require("tokenizers", purpose="encode text", extra="export")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    hub = require("transformers.utils.hub", purpose="encode text")
    with downloads(f"the sentence encoder {name}"):
        config = transformers.AutoConfig.from_pretrained(name)
        tokenizer = tokenizers.Tokenizer.from_file(hub.cached_file(name, "tokenizer.json"))
        found = hub.cached_file(
            name,
            "1_Pooling/config.json",
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        settings = read_json(Path(found), dict[str, Any], error=ModelError) if found else {}
        check_vocabulary(tokenizer.get_vocab_size(), int(config.vocab_size), name)
        model = _model(transformers, name, config, weights=weights)
    longest = min(MAX_TOKENS, int(getattr(config, "max_position_embeddings", MAX_TOKENS)))
    pad = int(config.pad_token_id or 0)
    tokenizer.enable_padding(pad_id=pad, pad_token=tokenizer.id_to_token(pad) or "[PAD]")
    tokenizer.enable_truncation(longest)
    return SentenceEncoder(model, tokenizer, pooling=_pooling(settings, name))


def set_layers_checkpointing(root: nn.Module, enable: bool) -> None:
    """Switch the recomputation of layers in every transformers model at or below ``root``."""
    transformers = require("transformers", purpose="train a transformers model")
    switch = "enable" if enable else "disable"
    for part in root.modules():
        if isinstance(part, transformers.PreTrainedModel) and part.supports_gradient_checkpointing:
            # transformers 5 has another name for it and warns of the old one.
            new = getattr(part, f"activation_checkpointing_{switch}", None)
            (new or getattr(part, f"gradient_checkpointing_{switch}"))()


def _model(transformers: Any, name: str, config: Any, *, weights: bool) -> Any:
    """The language model without its pooling layer, which sentence encoders do not use and often lack."""
    if weights:
        model, info = transformers.AutoModel.from_pretrained(name, output_loading_info=True)
        if missing := sorted(key for key in info["missing_keys"] if not key.startswith("pooler.")):
            raise ModelError(f"{name} lacks {len(missing)} weights ({missing[0]}, …): get the whole checkpoint")
    else:
        model = transformers.AutoModel.from_config(config)
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model.float().eval()


def _pooling(settings: dict[str, Any], name: str) -> Pooling:
    modes = {key.removeprefix("pooling_mode_") for key, on in settings.items() if key.startswith("pooling_mode") and on}
    if modes <= {"mean_tokens"}:
        return "mean"
    if modes == {"cls_token"}:
        return "cls"
    raise ModelError(f"expected {name} to pool by mean_tokens or cls_token, got {', '.join(sorted(modes))}")
