"""Samples a second of the training loader beside torchvision's ImageFolder and webdataset, on the same images.

    python benchmarks/loader.py ../shared/data/caltech101 [--size 224 --workers 2 --batch 64 --rounds 5 --json FILE]

The class folders' images are also packed into four tars. Every loader decodes them, crops at random, flips, resizes
to ``--size`` (bicubic, antialiased) and normalises, in ``--workers`` processes; ours also chooses what is said of each.
The peers use torchvision's v2 transforms on PIL images, which is their usual form, and on uint8 tensors, which is ours.

The loaders take turns in each round, so that a busy machine slows all of them. What a loader had fetched ahead is
thrown away before its clock starts. ``core ms`` is the processor time of a sample with no workers, ``first batch`` the
time from making a loader to its first batch, ``resume`` that of going on in mid-epoch from a saved state. Prints the
machine.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from edgeclip import PreprocessSpec
from edgeclip.devices.machine.probe import describe_machine, installed_versions, summary
from edgeclip.runtime.images import list_labelled
from edgeclip.training.data.loader import PairLoader
from edgeclip.training.data.pairs import open_pairs
from edgeclip.training.recipe import Augment, Data

SHARDS = 4
CROP = (0.5, 1.0)
MEAN, STD = (0.481, 0.458, 0.408), (0.269, 0.261, 0.276)
Batches = Iterator[Any]


def pack(folder: Path, target: Path) -> str:
    """Write the folder's images as shards, in random order; their pattern."""
    files, _ = list_labelled(folder)
    order = np.random.default_rng(0).permutation(len(files))
    for shard in range(SHARDS):
        with tarfile.open(target / f"train-{shard:03}.tar", "w") as archive:
            for row in order[shard::SHARDS]:
                path, label = files[row]
                for suffix, data in ((path.suffix.lower(), path.read_bytes()), (".cls", str(label).encode())):
                    info = tarfile.TarInfo(f"{row:08}{suffix}")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
    return str(target / f"train-{{000..{SHARDS - 1:03}}}.tar")


