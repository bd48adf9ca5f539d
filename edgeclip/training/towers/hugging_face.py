"""A transformers model, from a local folder or the Hugging Face hub, in; a ContrastiveModel or a tower of ours out.

CLIP and SigLIP models are used whole (``TransformersModel``). A recipe's tower ``hf:NAME`` is one side of such a model,
or an image model or sentence encoder of any other family (``hf_image``, ``hf_text``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgeclip.documents import read_json
from edgeclip.errors import ModelError, RecipeError
from edgeclip.extras import require
from edgeclip.prompts import FloatArray
from edgeclip.spec import Channels, EncoderSpec, ModelOrigin, PreprocessSpec, ScoreKind
from edgeclip.training.checkpoint.state import few
from edgeclip.training.model import ContrastiveModel, TextModule, TextTower, check_vocabulary
from edgeclip.training.recipe import Tower
from edgeclip.training.towers.libraries import features_width, no_options
from edgeclip.training.towers.open_clip import for_clip_class_token
from edgeclip.training.towers.pretrained import ImageTower
from edgeclip.training.towers.quiet import downloads
from edgeclip.training.towers.sentence import load_sentence_encoder, set_layers_checkpointing

NO_WEIGHTS = "none"
_RESAMPLE = {2: "bilinear", 3: "bicubic"}  # PIL.Image.Resampling


@dataclass(frozen=True)
class _Family:
    """What differs between the families; ``model`` and ``text_model`` are class names in transformers.

    Attributes:
        square: whether a resize to one number means a square (SigLIP) or the shorter side (CLIP).
        masked: whether text padding is masked and may be short; SigLIP was trained on unmasked, full-length padding.
        lowercase: SigLIP's texts were lower-cased for training, which not all of its tokenizers do.
    """

    model: str
    text_model: str
    score: ScoreKind
    mean: Channels
    std: Channels
    square: bool
    masked: bool
    lowercase: bool


_CLIP = _Family(
    model="CLIPModel",
    text_model="CLIPTextModelWithProjection",
    score="softmax",
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
    square=False,
    masked=True,
    lowercase=False,
)
_SIGLIP = _Family(
    model="SiglipModel",
    text_model="SiglipTextModel",
    score="sigmoid",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    square=True,
    masked=False,
    lowercase=True,
)
# By `model_type` in config.json. Fixed-resolution SigLIP 2 checkpoints say "siglip"; "siglip2" is NaFlex, whose input
# is a sequence of patches and not an image.
_FAMILIES = {"clip": _CLIP, "siglip": _SIGLIP}


class TransformersModel(ContrastiveModel):
    """A CLIP or SigLIP model of transformers, in eval mode and float32 on the CPU.

    Args:
        name: a local folder with ``config.json``, or a hub name such as ``openai/clip-vit-base-patch32``.
        weights: load them; otherwise they are random.

    The preprocessing is read from ``preprocessor_config.json``. Without that file it is taken from the model: its
    ``image_size``, the family's mean and std, bicubic, shortest side and centre crop for CLIP, squash for SigLIP.

    Raises:
        ModelError: not found, of an unsupported family, with missing weights, or preprocessing that a PreprocessSpec
            cannot state.
    """

    def __init__(self, name: str, *, weights: bool = True) -> None:
        config, family = _contrastive_configuration(name)
        model = _load(name, family.model, config, weights=weights)
        self._model = model
        self.name = name
        self.origin = ModelOrigin(loader="transformers", name=name)
        self.text = TransformersTextTower(name, family, model)
        settings = _processor_config(name)
        if weights and not settings:
            self.notes = (
                f"{name} has no preprocessor_config.json: images are prepared as is usual for a {config.model_type}",
            )
        self.encoder = EncoderSpec(
            preprocess=_preprocess_spec(settings, family, int(config.vision_config.image_size)),
            embedding_dim=config.projection_dim if family is _CLIP else config.vision_config.hidden_size,
            logit_scale=float(model.logit_scale.detach().exp().reshape(())),
            logit_bias=float(model.logit_bias.detach().reshape(())) if hasattr(model, "logit_bias") else 0.0,
            score=family.score,
        )

    def encode_image(self, images: Tensor) -> Tensor:
        """transformers' own ``get_image_features``: (N, 3, H, W) float32 → (N, D) float32, not normalised."""
        with torch.inference_mode():
            return _features(self._model.get_image_features(pixel_values=images))

    def exportable(self) -> nn.Module:
        """Vision tower and projection in one module."""
        vision = for_clip_class_token(self._model.vision_model)
        return TransformersImageTower(vision, getattr(self._model, "visual_projection", None)).eval()

    def image_modules(self) -> Sequence[nn.Module]:
        """Vision tower, then the projection if there is one."""
        return _present(self._model.vision_model, getattr(self._model, "visual_projection", None))


