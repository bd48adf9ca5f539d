"""The whole state of a run in, one file out; and back, so that the run goes on as if it had not been interrupted."""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
import torch
from torch import nn

from edgeclip.documents import encode_json
from edgeclip.errors import RecipeError, TrainingError
from edgeclip.files import atomic_file
from edgeclip.training.loop.distributed import World, assign, whole
from edgeclip.training.loop.schedule import Average
from edgeclip.training.recipe import Recipe

FORMAT = "edgeclip.state.1"
# What may differ between a run and its continuation: nothing in these sections changes what is computed.
_FREE = ("log", "scale")


class Resumable(Protocol):
    """A loader that knows its position."""

    def state_dict(self) -> dict[str, Any]:
        """Position behind the last batch that was taken."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position."""
        ...


@dataclass(frozen=True)
class Running:
    """What a run consists of that changes from step to step.

    Attributes:
        average: averaged weights, if the recipe wants them.
        world: the processes that run it together.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: Average | None
    loader: Resumable
    world: World


def save_state(path: Path, run: Running, *, step: int, recipe: Recipe) -> None:
    """Write everything that the steps after ``step`` depend on; all processes call this, the first one writes.

    A state is written beside the old one, flushed to the disk and renamed: a kill at any time leaves one of the two.

    Raises:
        TrainingError: a weight is not finite. The state before is kept.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    everything = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    weights, moments = get_state_dict(run.model, run.optimizer, options=everything)
    averages = {name: whole(value).cpu() for name, value in run.average.values.items()} if run.average else {}
    locals_ = run.world.collect({"random": _random_state(), "loader": run.loader.state_dict()})
    # The first process has all weights; the others have to stop with it.
    if bad := next(filter(None, run.world.collect(_not_finite(weights))), None):
        raise TrainingError(
            f"weight {bad} is not finite after step {step}: the state before is kept at {path}; "
            "lower optimizer.lr and go on with `resume`"
        )
    if not run.world.main:
        run.world.wait()
        return
    state = {
        "format": FORMAT,
        "step": step,
        "recipe": encode_json(recipe).decode(),
        "model": weights,
        "optimizer": moments,
        "scaler": run.scaler.state_dict(),
        "average": averages,
        "processes": locals_,
    }
    with atomic_file(path) as temporary, temporary.open("wb") as stream:
        torch.save(state, stream)
        stream.flush()
        os.fsync(stream.fileno())
    run.world.wait()


def load_state(path: Path, recipe: Recipe, world: World) -> dict[str, Any]:
    """Read a state and check that it belongs to this recipe and as many processes.

    Raises:
        TrainingError: damaged, or of another format or number of processes.
        RecipeError: the recipe has changed in what decides the result.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise TrainingError(f"cannot read the state {path} ({error}): start again with `overwrite`") from error
    if state.get("format") != FORMAT:
        raise TrainingError(f"expected a state {FORMAT} at {path}, got {state.get('format')}: use the version it is of")
    _check_same(msgspec.json.decode(state["recipe"]), recipe)
    if (processes := len(state["processes"])) != world.size:
        raise TrainingError(
            f"expected {processes} processes, as {path} was saved by, got {world.size}: each has its place in the data"
        )
    return state


def restore(state: dict[str, Any], run: Running) -> int:
    """Put a state back; returns the number of steps done."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

    everything = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True, strict=False)
    set_state_dict(
        run.model,
        run.optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
        options=everything,
    )
    run.scaler.load_state_dict(state["scaler"])
    if run.average:
        for name, value in run.average.values.items():
            assign(value, state["average"][name])
    own = state["processes"][run.world.rank]
    run.loader.load_state_dict(own["loader"])
    _set_random_state(own["random"])
    return int(state["step"])


def _not_finite(weights: Mapping[str, Any]) -> str:
    """Name of a weight that is not finite, or the empty text."""
    floats = ((name, value) for name, value in weights.items() if torch.is_tensor(value) and value.is_floating_point())
    return next((name for name, value in floats if not torch.isfinite(value).all()), "")


def _check_same(before: Mapping[str, Any], recipe: Recipe) -> None:
    now = msgspec.to_builtins(recipe)
    changed = [name for name in _differences(before, now) if name.partition(".")[0] not in _FREE]
    if changed:
        raise RecipeError(
            f"the recipe has changed since the state was saved ({', '.join(changed[:5])}): "
            "resume with the same recipe, or start again with `overwrite`"
        )


def _differences(before: Any, now: Any, prefix: str = "") -> Sequence[str]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        found: list[str] = []
        for key in sorted({*before, *now}):
            found += _differences(before.get(key), now.get(key), f"{prefix}.{key}" if prefix else str(key))
        return found
    same = (
        list(before) == list(now)
        if isinstance(before, list | tuple) and isinstance(now, list | tuple)
        else before == now
    )
    return [] if same else [prefix]


def _random_state() -> dict[str, Any]:
    """Of torch (CPU and this process's GPU), NumPy and Python, in types that load without pickle's freedom."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    version, values, following = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": [
            str(kind),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(gauss),
        ],
        "python": [version, list(values), following],
    }


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, values, following = state["python"]
    random.setstate((version, tuple(values), following))
