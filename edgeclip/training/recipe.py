"""A short YAML file and ``key=value`` overrides in, a checked recipe out."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec

from edgeclip.errors import RecipeError
from edgeclip.extras import require
from edgeclip.spec import Name

Positive = Annotated[float, msgspec.Meta(gt=0)]
Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]
Count = Annotated[int, msgspec.Meta(ge=1)]


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A frozen part of a recipe that refuses unknown keys."""


class Data(_Section, frozen=True, kw_only=True):
    """Labelled images.

    Attributes:
        shards: glob of WebDataset tars, relative to the working directory.
        classes: JSON with the names of each class, in label order.
        views: sides in pixels that an image is first shrunk to, 0 for the image as it is; each is a view of its own.
    """

    shards: str
    classes: str
    views: tuple[Annotated[int, msgspec.Meta(ge=0)], ...] = (0,)


class Captions(_Section, frozen=True, kw_only=True):
    """What is said of an image.

    Attributes:
        templates: as ``--templates`` takes them.
        own_predictions: share of captions whose class is drawn from the image tower's own ImageNet prediction instead
            of the label: what the tower knows already is rehearsed, and a thousand names are heard instead of a few.
    """

    templates: str = "simple"
    own_predictions: Fraction = 0.0


class Init(_Section, frozen=True, kw_only=True):
    """Start of the image projection, from the image tower's own classifier and its class names' embeddings.

    Attributes:
        class_scale: weight of the class probabilities beside the pooled features.
        ridge: of the inverse that maps features to class embeddings; larger is smoother.
    """

    class_scale: Positive = 0.5
    ridge: Positive = 1.0


class Optimizer(_Section, frozen=True, kw_only=True):
    """AdamW with warm-up and cosine decay.

    Attributes:
        steps, batch_size: how long and how many pairs a step.
        lr: of the projections.
        logit_scale_lr: of the logarithm of the temperature's inverse.
        logit_scale, max_logit_scale: where it starts and is clamped (CLIP clamps at 100).
        ema: decay of the averaged weights, which are what is kept.
        interpolate: share of the trained weights in the result, the rest being the start (WiSE-FT, Wortsman 2022).
    """

    steps: Count = 300
    batch_size: Annotated[int, msgspec.Meta(ge=2)] = 256
    lr: Positive = 5e-5
    warmup: Count = 20
    logit_scale_lr: Positive = 5e-3
    logit_scale: Positive = 20.0
    max_logit_scale: Positive = 100.0
    ema: Fraction = 0.98
    interpolate: Fraction = 1.0


class Recipe(_Section, frozen=True, kw_only=True):
    """Everything that determines a training run.

    Attributes:
        image_tower, text_tower: names in :mod:`edgeclip.training.towers`; both are locked.
        embedding_dim: width of the shared space.
        weight_grid: keep all weights on an 8-bit grid, so that they can be stored in a quarter of the space.
    """

    name: Name
    image_tower: str
    text_tower: str
    embedding_dim: Count
    data: Data
    seed: int = 0
    weight_grid: bool = False
    captions: Captions = Captions()
    init: Init = Init()
    optimizer: Optimizer = Optimizer()


def load_recipe(path: Path, *, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        overrides: ``key=value`` with dots between the levels, e.g. ``optimizer.lr=1e-4``.

    Raises:
        RecipeError: absent, not YAML, an unknown key (the nearest name is told) or a bad value.
    """
    yaml = require("yaml", purpose="read a recipe")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"expected a recipe at {path}, got: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not valid YAML ({str(error).splitlines()[0]})") from error
    if not isinstance(tree, dict):
        raise RecipeError(f"expected keys and values in {path}, got {type(tree).__name__}")
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator or not key:
            raise RecipeError(f"expected --set key=value, got {override!r}")
        _set(tree, key.split("."), yaml.safe_load(value))
    try:
        return msgspec.convert(_numbers(tree), Recipe)
    except msgspec.ValidationError as error:
        raise RecipeError(f"{path}: {_explain(error)}") from error


def _set(tree: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    *parents, last = keys
    for key in parents:
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise RecipeError(f"expected a section at {key!r} of --set {'.'.join(keys)}, got a value")
    tree[last] = value


def _numbers(value: Any) -> Any:
    """YAML 1.1 reads ``5e-5`` as text; read it as the number that it is."""
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        return float(value)
    return value


def _explain(error: msgspec.ValidationError) -> str:
    text = str(error)
    if unknown := re.search(r"unknown field `([^`]+)`", text):
        sections: tuple[type[_Section], ...] = (Recipe, Data, Captions, Init, Optimizer)
        known = [field for section in sections for field in section.__struct_fields__]
        if near := difflib.get_close_matches(unknown[1], known, n=1):
            text += f"; did you mean `{near[0]}`?"
    return text
