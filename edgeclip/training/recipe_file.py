"""A short YAML file and ``key=value`` overrides in, a checked recipe out."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import msgspec

from edgeclip.documents import decode_yaml, read_yaml
from edgeclip.errors import RecipeError
from edgeclip.training.adapt.recipe import FewShotRecipe
from edgeclip.training.recipe import Recipe

AnyRecipe = TypeVar("AnyRecipe", bound=msgspec.Struct)

# By the key `task`; few-shot tables have a way of their own.
_RECIPES: dict[str, type[Recipe] | type[FewShotRecipe]] = {
    "contrastive": Recipe,
    "distill": Recipe,
    "fewshot": FewShotRecipe,
}


def load_recipe(path: Path, *, overrides: Sequence[str] = ()) -> Recipe | FewShotRecipe:
    """Read and check a recipe.

    Args:
        overrides: ``key=value`` with dots between the levels, e.g. ``optimizer.lr=1e-4``; the value is YAML, nothing
            is the empty text.

    Raises:
        RecipeError: absent, not YAML, an unknown key (the nearest name is told) or a bad value.
    """
    return check_recipe(read_tree(path, overrides=overrides), source=str(path))


def read_tree(path: Path, *, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The keys and values of a recipe file with its overrides, not yet checked. Raises as ``load_recipe`` does."""
    tree = read_yaml(path, error=RecipeError)
    if not isinstance(tree, dict):
        raise RecipeError(f"expected keys and values in {path}, got {type(tree).__name__}")
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator or not key:
            raise RecipeError(f"expected an override key=value, got {override!r}")
        where = f"the YAML value of the override {override[:80]!r}"
        _set(tree, key.split("."), decode_yaml(value, where=where, error=RecipeError) if value else "")
    return tree


def check_recipe(tree: dict[str, Any], *, source: str) -> Recipe | FewShotRecipe:
    """Plain keys and values as a recipe.

    Args:
        source: where they come from, for the message.

    Raises:
        RecipeError: an unknown key or a bad value.
    """
    task = str(tree.get("task", "contrastive"))
    if task == "starter":
        raise RecipeError(f"{source} is the starter's: run python -m tools.starter.train with it, in a checkout")
    if task not in _RECIPES:
        raise RecipeError(f"{source}: expected task {', '.join(_RECIPES)}, got {task!r}{nearest(task, _RECIPES)}")
    return convert(tree, _RECIPES[task], source=source)


def convert(tree: dict[str, Any], recipe: type[AnyRecipe], *, source: str) -> AnyRecipe:
    """Plain keys and values as one kind of recipe. Raises as ``check_recipe`` does."""
    try:
        return msgspec.convert(_numbers(tree), recipe)
    except msgspec.ValidationError as error:
        raise RecipeError(f"{source}: {_explain(error, recipe)}") from error


def nearest(name: str, known: Iterable[str]) -> str:
    """What to add to a message about an unknown name: the known one that it may stand for, or all there are."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean `{near[0]}`?" if near else f"; there is {', '.join(known)}"


def _set(tree: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    *parents, last = keys
    for key in parents:
        if tree.get(key) is None:
            tree[key] = {}
        tree = tree[key]
        if not isinstance(tree, dict):
            raise RecipeError(f"expected a section at {key!r} of the override {'.'.join(keys)}, got a value")
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


def _explain(error: msgspec.ValidationError, recipe: type[msgspec.Struct]) -> str:
    """msgspec's message, with the nearest known key of the section that an unknown one is in."""
    text = str(error)
    unknown = re.search(r"unknown field `([^`]+)`(?: - at `\$\.?([^`]*)`)?", text)
    if not unknown:
        return text
    section = recipe
    for name in filter(None, (unknown[2] or "").split(".")):
        kind = next(field.type for field in msgspec.structs.fields(section) if field.name == name)
        section = next((part for part in get_args(kind) if hasattr(part, "__struct_fields__")), kind)  # of an optional
    return text + nearest(unknown[1], section.__struct_fields__)
