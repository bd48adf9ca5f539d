"""Samples a second of our training loop and of open_clip's own, the same model, batch and data, interleaved in one run.

    python benchmarks/training.py [--model ViT-S-32] [--batch 32] [--steps 8] [--rounds 3] [--threads N]

Both read the same generated WebDataset shards with one worker, crop at random, run the towers in FP32 on the CPU, clip
the gradient and step AdamW. Each round runs ``--steps`` steps to warm up and as many that are timed, of one loop and
then of the other; model building is left out. open_clip's side is ``open_clip_train.train.train_one_epoch`` on
``open_clip_train.data``'s loader, unchanged.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip_train import data as their_data
from open_clip_train.params import parse_args
from open_clip_train.scheduler import cosine_lr
from open_clip_train.train import train_one_epoch
from rich.console import Console

from edgeclip.devices.machine.probe import describe_machine, installed_versions, summary
from edgeclip.training.loop.trainer import train_recipe
from edgeclip.training.recipe import Augment, Data, Log, Model, Optimizer, Recipe, Tower
from tools.shapes import write_shapes

LR, WEIGHT_DECAY, CLIP, CROP = 1e-4, 0.1, 1.0, (0.9, 1.0)


class Stamped:
    """open_clip's loader with the time at which a batch was handed out."""

    def __init__(self, loader: Any, batch: int) -> None:
        self._loader, self._batch = loader, batch
        self.num_batches, self.num_samples = loader.num_batches, loader.num_samples
        self.begun = 0.0

    def __iter__(self) -> Iterator[Any]:
        for number, batch in enumerate(self._loader):
            if number == self._batch:
                self.begun = time.perf_counter()
            yield batch


def theirs(name: str, shards: str, batch: int, steps: int) -> float:
    """Samples a second of open_clip's loop, after as many steps to warm up."""
    args = parse_args(
        f"--model {name} --dataset-type webdataset --train-data {shards} --train-num-samples {2 * steps * batch} "
        f"--batch-size {batch} --workers 1 --precision fp32 --lr {LR} --wd {WEIGHT_DECAY} --grad-clip-norm {CLIP} "
        f"--warmup 2 --log-every-n-steps {steps} --epochs 1".split()
    )
    args.device, args.distributed, args.rank, args.local_rank, args.world_size = "cpu", False, 0, 0, 1
    args.horovod, args.distill, args.wandb, args.tensorboard = False, False, False, False
    model, preprocess, _ = open_clip.create_model_and_transforms(name, aug_cfg={"scale": CROP}, output_dict=True)
    tokenizer = open_clip.get_tokenizer(name)
    data = {"train": their_data.get_wds_dataset(args, preprocess, True, tokenizer=tokenizer)}
    stamped = data["train"].dataloader = Stamped(data["train"].dataloader, steps)
    named = list(model.named_parameters())
    plain = [item for name, item in named if item.ndim < 2 or "bn" in name or "ln" in name or "logit_scale" in name]
    decayed = [item for _, item in named if all(item is not other for other in plain)]
    optimizer = torch.optim.AdamW(
        [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": WEIGHT_DECAY}],
        lr=LR,
        betas=(0.9, 0.98),
        eps=1e-6,
    )
    loss = open_clip.ClipLoss()
    schedule = cosine_lr(optimizer, LR, 2, 2 * steps)
    train_one_epoch(model, data, loss, 0, optimizer, None, schedule, None, args)
    return steps * batch / (time.perf_counter() - stamped.begun)


def ours(name: str, shards: str, batch: int, steps: int, folder: Path) -> float:
    """Samples a second of our loop, as it logs them itself, after as many steps to warm up."""
    width = open_clip.get_model_config(name)["embed_dim"]
    tower = Tower(name=f"open_clip:{name}", pretrained="none")
    recipe = Recipe(
        name="benchmark",
        model=Model(image=tower, text=tower, embedding_dim=width),
        data=Data(pairs=shards, workers=1),
        augment=Augment(crop_scale=CROP),
        optimizer=Optimizer(
            steps=2 * steps, batch_size=batch, lr=LR, weight_decay=WEIGHT_DECAY, warmup=2, clip=CLIP, betas=(0.9, 0.98)
        ),
        log=Log(every=steps, save_every=0, eval_every=0, tensorboard=False),
    )
    train_recipe(recipe, folder, console=Console(file=io.StringIO()), overwrite=True)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return float(lines[-1]["samples_per_s"])


def main() -> None:
    """Print each round, the medians and the machine."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="ViT-S-32")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    logging.disable(logging.CRITICAL)
    speeds: dict[str, list[float]] = {"edgeclip": [], "open_clip": []}
    with tempfile.TemporaryDirectory() as name:
        shapes = Path(name) / "shapes"
        write_shapes(shapes, train=4096, val=64)
        shards = str(shapes / "train-000.tar")
        for number in range(given.rounds):
            with contextlib.redirect_stdout(io.StringIO()):
                mine = ours(given.model, shards, given.batch, given.steps, Path(name) / "run")
                other = theirs(given.model, shards, given.batch, given.steps)
            speeds["edgeclip"].append(mine)
            speeds["open_clip"].append(other)
            print(f"round {number + 1}: edgeclip {mine:6.2f}  open_clip {other:6.2f} samples/s", flush=True)
    medians = {who: statistics.median(found) for who, found in speeds.items()}
    print(
        f"median: edgeclip {medians['edgeclip']:.2f}, open_clip {medians['open_clip']:.2f} samples/s, "
        f"ratio {medians['edgeclip'] / medians['open_clip']:.3f}"
    )
    tools = ", ".join(f"{tool} {version}" for tool, version in installed_versions(("torch", "open_clip_torch")).items())
    print(
        f"{given.model}, batch {given.batch}, FP32, {given.threads} threads, {tools}, on {summary(describe_machine())}"
    )


if __name__ == "__main__":
    main()
