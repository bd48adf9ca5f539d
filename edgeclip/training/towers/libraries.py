"""The name of an architecture of timm or open_clip in, a tower of ours out."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from edgeclip.errors import ModelError, RecipeError
from edgeclip.extras import require
from edgeclip.spec import ModelOptions, PreprocessSpec
from edgeclip.training.checkpoint.state import read_state
from edgeclip.training.model import TextModule
from edgeclip.training.recipe import Tower
from edgeclip.training.towers.open_clip import OpenClipImageTower, OpenClipModel, OpenClipTextTower
from edgeclip.training.towers.open_clip_load import channels, load_open_clip
from edgeclip.training.towers.pretrained import ImageTower
from edgeclip.training.towers.quiet import downloads


def timm_image(name: str, tower: Tower, seed: int) -> ImageTower:  # noqa: ARG001 - the caller has set torch's seed
    """timm's ``name`` up to its pooled features.

    ``pretrained`` is a tag of timm's or a weights file; ``options.image_size`` another input size than its own.

    Raises:
        RecipeError: timm has no such architecture, or an option that is not taken.
        ModelError: its weights cannot be had.
    """
    timm = require("timm", purpose="build a timm image tower")
    size = _image_size(tower)
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        raise RecipeError(
            f"expected an architecture of timm, got {name!r}: did you mean {', '.join(near) or 'another'}?"
        )
    file = Path(tower.pretrained)
    options: dict[str, Any] = {"num_classes": 0}
    if tower.pretrained and file.is_file():
        options |= {"pretrained": True, "pretrained_cfg_overlay": {"file": str(file)}}  # leaves its classifier out
    elif tower.pretrained:  # a tag of the architecture
        name, options["pretrained"] = f"{architecture}.{tower.pretrained}", True
    with downloads(f"the timm tower {name}"):
        try:
            network = timm.create_model(name, **options, **({"img_size": size} if size else {}))
        except TypeError:  # a convolutional network takes any size and has no such argument
            network = timm.create_model(name, **options)
    if file.is_file() and size is None:
        _same_positions(network, file)
    config = timm.data.resolve_model_data_config(network)
    side = size or int(config["input_size"][-1])
    preprocess = PreprocessSpec(
        height=side,
        width=side,
        resize_to=max(side, math.floor(side / float(config["crop_pct"]))),
        interpolation="bilinear" if config["interpolation"] == "bilinear" else "bicubic",
        mean=channels(config["mean"]),
        std=channels(config["std"]),
    )
    return ImageTower(network, features_width(network, side), preprocess)


def _same_positions(network: nn.Module, file: Path) -> None:
    """Refuse weights of another image size, whose position embeddings timm has resampled."""
    own = getattr(network, "pos_embed", None)
    if not isinstance(own, Tensor) or file.suffix in {".npz", ".npy"}:
        return
    found = read_state(file).get("pos_embed")
    if found is not None and found.shape != own.shape:
        raise RecipeError(
            f"{file} has position embeddings of shape {tuple(found.shape)}, the tower {tuple(own.shape)}: give the "
            "image_size that is meant"
        )


def open_clip_image(name: str, tower: Tower, seed: int) -> ImageTower:
    """The image side of open_clip's ``name``, its own projection included.

    ``pretrained`` is a tag of open_clip's or a weights file; ``options`` are ``ModelOptions``.

    Raises:
        ModelError: unknown name or tag, or weights that cannot be had or do not fit.
        RecipeError: another option, or weights of other sizes than the options say.
    """
    model = OpenClipModel(name, tower.pretrained or None, seed=seed, options=_options(tower))
    _stated(tower, model.origin.options)
    (visual,) = model.image_modules()
    return ImageTower(OpenClipImageTower(visual), model.encoder.embedding_dim, model.encoder.preprocess, projects=True)


class OpenClipText(TextModule):
    """The text side of an open_clip model, its own projection included."""

    projects = True

    def __init__(self, text: OpenClipTextTower, width: int) -> None:
        super().__init__()
        (self.tower,) = text.modules()
        self.width = width
        self._text = text

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids (N, L) int64, padded to the model's context."""
        return self._text.tokenize(texts)

    def too_long(self, texts: Sequence[str]) -> list[str]:
        """Those of the texts that ``tokenize`` cuts."""
        return self._text.too_long(texts)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, L) int64 → (N, T)."""
        features: Tensor = self.tower(tokens)
        return features

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        for part in self.tower.modules():
            if hasattr(part, "grad_checkpointing"):
                part.grad_checkpointing = enable  # type: ignore[assignment]


def open_clip_text(name: str, tower: Tower, seed: int) -> TextModule:
    """The text side of open_clip's ``name``; as ``open_clip_image``."""
    loaded = load_open_clip(name, tower.pretrained or None, seed=seed, options=_options(tower))
    _stated(tower, loaded.options)
    return OpenClipText(OpenClipTextTower(loaded), loaded.source.config["embed_dim"])


def _options(tower: Tower) -> ModelOptions:
    try:
        return msgspec.convert(tower.options, ModelOptions)
    except msgspec.ValidationError as error:
        known = ", ".join(ModelOptions.__struct_fields__)
        raise RecipeError(f"options of the tower {tower.name} ({known}): {error}") from error


def _stated(tower: Tower, found: ModelOptions | msgspec.UnsetType) -> None:
    """Refuse sizes that only the weights say: a checkpoint is built again from its recipe."""
    said = _options(tower)
    if not isinstance(found, ModelOptions):
        return
    for name in ("image_size", "context_length"):
        if (size := getattr(found, name)) != getattr(said, name):
            raise RecipeError(f"{tower.pretrained} has {name} {size}: give it in the options of the tower {tower.name}")


def no_options(tower: Tower) -> None:
    """Refuse options of a tower that takes none.

    Raises:
        RecipeError: there are some.
    """
    if tower.options:
        raise RecipeError(
            f"expected no options for the tower {tower.name}, got {', '.join(tower.options)}: remove them"
        )


def features_width(module: nn.Module, side: int) -> int:
    """F, found by running one blank image of ``side`` pixels through an image tower."""
    training = module.training
    with torch.no_grad():
        features: Tensor = module.eval()(torch.zeros(1, 3, side, side))
    module.train(training)
    if features.dim() != 2:
        raise ModelError(f"expected pooled features (N, F) of an image tower, got shape {tuple(features.shape)}")
    return features.shape[1]


def _image_size(tower: Tower) -> int | None:
    others = tower.options.keys() - {"image_size"}
    size = tower.options.get("image_size")
    if others or not (size is None or (isinstance(size, int) and size > 0)):
        raise RecipeError(f"expected image_size in pixels as the only option of {tower.name}, got {tower.options}")
    return size
