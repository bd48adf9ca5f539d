"""An open_clip name, folder or hub name in, its network out, at the sizes of its weights; and what was settled for it.

What the weights say (image size, context, a bias of the scores) is taken from them; what only their maker knows (mean,
standard deviation, resizing) from the tag, from ``open_clip_config.json``, or from all tags of the architecture where
these agree. What is left open is asked for.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from edgeclip.documents import read_json
from edgeclip.errors import ModelError
from edgeclip.extras import require
from edgeclip.spec import ModelOptions, PreprocessSpec
from edgeclip.training.checkpoint.state import few, fill, read_state
from edgeclip.training.towers.quiet import downloads

CONFIG = "open_clip_config.json"
FOLDER, HUB = "local-dir:", "hf-hub:"  # as open_clip spells them
# What open_clip and the makers of its models call the weights beside CONFIG, the first that is there.
_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pt",
    "open_clip_pytorch_model.pth",
)
_PREPROCESS = ("mean", "std", "interpolation", "resize_mode")
_RESNET_PATCH = 32  # a ModifiedResNet makes one cell of 32x32 pixels


@dataclass(frozen=True)
class OpenClipFiles:
    """Where an open_clip model comes from.

    Attributes:
        name: open_clip's: of an architecture, or with ``local-dir:`` or ``hf-hub:`` before it.
        tag: the tag or file that was asked for; None for the folder's or hub's own weights, and for random ones.
        config: the architecture's, ``model_cfg``.
        weights: file of the weights; None for random ones.
        stated: preprocessing that the tag or ``open_clip_config.json`` states; None where there is none.
        quick_gelu: whether the tag's weights were trained with CLIP's first activation.
    """

    name: str
    tag: str | None
    config: Mapping[str, Any]
    weights: Path | None
    stated: Mapping[str, Any] | None
    quick_gelu: bool = False


@dataclass
class Loaded:
    """A network of open_clip, in eval mode and float32 on the CPU.

    Attributes:
        model: the network.
        source: where it comes from.
        options: by which it is loaded again: those that were given, and the sizes that its weights have.
        context_length: of its texts, tokens.
        notes: what was settled that the configuration does not say, each in a sentence.
    """

    model: Any
    source: OpenClipFiles
    options: ModelOptions
    context_length: int
    notes: list[str] = field(default_factory=list)

    @property
    def vocabulary(self) -> int:
        """Tokens that the text tower has a row for."""
        tables = [part for part in getattr(self.model, "text", self.model).modules() if isinstance(part, nn.Embedding)]
        return max(table.num_embeddings for table in tables)


def load_open_clip(name: str, pretrained: str | None, *, seed: int, options: ModelOptions) -> Loaded:
    """Load a model of open_clip.

    Args:
        name: an architecture, ``local-dir:FOLDER`` or ``hf-hub:ORG/NAME``.
        pretrained: a tag of the architecture, a file, or ``none`` for random weights; None is that too, but for a
            folder or the hub it is their own weights.
        seed: of random weights.
        options: what the caller knows of the model.

    Raises:
        ModelError: it cannot be had, the weights are of another model, or an option contradicts them.
    """
    source = _source(name, pretrained)
    if source.weights is None:
        loaded = _build(source, options, seed=seed)
        _check_size(loaded, options)
        return loaded
    if source.weights.suffix in {".npz", ".npy"}:
        return _big_vision(source, options)
    with downloads(f"{name} with weights {source.tag or source.weights}"):
        state = read_state(source.weights)
    return _with_weights(source, state, options)


def preprocess_of(loaded: Loaded, options: ModelOptions, *, random: bool) -> PreprocessSpec:
    """How the model's images are prepared: as the options, the tag, the configuration or the architecture's tags say.

    Args:
        random: the weights are, so that any preprocessing is as good as another.

    Raises:
        ModelError: the tags of the architecture differ and the options do not say, or a PreprocessSpec cannot state it.
    """
    source = loaded.source
    known: dict[str, Any] = {**loaded.model.visual.preprocess_cfg, "size": loaded.model.visual.image_size}
    given = {key: value for key in _PREPROCESS if (value := getattr(options, key)) is not None}
    if source.stated is not None:
        known |= {key: source.stated[key] for key in _PREPROCESS if source.stated.get(key) is not None}
    else:
        known |= _of_the_tags(source, given, loaded.notes, random=random)
    return preprocess_spec({**known, **given})


def _of_the_tags(source: OpenClipFiles, given: Mapping[str, Any], notes: list[str], *, random: bool) -> dict[str, Any]:
    """The preprocessing that all tags of the architecture share; what they do not share has to be given."""
    open_clip = require("open_clip", purpose="load an open_clip model")
    name = source.name
    tags = (
        {} if name.startswith((FOLDER, HUB)) else {tag: open_clip.get_pretrained_cfg(name, tag) for tag in _tags(name)}
    )
    if not tags:
        if not random and (open_ := [key for key in _PREPROCESS if key not in given]):
            notes.append(
                f"nothing says how images of {name} are prepared: taken as open_clip's training does by default "
                f"({', '.join(open_)}; the options of the same names change it)"
            )
        return {}
    shared: dict[str, Any] = {}
    differ: dict[str, str] = {}
    for key in _PREPROCESS:
        found: dict[Any, list[str]] = {}
        for tag, config in tags.items():
            value = config.get(key)
            found.setdefault(tuple(value) if isinstance(value, list) else value, []).append(tag)
        if len(found) == 1:
            shared[key] = next(iter(found))
        elif key not in given:
            differ[key] = "; ".join(f"{value} in {few(having)}" for value, having in found.items())
    if differ and not random:
        said = ". ".join(f"{key}: {what}" for key, what in differ.items())
        raise ModelError(
            f"expected {' and '.join(differ)} for the weights {source.tag or source.weights}, since the tags of {name} "
            f"differ in it ({said}): give the options {', '.join(differ)} as the weights were trained"
        )
    return shared


def preprocess_spec(config: Mapping[str, Any]) -> PreprocessSpec:
    """open_clip's evaluation transform as a PreprocessSpec.

    ``shortest`` resizes the shorter side to the input's and crops the centre; ``squash`` ignores the aspect ratio.
    ``interpolation: random`` (training) means bicubic in evaluation, as in ``open_clip.image_transform``.

    Raises:
        ModelError: a step that a PreprocessSpec cannot state.
    """
    height, width = _pair(config["size"])
    resize = config.get("resize_mode") or "shortest"
    interpolation = config.get("interpolation") or "bicubic"
    if resize not in {"shortest", "squash"} or (resize == "shortest" and height != width):
        raise ModelError(
            f"expected resize_mode shortest (square) or squash, got {resize} to {height}x{width}: "
            "this model's preprocessing cannot be exported"
        )
    if interpolation not in {"bicubic", "bilinear", "random"}:
        raise ModelError(f"expected bicubic or bilinear interpolation, got {interpolation}: it cannot be exported")
    try:
        return PreprocessSpec(
            height=height,
            width=width,
            resize="squash" if resize == "squash" else "shortest",
            resize_to=max(height, width),
            interpolation="bilinear" if interpolation == "bilinear" else "bicubic",
            mean=channels(config["mean"]),
            std=channels(config["std"]),
        )
    except (ValueError, TypeError) as error:  # of a configuration that someone wrote
        raise ModelError(f"expected preprocessing of an open_clip model, got {error}") from error


def channels(value: float | Sequence[float]) -> tuple[float, float, float]:
    """Mean or standard deviation of red, green and blue: three numbers, or one for all."""
    values = (value,) * 3 if isinstance(value, int | float) else value
    red, green, blue = (float(item) for item in values)
    return red, green, blue


def wants_quick_gelu(name: str, tag: str) -> bool:
    """Whether a tag's weights were trained with CLIP's first activation, whatever the architecture's config says."""
    open_clip = require("open_clip", purpose="load an open_clip model")
    known = open_clip.is_pretrained_cfg(name, tag)
    return known and bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False))


