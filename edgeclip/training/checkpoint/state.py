"""A file of weights in, tensors by the names of the model out, however training wrapped them; or what does not fit."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from edgeclip.errors import ModelError

# What torch.compile, FSDP and activation checkpointing put into the names of what they wrap.
_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
# What torch's unpickler raises for bytes that are no pickle of tensors.
_UNREADABLE = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError)
_NAMED = 3  # weights of each kind that a message names


def read_state(path: Path) -> dict[str, Tensor]:
    """The weights in a file: safetensors, or what ``torch.save`` wrote, without running code of it.

    They may stand in an object of the file (``{"model": …}``, ``{"state_dict": …}``); what training puts before or into
    their names (``module.``, ``_orig_mod.``) is taken off, and so is what stands before all of them.

    Raises:
        ModelError: no weights, or several sets of them.
    """
    loaded = load_file(path) if path.suffix == ".safetensors" else _unpickled(path)
    found = _sets(loaded)
    if not found:
        raise ModelError(f"expected weights in {path}, got none: give a file of a model's state_dict")
    if len(found) > 1:
        raise ModelError(
            f"expected one set of weights in {path}, got {', '.join(sorted(found))}: save the one that is meant alone"
        )
    (state,) = found.values()
    return _unwrapped(state)


def fill(module: nn.Module, state: Mapping[str, Tensor], *, where: str, model: str) -> None:
    """Put weights into a module, every one of them.

    Args:
        where: names the file, for messages.
        model: names the module.

    Raises:
        ModelError: some are missing, some the module does not have, or some are of another shape.
    """
    own = module.state_dict()
    missing = [key for key in own if key not in state]
    unknown = [key for key in state if key not in own]
    others = [
        f"{key}: {tuple(own[key].shape)} in the model, {tuple(value.shape)} in the file"
        for key, value in state.items()
        if key in own and own[key].shape != value.shape
    ]
    said = [
        f"{len(keys)} {what} ({few(keys)})"
        for keys, what in (
            (missing, "weights of the model are missing"),
            (unknown, "are none of the model's"),
            (others, "have another shape"),
        )
        if keys
    ]
    if said:
        raise ModelError(f"the weights in {where} do not fit {model}: {'; '.join(said)}{_hint(unknown)}")
    module.load_state_dict(dict(state))


def few(names: Sequence[str]) -> str:
    """The first of many names, for a message."""
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")


def _hint(unknown: Sequence[str]) -> str:
    if any(key.startswith(("vision_model.", "text_model.")) for key in unknown):
        return ". These are names of transformers: give the folder with its config.json as the model"
    return ". Name the architecture that they were trained as"


def _unpickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise ModelError(
            f"expected a file of a model's state_dict at {path}, got something else (no file of torch.save, a damaged "
            "one, or one that holds more than tensors): save the state_dict alone, best as safetensors"
        ) from error


def _sets(loaded: Any) -> dict[str, dict[str, Tensor]]:
    """Every mapping of names to tensors: the file itself, or what stands in it under a name."""
    if not isinstance(loaded, Mapping):
        return {}
    if any(isinstance(value, Tensor) and value.dim() for value in loaded.values()):
        return {"": _tensors(loaded)}
    sets = {str(key): _tensors(value) for key, value in loaded.items() if isinstance(value, Mapping)}
    return {key: found for key, found in sets.items() if any(value.dim() for value in found.values())}


def _tensors(values: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {key: value for key, value in values.items() if isinstance(key, str) and isinstance(value, Tensor)}


def _unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for wrapper in _WRAPPERS:
        state = {key.replace(wrapper, ""): value for key, value in state.items()}
    # A model has a weight at its root, the temperature; what all names begin with is a wrapper's.
    while len(first := {key.partition(".")[0] for key in state}) == 1 and all("." in key for key in state):
        (prefix,) = first
        state = {key.removeprefix(f"{prefix}."): value for key, value in state.items()}
    return state
