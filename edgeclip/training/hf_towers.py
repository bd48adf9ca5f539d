"""A transformers model, from a folder or the hub, in; a tower of ours out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgeclip.errors import RecipeError
from edgeclip.extras import require
from edgeclip.training.library_towers import features_width, no_options
from edgeclip.training.model import TextModule
from edgeclip.training.quiet import downloads
from edgeclip.training.recipe import Tower
from edgeclip.training.sentence import load_sentence_encoder, set_layers_checkpointing
from edgeclip.training.towers import ImageTower
from edgeclip.training.transformers_model import (
    TransformersModel,
    TransformersTextTower,
    image_preprocess,
    is_contrastive,
)

NO_WEIGHTS = "none"


class HfImages(nn.Module):
    """The image side of a transformers model with one output, and the way to build it again.

    Args:
        network: (N, 3, H, W) → embeddings (N, F) where it is contrastive, else an output of transformers.
        config: of the whole model.
    """

    def __init__(self, network: nn.Module, config: Any, *, contrastive: bool) -> None:
        super().__init__()
        self.network = network
        self.contrastive = contrastive
        self._config = config

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) float32 → (N, F): the embedding, the class token, or the mean of a feature map."""
        if self.contrastive:
            return self.network(images)  # type: ignore[no-any-return]
        states: Tensor = self.network(pixel_values=images).last_hidden_state  # (N, 1 + T, F) or (N, F, h, w)
        return states[:, 0] if states.dim() == 3 else states.mean(dim=(2, 3))

    def save_files(self, folder: Path) -> None:
        """Write what the tower is built again from, but its weights."""
        self._config.save_pretrained(folder)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each layer in the backward pass instead of keeping its activations."""
        set_layers_checkpointing(self.network, enable)


class HfClipText(TextModule):
    """The text side of a CLIP or SigLIP model of transformers, its own projection included."""

    projects = True

    def __init__(self, text: TransformersTextTower, width: int, config: Any) -> None:
        super().__init__()
        self.parts = nn.ModuleList(text.modules())
        self.width = width
        self._text = text
        self._config = config

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids and their mask, 1 on what may be seen: (N, 2, L) int64."""
        ids, mask = self._text.tokenize(texts)
        return torch.stack([ids, torch.ones_like(ids) if mask is None else mask], dim=1)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, 2, L) int64 → (N, T)."""
        ids, mask = tokens.unbind(dim=1)
        return self._text.forward(ids, mask)

    def save_files(self, folder: Path) -> None:
        """Write what the tower is built again from, but its weights."""
        self._config.save_pretrained(folder)
        self._text.tokenizer.save_pretrained(folder)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each layer in the backward pass instead of keeping its activations."""
        set_layers_checkpointing(self.parts, enable)


def hf_image(name: str, tower: Tower, seed: int) -> ImageTower:  # noqa: ARG001 - the caller has set torch's seed
    """The image side of a CLIP or SigLIP model of transformers, or an image model of it.

    Raises:
        ModelError: it cannot be found or read, or its preprocessing cannot be stated.
        RecipeError: options, or another ``pretrained`` than empty and ``none``.
    """
    no_options(tower)
    weights = _with_weights(tower)
    config = configuration(name)
    if is_contrastive(config):
        model = TransformersModel(name, weights=weights)
        images = HfImages(model.exportable(), config, contrastive=True)
        return ImageTower(images, model.encoder.embedding_dim, model.encoder.preprocess, projects=True)
    transformers = require("transformers", purpose="load an image tower")
    with downloads(f"the image tower {name}"):
        automatic = transformers.AutoModel
        network = automatic.from_pretrained(name) if weights else automatic.from_config(config)
    preprocess = image_preprocess(name, config)
    images = HfImages(network.float().eval(), config, contrastive=False)
    return ImageTower(images, features_width(images, preprocess.height), preprocess)


def hf_text(name: str, tower: Tower, seed: int) -> TextModule:  # noqa: ARG001 - the caller has set torch's seed
    """The text side of a CLIP or SigLIP model of transformers, or a sentence encoder; raises as :func:`hf_image`."""
    no_options(tower)
    weights = _with_weights(tower)
    config = configuration(name)
    if not is_contrastive(config):
        return load_sentence_encoder(name, weights=weights)
    text = TransformersTextTower.load(name, weights=weights)
    width = config.projection_dim if config.model_type == "clip" else config.text_config.hidden_size
    return HfClipText(text, int(width), config)


def configuration(name: str) -> Any:
    """A transformers model's own configuration.

    Raises:
        ModelError: it cannot be had.
    """
    transformers = require("transformers", purpose="load a transformers model")
    with downloads(f"the transformers model {name}"):
        return transformers.AutoConfig.from_pretrained(name)


def _with_weights(tower: Tower) -> bool:
    if tower.pretrained not in {"", NO_WEIGHTS}:
        raise RecipeError(
            f"expected pretrained empty (the weights of {tower.name}) or none (random ones), got {tower.pretrained!r}"
        )
    return tower.pretrained != NO_WEIGHTS