class TransformersImageTower(nn.Module):
    """Vision tower and projection with one named input and one output."""

    def __init__(self, vision_model: nn.Module, projection: nn.Module | None) -> None:
        super().__init__()
        self.vision_model = vision_model
        self.projection = projection

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) float32 → (N, D) float32."""
        pooled = _features(self.vision_model(pixel_values=image))
        return pooled if self.projection is None else self.projection(pooled)


class TransformersTextTower(TextTower):
    """Text side of a transformers model; the tokenizer is loaded when the first text comes."""

    def __init__(self, name: str, family: _Family, model: Any) -> None:
        self._name = name
        self._family = family
        # Older transformers wrap SigLIP's text tower in `.text_model`; newer ones are the tower.
        self._tower = getattr(model, "text_model", model)
        self._projection = getattr(model, "text_projection", None)
        self._tokenizer: Any = None

    @classmethod
    def load(cls, name: str, *, weights: bool = True) -> TransformersTextTower:
        """Load the text tower without the image tower; with random weights if not ``weights``.

        Raises:
            ModelError: as for ``TransformersModel``.
        """
        config, family = _contrastive_configuration(name)
        if family is _CLIP:  # the model goes by the width written at the top, the text tower alone by its own copy
            config.text_config.projection_dim = config.projection_dim
        return cls(name, family, _load(name, family.text_model, config.text_config, weights=weights))

    def encode_text(self, texts: Sequence[str]) -> FloatArray:
        """Tokenize and encode; embeddings (N, D) float32, not normalised.

        Raises:
            ModelError: the tokenizer's files cannot be had.
        """
        return self.encode_tokens(*self.tokenize(texts))

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """Token ids (N, L) int64 and, for CLIP, a mask of 1 for text; raises as ``encode_text`` does."""
        batch = self.tokenizer(
            [text.lower() for text in texts] if self._family.lowercase else list(texts),
            padding="longest" if self._family.masked else "max_length",
            truncation=True,
            max_length=self._tower.config.max_position_embeddings,
            return_tensors="pt",
        )
        return batch["input_ids"], batch["attention_mask"] if self._family.masked else None

    def too_long(self, texts: Sequence[str]) -> list[str]:
        """Those of the texts that ``tokenize`` cuts."""
        lowered = [text.lower() for text in texts] if self._family.lowercase else list(texts)
        ids = self.tokenizer(lowered, truncation=False, verbose=False)["input_ids"] if lowered else []
        longest = self._tower.config.max_position_embeddings
        return [text for text, tokens in zip(texts, ids, strict=True) if len(tokens) > longest]

    @property
    def tokenizer(self) -> Any:
        """transformers' tokenizer, loaded when it is first asked for; raises as ``encode_text`` does."""
        if self._tokenizer is None:
            transformers = require("transformers", purpose="tokenize text")
            with downloads(f"the tokenizer of {self._name}"):
                made = transformers.AutoTokenizer.from_pretrained(self._name)
            # Of a folder without a tokenizer transformers makes one of two tokens.
            check_vocabulary(len(made), int(self._tower.config.vocab_size), self._name)
            self._check_end(made)
            self._tokenizer = made
        return self._tokenizer

    def _check_end(self, tokenizer: Any) -> None:
        """Refuse a tokenizer whose texts do not end in the token that CLIP takes the embedding from."""
        ids = tokenizer("a")["input_ids"]
        wanted = self._tower.config.eos_token_id
        # CLIP's first configurations say 2 and mean the largest id.
        if self._family is _CLIP and ids[-1] != (max(ids) if wanted == 2 else wanted):
            raise ModelError(
                f"expected a tokenizer whose texts end in token {wanted}, where {self._name} takes the embedding, got "
                f"{ids[-1]}: put the model's own tokenizer files beside its weights"
            )

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Token ids (N, L) int64 and, for CLIP, a mask (N, L) of 1 for text and 0 for padding → (N, D) float32."""
        pooled = _features(self._tower(input_ids=tokens, attention_mask=mask))
        return pooled if self._projection is None else self._projection(pooled)

    def encode_tokens(self, tokens: Tensor, mask: Tensor | None = None) -> FloatArray:
        """``forward`` without gradients, as an array."""
        with torch.inference_mode():
            embeddings: FloatArray = self.forward(tokens, mask).numpy()
        return embeddings

    def modules(self) -> Sequence[nn.Module]:
        """Text tower, then the projection if there is one."""
        return _present(self._tower, self._projection)


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
    """The text side of a CLIP or SigLIP model of transformers, or a sentence encoder; raises as ``hf_image``."""
    no_options(tower)
    weights = _with_weights(tower)
    config = configuration(name)
    if not is_contrastive(config):
        return load_sentence_encoder(name, weights=weights)
    text = TransformersTextTower.load(name, weights=weights)
    width = config.projection_dim if config.model_type == "clip" else config.text_config.hidden_size
    return HfClipText(text, int(width), config)


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

    def too_long(self, texts: Sequence[str]) -> list[str]:
        """Those of the texts that ``tokenize`` cuts."""
        return self._text.too_long(texts)

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


def is_contrastive(config: Any) -> bool:
    """Whether a transformers configuration is that of a CLIP or SigLIP model."""
    return config.model_type in _FAMILIES


def configuration(name: str) -> Any:
    """A transformers model's own configuration.

    Raises:
        ModelError: it cannot be had.
    """
    transformers = require("transformers", purpose="load a transformers model")
    with downloads(f"the transformers model {name}"):
        return transformers.AutoConfig.from_pretrained(name)


def _contrastive_configuration(name: str) -> tuple[Any, _Family]:
    if not Path(name).is_dir() and (name.startswith((".", "/", "~")) or name.count("/") != 1):
        raise ModelError(f"expected a folder with config.json or a hub name (org/model), got {name!r}: no such folder")
    config = configuration(name)
    if config.model_type not in _FAMILIES:
        supported = ", ".join(_FAMILIES)
        raise ModelError(f"expected a transformers model of type {supported}, got {config.model_type} ({name})")
    return config, _FAMILIES[config.model_type]


def _load(name: str, class_name: str, config: Any, *, weights: bool) -> Any:
    """Load with every weight accounted for: transformers would fill a missing one with random numbers."""
    transformers = require("transformers", purpose="load a transformers model")
    if not weights:
        return getattr(transformers, class_name)(config).float().eval()
    with downloads(f"the transformers model {name}"):
        model, info = getattr(transformers, class_name).from_pretrained(
            name,
            config=config,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
        )
    missing, unknown = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    if others := [
        f"{key}: {tuple(own)} by its config, {tuple(found)} in the file" for key, found, own in info["mismatched_keys"]
    ]:
        raise ModelError(
            f"the weights of {name} do not fit its config.json: {few(others)} differ in shape; give both of one model"
        )
    if missing:
        said = f", and holds others ({few(unknown)})" if unknown else ""
        raise ModelError(f"{name} lacks {len(missing)} weights ({few(missing)}){said}: get the whole checkpoint")
    if "logit_bias" in unknown and "logit_scale" not in unknown:  # a text tower alone has neither
        raise ModelError(
            f"expected no logit_bias in {name}, a {config.model_type} by its config.json, which has none: scores would "
            "not be those that it was trained with"
        )
    return model.float().eval()


def _with_weights(tower: Tower) -> bool:
    if tower.pretrained not in {"", NO_WEIGHTS}:
        raise RecipeError(
            f"expected pretrained empty (the weights of {tower.name}) or none (random ones), got {tower.pretrained!r}"
        )
    return tower.pretrained != NO_WEIGHTS


def _features(output: Any) -> Tensor:
    """The embedding in what transformers returns: a tensor (4.x) or an output object (5.x)."""
    features: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return features


def _present(*modules: nn.Module | None) -> list[nn.Module]:
    return [module for module in modules if module is not None]


def image_preprocess(name: str, config: Any) -> PreprocessSpec:
    """What an image model of transformers (ViT, DINOv2, …) takes; without an image processor, a squash to ±1.

    Raises:
        ModelError: a step that a PreprocessSpec cannot state.
    """
    settings = _processor_config(name)
    default = getattr(config, "image_size", 224)
    size = settings.get("crop_size" if settings.get("do_center_crop") else "size", default)
    return _preprocess_spec(settings, _SIGLIP, size["height"] if isinstance(size, dict) else int(size))


def _processor_config(name: str) -> dict[str, Any]:
    """The image processor's settings; empty where the model has none.

    Raises:
        ModelError: a settings file is not JSON.
    """
    hub = require("transformers.utils.hub", purpose="load a transformers model")
    for file in ("processor_config.json", "preprocessor_config.json"):
        with downloads(f"{file} of {name}"):
            found = hub.cached_file(
                name,
                file,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
            )
            settings: dict[str, Any] = read_json(Path(found), dict[str, Any], error=ModelError) if found else {}
        # transformers 5 writes one file for all of a model's processors.
        settings = settings.get("image_processor", settings if file.startswith("pre") else {})
        if settings:
            return settings
    return {}


def _preprocess_spec(settings: dict[str, Any], family: _Family, image_size: int) -> PreprocessSpec:
    """An image processor's settings as a PreprocessSpec.

    Args:
        settings: of ``preprocessor_config.json``; what it leaves out has the family's default.
        image_size: the model's input, pixels.

    Raises:
        ModelError: a step that a PreprocessSpec cannot state, or another output size than the model takes.
    """
    size = settings.get("size", image_size)
    if isinstance(size, int):
        size = {"height": size, "width": size} if family.square else {"shortest_edge": size}
    if not settings.get("do_resize", True):
        raise ModelError("expected an image processor that resizes, got do_resize: false: set it to true")
    interpolation = _RESAMPLE.get(settings.get("resample", 3))
    if interpolation is None:
        raise ModelError(f"expected resample 2 (bilinear) or 3 (bicubic), got {settings['resample']}")

    crops = settings.get("do_center_crop", not family.square)
    crop = settings.get("crop_size", image_size)
    crop = crop if isinstance(crop, dict) else {"height": crop, "width": crop}
    squash = {"height", "width"} <= size.keys()
    if squash and crops and (size["height"], size["width"]) != (crop["height"], crop["width"]):
        raise ModelError(f"expected a squash or a centre crop, got a resize to {size} and a crop to {crop}")
    if not squash and not ("shortest_edge" in size and crops):
        raise ModelError(f"expected a shortest_edge with a centre crop, or height and width, got size {size}")
    target = size if squash else crop
    if (target["height"], target["width"]) != (image_size, image_size):
        raise ModelError(
            f"expected images of {image_size}x{image_size}, as the model takes, "
            f"got {target['height']}x{target['width']} from the image processor"
        )

    # (x * rescale - mean) / std, written as ours: (x / 255 - mean / k) / (std / k) with k = 255 * rescale.
    k = 255 * float(settings.get("rescale_factor") or 1 / 255) if settings.get("do_rescale", True) else 255.0
    normalises = settings.get("do_normalize", True)
    mean = (settings.get("image_mean") or family.mean) if normalises else (0.0, 0.0, 0.0)
    std = (settings.get("image_std") or family.std) if normalises else (1.0, 1.0, 1.0)
    if abs(k - 1) < 1e-9:
        k = 1.0  # 1/255 as written in JSON
    return PreprocessSpec(
        height=image_size,
        width=image_size,
        resize="squash" if squash else "shortest",
        resize_to=image_size if squash else size["shortest_edge"],
        interpolation="bilinear" if interpolation == "bilinear" else "bicubic",
        mean=(mean[0] / k, mean[1] / k, mean[2] / k),
        std=(std[0] / k, std[1] / k, std[2] / k),
    )