# Where it comes from


def _source(name: str, pretrained: str | None) -> OpenClipFiles:
    tag = None if pretrained in {None, "none"} else pretrained
    if name.startswith((FOLDER, HUB)):
        return _of_config(name, pretrained)
    open_clip = require("open_clip", purpose="load an open_clip model")
    known = open_clip.list_models()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=4, cutoff=0.5) or known[:4]
        raise ModelError(f"expected an open_clip model name, got {name!r}: did you mean one of {', '.join(near)}?")
    config = open_clip.get_model_config(name)
    if tag is None:
        return OpenClipFiles(name, None, config, None, None)
    if open_clip.is_pretrained_cfg(name, tag):
        stated = open_clip.get_pretrained_cfg(name, tag)
        with downloads(f"{name} with weights {tag}"):
            weights = Path(open_clip.factory.download_pretrained(stated))
        # open_clip only warns of the activation. A tag that says nothing was trained with the config as it is
        # (roberta-ViT-B-32).
        return OpenClipFiles(name, tag, config, weights, stated, quick_gelu=wants_quick_gelu(name, tag))
    if not Path(tag).is_file():
        tags = _tags(name)
        available = f"one of {', '.join(tags)}" if tags else "a checkpoint file (open_clip has no weights for it)"
        raise ModelError(
            f"expected pretrained weights of {name}, got {tag!r}: give {available}, or none for random ones"
        )
    return OpenClipFiles(name, tag, config, Path(tag), None)


