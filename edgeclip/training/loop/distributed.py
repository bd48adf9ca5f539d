"""Processes started by torchrun in; one joint batch out, with the gradients that a single process would have.

Every process embeds its share of the batch, gathers all embeddings and computes the whole loss. The gradient of an own
embedding is then complete, and what remains is to add the processes' parameter gradients up. DDP and FSDP average
instead, so ``gather`` multiplies the gradient of the embeddings by the number of processes; parameters that act
after the gathering (temperature, bias) have the same, whole gradient everywhere, which averaging leaves alone.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from edgeclip.errors import RecipeError

Strategy = Literal["ddp", "fsdp"]


@dataclass(frozen=True)
class World:
    """This process among its peers.

    Attributes:
        rank, size: which of how many; 0 of 1 without torchrun.
        device: where its tensors live.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            dist.barrier()

    def collect(self, value: Any) -> list[Any]:
        """The values of all processes, by rank; any that can be pickled."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values


@contextlib.contextmanager
def join_world(device: str) -> Iterator[World]:
    """Join the processes that torchrun started (NCCL between GPUs, gloo between CPUs); alone without it.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        RecipeError: ``cuda`` is asked for and there is no GPU.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise RecipeError("expected a GPU for scale.device cuda, got none: use auto or cpu")
    kind = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield World(0, 1, torch.device(kind))
        return
    here = torch.device(kind, int(os.environ["LOCAL_RANK"])) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(here)
    dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    try:
        yield World(dist.get_rank(), dist.get_world_size(), here)
    finally:
        dist.destroy_process_group()


class _Gather(torch.autograd.Function):
    """All processes' rows; backward takes the own rows of the whole loss's gradient, times the number of processes."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.count = len(rows)
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        start = dist.get_rank() * ctx.count
        return gradients[0][start : start + ctx.count] * dist.get_world_size()


def gather(rows: Tensor, world: World) -> Tensor:
    """(n, ...) on each process → (n · size, ...) by rank, differentiable; every process must compute the same loss."""
    if world.size == 1:
        return rows
    joint: Tensor = _Gather.apply(rows)
    return joint


def distribute(model: nn.Module, world: World, strategy: Strategy) -> nn.Module:
    """The model as a member of its world: gradients are averaged over the processes in the backward pass.

    Args:
        strategy: ``ddp`` keeps a whole copy in each process. ``fsdp`` (FSDP2) keeps a share of every block's
            parameters, gradients and optimizer state, and puts a block together when it is computed.
    """
    if strategy == "fsdp":
        return _shard(model, world)
    if world.size == 1:
        return model
    devices = [world.device.index] if world.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices)


def _shard(model: nn.Module, world: World) -> nn.Module:
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    if world.size == 1:
        raise RecipeError(
            "expected several processes for scale.strategy fsdp, got one: start with torchrun, or use ddp"
        )
    mesh = dist.device_mesh.init_device_mesh(world.device.type, (world.size,))
    for block in blocks_of(model):
        fully_shard(block, mesh=mesh)
    # Scalars (temperature, bias) cannot be sharded, and need no exchange: their gradient is the same everywhere.
    scalars = {parameter for parameter in model.parameters() if not parameter.dim()}
    sharded: Any = fully_shard(model, mesh=mesh, ignored_params=scalars)
    for method in ("encode_image", "encode_text"):  # called by the validation beside forward
        if hasattr(sharded, method):
            register_fsdp_forward_method(sharded, method)
    whole_model: nn.Module = sharded
    return whole_model


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The repeated blocks of the towers: outermost lists of at least two modules of one class."""
    found: list[nn.Module] = []
    for child in model.children():
        members = list(child.children()) if isinstance(child, nn.ModuleList | nn.Sequential) else []
        alike = len(members) > 1 and len({type(member) for member in members}) == 1
        if alike and any(True for _ in members[0].parameters()):
            found += members
        else:
            found += blocks_of(child)
    return found


@contextlib.contextmanager
def gradients_stay_here(model: nn.Module) -> Iterator[None]:
    """Inside, backward passes add up in this process; the first one after it exchanges the sum."""
    if isinstance(model, DistributedDataParallel):
        with model.no_sync():
            yield
        return
    switch = getattr(model, "set_requires_gradient_sync", None)  # of FSDP2
    if switch is None:
        yield
        return
    switch(False)
    try:
        yield
    finally:
        switch(True)


def bare(model: nn.Module) -> nn.Module:
    """The model inside its DDP wrapper; FSDP2 has none."""
    inner: nn.Module = model.module if isinstance(model, DistributedDataParallel) else model
    return inner


def whole(tensor: Tensor) -> Tensor:
    """A tensor that FSDP2 has sharded, put together (all processes must call this); any other as it is."""
    full = getattr(tensor, "full_tensor", None)
    joined: Tensor = full() if full else tensor
    return joined


def whole_weights(model: nn.Module, instead: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All weights, in full in the first process; all processes must call this.

    Args:
        instead: weights that take the place of the model's own of the same name.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights: dict[str, Any] = get_model_state_dict(model, options=options)
    return {**weights, **{name: whole(value) for name, value in instead.items()}}


def assign(target: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into one that may be sharded."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    with torch.no_grad():
        if isinstance(target, DTensor):
            target.copy_(distribute_tensor(value.to(target.device), target.device_mesh, target.placements))
        else:
            target.copy_(value)


def share_of(total: int, world: World, *, name: str) -> int:
    """What each process takes of ``total``.

    Raises:
        RecipeError: it cannot be divided evenly.
    """
    if total % world.size:
        raise RecipeError(f"expected {name} as a multiple of the {world.size} processes, got {total}: change it")
    return total // world.size
