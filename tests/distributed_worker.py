"""Started by torchrun: this process's share of a joint batch through models, their losses and gradients into a file.

torchrun --nproc-per-node N tests/distributed_worker.py OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from edgeclip.training.build_model import build_two_tower
from edgeclip.training.loop.distributed import Strategy, distribute, join_world, whole
from edgeclip.training.loop.grad_cache import forward_backward
from edgeclip.training.loop.task import contrastive_objective
from edgeclip.training.recipe import Loss, Model, Tower
from edgeclip.training.two_tower import TwoTower

PAIRS = 12
# Loss, strategy and chunk size.
CASES: list[tuple[str, Strategy, int]] = [
    ("infonce", "ddp", 0),
    ("siglip", "ddp", 0),
    ("infonce", "ddp", 4),
    ("infonce", "fsdp", 0),
    ("siglip", "fsdp", 4),
]


def model_of(kind: str) -> TwoTower:
    """A tiny model with random weights."""
    image = Tower(name="vit", options={"width": 16, "depth": 2, "heads": 2, "patch": 8, "image_size": 16})
    text = Tower(name="transformer", options={"width": 16, "depth": 2, "heads": 2, "context": 8})
    loss = Loss(kind="siglip" if kind == "siglip" else "infonce", logit_bias=-3.0)
    return build_two_tower(Model(image=image, text=text, embedding_dim=8), seed=0, loss=loss)


def joint_batch(model: TwoTower) -> tuple[Tensor, Tensor, Tensor]:
    """Images, tokens and groups of all processes' pairs; some say the same."""
    images = torch.randn(PAIRS, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    texts = [f"picture {'abcdefghij'[i % 10]}" for i in range(PAIRS)]
    return images, model.tokenize(texts), torch.tensor([i % 10 for i in range(PAIRS)])


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Of every parameter by its name, whole."""
    return {
        name.removeprefix("module."): whole(parameter.grad).clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def main() -> None:
    """Write losses and gradients from the first process."""
    found = {}
    with join_world("cpu") as world:
        torch.manual_seed(world.rank)  # processes share weights and data, not luck
        for case in CASES:
            kind, strategy, chunk = case
            towers = model_of(kind)
            images, tokens, groups = (rows.chunk(world.size)[world.rank] for rows in joint_batch(towers))
            model = distribute(towers, world, strategy)
            loss = forward_backward(model, (images, tokens), contrastive_objective(groups, world), chunk=chunk)
            found[str(case)] = {"loss": loss, "gradients": gradients(model)}
        if world.main:
            torch.save(found, Path(sys.argv[1]))
        world.wait()


if __name__ == "__main__":
    main()