def _of_config(name: str, pretrained: str | None) -> OpenClipFiles:
    """A folder or hub name with ``open_clip_config.json``; its own weights unless others are asked for."""
    tag = None if pretrained in {None, "none"} else pretrained
    if tag and not Path(tag).is_file():
        raise ModelError(f"expected a file of weights with {name}, got {tag!r}: leave it out to use its own")
    if name.startswith(FOLDER):
        folder = Path(name.removeprefix(FOLDER))
        if not (folder / CONFIG).is_file():
            raise ModelError(f"expected {CONFIG} in the folder {folder}, got none: choose another")
        config, stated = _read_config(folder / CONFIG)
        weights = _weights_in(folder) if pretrained is None else None
    else:
        open_clip = require("open_clip", purpose="load an open_clip model")
        with downloads(f"the open_clip model {name}"):
            get = open_clip.pretrained.download_pretrained_from_hf
            config, stated = _read_config(Path(get(name.removeprefix(HUB), filename=CONFIG)))
            weights = Path(get(name.removeprefix(HUB))) if pretrained is None else None
    return OpenClipFiles(name, tag, config, Path(tag) if tag else weights, stated)


def _read_config(file: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The architecture in ``open_clip_config.json``, and the preprocessing if it is there."""
    found = read_json(file, dict[str, Any], error=ModelError)
    config, stated = found.get("model_cfg"), found.get("preprocess_cfg")
    needed = {"embed_dim", "vision_cfg", "text_cfg"}
    if not isinstance(config, dict) or not needed <= config.keys():
        raise ModelError(f"expected model_cfg with {', '.join(sorted(needed))} in {file}: get the whole model")
    if not isinstance(stated, dict | None):
        raise ModelError(f"expected preprocess_cfg in {file} as an object, got {type(stated).__name__}")
    return config, stated


def _weights_in(folder: Path) -> Path:
    found = sorted(file for kind in ("safetensors", "bin", "pt", "pth") for file in folder.glob(f"*.{kind}"))
    named = [folder / name for name in _WEIGHTS if folder / name in found]
    if named or len(found) == 1:
        return (named or found)[0]
    raise ModelError(
        f"expected one file of weights beside {folder / CONFIG}, got {few([file.name for file in found]) or 'none'}: "
        f"call it {_WEIGHTS[0]}, or give it as pretrained"
    )


def _tags(name: str) -> list[str]:
    open_clip = require("open_clip", purpose="load an open_clip model")
    tags: list[str] = open_clip.list_pretrained_tags_by_model(name)
    return tags


# The network


def _build(
    source: OpenClipFiles,
    options: ModelOptions,
    *,
    seed: int = 0,
    image_size: tuple[int, int] | None = None,
    context_length: int | None = None,
    logit_bias: float | None = None,
) -> Loaded:
    """The network with random weights, at the sizes of the options or those given here."""
    open_clip = require("open_clip", purpose="load an open_clip model")
    size = image_size or (None if options.image_size is None else _pair(options.image_size))
    context = context_length or options.context_length
    bias = options.init_logit_bias if logit_bias is None else logit_bias
    more: dict[str, Any] = {} if bias is None else {"init_logit_bias": bias}
    if size and size[0] == size[1]:
        more["force_image_size"] = size[0]  # a ResNet knows no pair
    elif size:
        more["force_image_size"] = size
    with torch.random.fork_rng(devices=[]), downloads(f"the configuration of {source.name}"):
        torch.manual_seed(seed)
        model = open_clip.create_model(
            source.name,
            force_quick_gelu=options.quick_gelu or source.quick_gelu,
            force_context_length=context,
            pretrained_text=False,
            load_weights=False,
            **more,
        ).eval()
    return Loaded(model, source, options, context or int(source.config["text_cfg"].get("context_length", 77)))


def _with_weights(source: OpenClipFiles, state: dict[str, Tensor], options: ModelOptions) -> Loaded:
    """The network at the sizes that the weights have, with the weights in it."""
    bias, notes = _bias(source, state, options)
    loaded = _build(source, options, logit_bias=bias)
    state = _spelled_as(loaded.model, state)
    size, context = _sizes(loaded, state, options)
    if (size, context) != (_pair(loaded.model.visual.image_size), loaded.context_length):
        loaded = _build(source, options, logit_bias=bias, image_size=size, context_length=context)
    asked = None if options.image_size is None else _pair(options.image_size)
    where = str(source.tag or source.weights)
    if asked and asked != size:
        notes.append(
            f"{where} was trained at {_size(size)} pixels; its position embeddings are resampled to {_size(asked)}"
        )
        if not hasattr(loaded.model.visual, "trunk"):
            loaded = _build(source, options, logit_bias=bias, image_size=asked, context_length=context)
            with downloads(f"{source.name} at {_size(asked)} pixels"):
                require("open_clip.model", purpose="load an open_clip model").resize_pos_embed(state, loaded.model)
    fill(loaded.model, state, where=where, model=source.name)
    if asked and asked != size and hasattr(loaded.model.visual, "trunk"):
        with downloads(f"{source.name} at {_size(asked)} pixels"):
            loaded.model.visual.set_input_size(asked)
    _check_size(loaded, options)
    usual = _pair(source.config["vision_cfg"].get("image_size", 224))
    if not asked and size != usual:
        notes.append(f"{where} was trained at {_size(size)} pixels, not {_size(usual)}: it takes images of that size")
        options = msgspec.structs.replace(options, image_size=size)
    if options.context_length is None and context != (of_config := _context(source)):
        notes.append(f"{where} was trained on texts of {context} tokens, not {of_config}: longer ones are cut")
        options = msgspec.structs.replace(options, context_length=context)
    loaded.options, loaded.notes = options, [*notes, *_activation(source, options)]
    return loaded


def _bias(source: OpenClipFiles, state: dict[str, Tensor], options: ModelOptions) -> tuple[float | None, list[str]]:
    """What to make the model with, that its scores have a bias where the weights have one; and what there is to say."""
    has = source.config.get("init_logit_bias") is not None
    where = source.tag or source.weights
    if "logit_bias" in state:
        bias = state["logit_bias"]
        if bias.numel() != 1 or not torch.isfinite(bias).all():
            raise ModelError(
                f"expected one finite logit_bias in {where}, got {bias.flatten()[:3].tolist()}: get it again"
            )
        value = float(bias.reshape(()))
        said = [] if has else [f"{where} has a logit_bias ({value:g}): scores are SigLIP's, a sigmoid for each class"]
        return value, said
    if options.init_logit_bias is not None and "logit_scale" in state:
        state["logit_bias"] = torch.full_like(state["logit_scale"], options.init_logit_bias, dtype=torch.float32)
        return options.init_logit_bias, []
    if has:
        raise ModelError(
            f"expected a logit_bias in {where}, which {source.name} is scored with, got none: give init_logit_bias if "
            "you know it"
        )
    return None, []


def _spelled_as(model: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights by this model's names: of other makers and of earlier forms of open_clip, as it reads them itself."""
    converting = require("open_clip.convert", purpose="load an open_clip model")
    networks = require("open_clip.model", purpose="load an open_clip model")
    state = dict(converting.convert_state_dict(model, state))
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = networks.convert_to_custom_text_state_dict(state)
    for key in ("logit_scale", "logit_bias"):
        own = getattr(model, key, None)
        if own is not None and key in state and state[key].numel() == own.numel():
            state[key] = state[key].reshape(own.shape)
    known = model.state_dict().keys()
    # Older transformers stored positions; OpenAI's archives hold three numbers.
    dropped = {"text.transformer.embeddings.position_ids", "input_resolution", "context_length", "vocab_size"}
    return {key: value for key, value in state.items() if key in known or key not in dropped}


def _sizes(loaded: Loaded, state: Mapping[str, Tensor], options: ModelOptions) -> tuple[tuple[int, int], int]:
    """Height and width of the images and length of the texts that the weights were trained on."""
    where = loaded.source.tag or loaded.source.weights
    size = _pair(loaded.model.visual.image_size)
    grid = _grid(loaded.model.visual)
    if grid and grid.key in state and state[grid.key].dim() >= 2:
        (patch_height, patch_width), cells = grid.patch, state[grid.key].shape[-2] - grid.before
        rows, columns = size[0] // patch_height, size[1] // patch_width
        if cells != rows * columns:
            side = math.isqrt(max(cells, 0))
            if side == 0 or side * side != cells:
                raise ModelError(
                    f"{where} has position embeddings of {cells} patches of {patch_height}x{patch_width} pixels, which "
                    "are no square: give image_size as its height and width"
                )
            size = (side * patch_height, side * patch_width)
            if options.image_size is not None and not grid.resamples:
                raise ModelError(
                    f"expected image_size {_size(size)}, as {where} was trained, got "
                    f"{_size(_pair(options.image_size))}: leave it out"
                )
    context = loaded.context_length
    key = next((key for key in ("positional_embedding", "text.positional_embedding") if key in state), None)
    own = loaded.model.state_dict().get(key or "")
    if key and own is not None and state[key].dim() == 2:
        context += state[key].shape[0] - own.shape[0]
        if options.context_length is not None and context != options.context_length:
            raise ModelError(
                f"expected context_length {context}, as {where} was trained, got {options.context_length}: leave it out"
            )
    return size, context


@dataclass(frozen=True)
class _Grid:
    """The position embeddings of an image tower: where they are, what stands before the patches, and patches' size."""

    key: str
    before: int
    patch: tuple[int, int]
    resamples: bool = True


def _grid(visual: Any) -> _Grid | None:
    """The position embeddings of an image tower; None for one that has none, and takes images of any size."""
    if (pool := getattr(visual, "attnpool", None)) is not None and hasattr(pool, "positional_embedding"):
        return _Grid("visual.attnpool.positional_embedding", 1, (_RESNET_PATCH, _RESNET_PATCH), resamples=False)
    if hasattr(visual, "positional_embedding") and hasattr(visual, "grid_size"):
        rows, columns = visual.grid_size
        before = visual.positional_embedding.shape[-2] - rows * columns
        return _Grid("visual.positional_embedding", before, _pair(visual.patch_size))
    trunk = getattr(visual, "trunk", None)
    embed: Any = getattr(trunk, "patch_embed", None)
    positions = getattr(trunk, "pos_embed", None)
    if isinstance(positions, Tensor) and getattr(embed, "grid_size", None):
        rows, columns = embed.grid_size
        return _Grid("visual.trunk.pos_embed", positions.shape[-2] - rows * columns, _pair(embed.patch_size))
    return None


def _check_size(loaded: Loaded, options: ModelOptions) -> None:
    grid = _grid(loaded.model.visual)
    if grid is None or options.image_size is None:
        return
    height, width = _pair(options.image_size)
    if height % grid.patch[0] or width % grid.patch[1]:
        raise ModelError(
            f"expected image_size in multiples of {_size(grid.patch)}, the patches of {loaded.source.name}, got "
            f"{_size((height, width))}"
        )


def _activation(source: OpenClipFiles, options: ModelOptions) -> list[str]:
    """What to say of weights in a file whose architecture has tags that were trained with the other activation."""
    if source.stated is not None or source.name.startswith((FOLDER, HUB)) or options.quick_gelu:
        return []
    of_config = bool(source.config.get("quick_gelu", False))
    others = [tag for tag in _tags(source.name) if wants_quick_gelu(source.name, tag) != of_config]
    if of_config or not others:
        return []
    return [
        f"the weights are run with GELU, as {source.name} says; if they began as {few(others)}, name "
        f"{source.name}-quickgelu"
    ]


def _big_vision(source: OpenClipFiles, options: ModelOptions) -> Loaded:
    """Google's own files, which open_clip reads into a model of the same sizes and no other."""
    assert source.weights
    loaded = _build(source, options)
    with downloads(f"{source.name} with weights {source.weights}"):
        try:
            open_clip = require("open_clip.factory", purpose="load an open_clip model")
            open_clip.load_checkpoint(loaded.model, str(source.weights))
        except AssertionError as error:
            raise ModelError(
                f"expected weights of the sizes of {source.name} in {source.weights}, got {error}: name the "
                "architecture that they were trained as"
            ) from error
    return loaded


def _context(source: OpenClipFiles) -> int:
    return int(source.config["text_cfg"].get("context_length", 77))


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width of a size that is one number for both, or two."""
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[-1]))


def _size(size: tuple[int, int]) -> str:
    return "x".join(map(str, size))