def transform(size: int, *, tensors: bool) -> Callable[[Any], torch.Tensor]:
    """What the peers do to a PIL image."""
    change = [
        v2.RandomResizedCrop(size, CROP, interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
        v2.RandomHorizontalFlip(),
    ]
    start, end = ([v2.PILToTensor()], []) if tensors else ([], [v2.PILToTensor()])
    return v2.Compose([*start, *change, *end, v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])


def by_torchvision(folder: Path, asked: argparse.Namespace, *, tensors: bool) -> Batches:
    """Endless batches of an ImageFolder."""
    images = ImageFolder(str(folder), transform(asked.size, tensors=tensors))
    loader = DataLoader(
        images, asked.batch, shuffle=True, num_workers=asked.workers, persistent_workers=asked.workers > 0
    )
    while True:
        yield from loader


def by_webdataset(pattern: str, asked: argparse.Namespace, *, tensors: bool) -> Batches:
    """Endless batches of shards, by the package."""
    import webdataset as wds

    change = transform(asked.size, tensors=tensors)
    pairs = (
        wds.WebDataset(pattern, shardshuffle=SHARDS)
        .shuffle(asked.buffer)
        .decode("pilrgb")
        .to_tuple("jpg;jpeg;png", "cls")
        .map_tuple(change, int)
        .batched(asked.batch)
        .repeat()
    )
    return iter(wds.WebLoader(pairs, batch_size=None, num_workers=asked.workers))


def ours(pairs: str, folder: Path, asked: argparse.Namespace) -> PairLoader:
    """Our loader over shards or the folder."""
    classes = asked.scratch / "classes.json"
    classes.write_text(json.dumps(list_labelled(folder)[1]))
    data = Data(pairs=pairs, classes=str(classes), workers=asked.workers, shuffle_buffer=asked.buffer)
    spec = PreprocessSpec(height=asked.size, width=asked.size, resize_to=asked.size, mean=MEAN, std=STD)
    return PairLoader(
        open_pairs(data), spec, data, batch_size=asked.batch, seed=0, augment=Augment(crop_scale=CROP, flip=0.5)
    )


def contenders(folder: Path, pattern: str, asked: argparse.Namespace) -> dict[str, Callable[[], Batches]]:
    """Makers of endless batches by name."""
    found: dict[str, Callable[[], Batches]] = {
        "edgeclip shards": lambda: iter(ours(pattern, folder, asked)),
        "edgeclip folder": lambda: iter(ours(str(folder), folder, asked)),
        "torchvision folder, PIL": lambda: by_torchvision(folder, asked, tensors=False),
        "torchvision folder, tensors": lambda: by_torchvision(folder, asked, tensors=True),
    }
    if "webdataset" in installed_versions(("webdataset",)):
        found["webdataset shards, PIL"] = lambda: by_webdataset(pattern, asked, tensors=False)
        found["webdataset shards, tensors"] = lambda: by_webdataset(pattern, asked, tensors=True)
    return found


def resume_s(pattern: str, folder: Path, asked: argparse.Namespace) -> tuple[int, float]:
    """(samples into the epoch, seconds to the first batch after loading the state there)."""
    loader = ours(pattern, folder, asked)
    for _ in itertools.islice(loader, max(1, len(list_labelled(folder)[0]) // asked.batch // 2)):
        state = loader.state_dict()
    again = ours(pattern, folder, asked)
    start = time.perf_counter()
    again.load_state_dict(state)
    next(iter(again))
    return state["batches"] * asked.batch, time.perf_counter() - start


def main() -> None:
    """Print one line a loader."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="one folder of images a class")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--buffer", type=int, default=500)
    parser.add_argument("--batches", type=int, default=12, help="that are timed in a turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        asked.scratch = Path(scratch)
        pattern = pack(asked.folder, asked.scratch)
        running: dict[str, Batches] = {}
        first_s: dict[str, float] = {}
        for name, make in contenders(asked.folder, pattern, asked).items():
            start = time.perf_counter()
            running[name] = make()
            next(running[name])
            first_s[name] = time.perf_counter() - start
        alone = argparse.Namespace(**{**vars(asked), "workers": 0})
        here = {name: make() for name, make in contenders(asked.folder, pattern, alone).items()}
        rates: dict[str, list[float]] = {name: [] for name in running}
        core_ms: dict[str, list[float]] = {name: [] for name in running}
        for _ in range(asked.rounds):
            for name, batches in running.items():
                for _ in itertools.islice(batches, 2 * asked.workers + 1):
                    pass
                start = time.perf_counter()
                for _ in itertools.islice(batches, asked.batches):
                    pass
                rates[name].append(asked.batch * asked.batches / (time.perf_counter() - start))
            for name, batches in here.items():
                next(batches)  # the first time, this fills its buffer
                start = time.process_time()
                for _ in itertools.islice(batches, asked.batches // 3):
                    pass
                core_ms[name].append((time.process_time() - start) * 1e3 / (asked.batch * (asked.batches // 3)))
        running.clear()
        drawn, again_s = resume_s(pattern, asked.folder, asked)
    machine = describe_machine()
    rows = [
        {
            "loader": name,
            "samples_per_s": round(float(np.median(found)), 1),
            "range": [round(min(found), 1), round(max(found), 1)],
            "core_ms": round(float(np.median(core_ms[name])), 2),
            "first_batch_s": round(first_s[name], 2),
        }
        for name, found in rates.items()
    ]
    print(f"{'loader':30}{'samples/s':>11}{'range':>18}{'core ms':>10}{'first batch s':>15}")
    for row in rows:
        span = "–".join(f"{rate:.0f}" for rate in row["range"])
        numbers = f"{row['samples_per_s']:>11.1f}{span:>18}{row['core_ms']:>10.2f}{row['first_batch_s']:>15.2f}"
        print(f"{row['loader']:30}{numbers}")
    print(f"resume {drawn} samples into an epoch: {again_s:.2f} s to the next batch")
    print(f"{asked.folder.name} to {asked.size} px, {asked.workers} workers, batches of {asked.batch}")
    print(f"{summary(machine)}; {installed_versions(('torch', 'torchvision', 'webdataset', 'pillow'))}")
    if asked.json:
        asked.json.write_text(json.dumps({"machine": machine, "rows": rows, "resume_s": again_s}, indent=1) + "\n")


if __name__ == "__main__":
    main()
