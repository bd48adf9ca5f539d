"""The WiSE-FT curve of a fine-tuned starter: top-1 on what it was tuned for against top-1 under shift, by alpha.

    python benchmarks/wise_ft.py --data ../shared/data [--json FILE]

The starter's last blocks and its projections are fine-tuned on Tiny-ImageNet (``train-000.tar``): the rest of the image
tower and the text tower stay as they are, which is what two CPU cores can do in minutes. Target is Tiny-ImageNet's
validation set; Caltech-101, CIFAR-10 and cue-conflict (its three kinds of pictures in one set) are shifts that nothing
is trained or chosen on. Writes ``curve.json`` and ``curve.png``; prints the curve, what it cost and the machine.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import tarfile
import tempfile
import time
from pathlib import Path

import msgspec
from rich.console import Console

from edgeclip.evaluation.wise import WiseOptions, measure_wise, read_sets, save_wise, wise_lines
from edgeclip.files import write_json
from edgeclip.training.adapt.wise import CheckpointsBetween
from edgeclip.training.loop.trainer import train_recipe
from edgeclip.training.recipe import Augment, Data, Log, Model, Optimizer, Recipe, Tower

TRAINED = r"^(blocks\.1[2-5]|head)\."


def main() -> None:
    """Fine-tune, measure, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with the data sets")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--alphas", nargs="+", type=float, default=[0, 0.25, 0.5, 0.75, 1])
    parser.add_argument("--per-class", type=int, default=10, help="validation images of each class")
    parser.add_argument("--fine-tuned", help="a checkpoint of an earlier run; no training then")
    parser.add_argument("--output", type=Path, default=Path("wise-ft-results"))
    parser.add_argument("--json", type=Path, help="write the figures here too")
    given = parser.parse_args()
    tiny = given.data / "tiny-imagenet"
    with tempfile.TemporaryDirectory() as folder:
        target, names = image_folder(tiny, Path(folder) / "tiny-imagenet-val", given.per_class)
        cue = one_folder(given.data / "cue-conflict", Path(folder) / "cue-conflict")
        sets = read_sets(target, [given.data / "caltech101", given.data / "cifar10-test", cue], names)

        run = given.output / "run"
        fine_tuned = given.fine_tuned or str(run)
        if not given.fine_tuned:
            recipe = recipe_of(tiny, given.steps, given.batch, given.lr)
            started, cpu = time.perf_counter(), time.process_time()
            train_recipe(recipe, run, console=Console(file=io.StringIO()), overwrite=True)
            losses = [json.loads(line).get("loss") for line in (run / "log.jsonl").read_text().splitlines()]
            known = [loss for loss in losses if loss is not None]
            print(
                f"fine-tuned {recipe.model.image.trainable} of the image tower and the projections: {given.steps} "
                f"steps of {given.batch}, AdamW lr {given.lr:g}; loss {known[0]:.3f} → {known[-1]:.3f}; "
                f"{spent(started, cpu)}",
                flush=True,
            )

        started, cpu = time.perf_counter(), time.process_time()
        way = CheckpointsBetween("starter", fine_tuned)
        report = measure_wise(way, sets, WiseOptions(alphas=tuple(given.alphas), names=names))
        report = msgspec.structs.replace(report, fine_tuned=Path(fine_tuned).name)
        images = sum(len(item.files) for item in sets)
        print("\n".join(wise_lines(report)))
        print(f"{len(given.alphas)} models on {images:,} images: {spent(started, cpu)}")
        save_wise(report, given.output)
        if given.json:
            write_json(given.json, report)


def recipe_of(tiny: Path, steps: int, batch: int, lr: float) -> Recipe:
    """Partial fine-tuning of the starter."""
    return Recipe(
        name="wise-ft-benchmark",
        model=Model(
            start="starter",
            image=Tower(name="efficientnet-lite0", trainable=TRAINED),
            text=Tower(name="minilm", locked=True),
            embedding_dim=200,
        ),
        data=Data(pairs=str(tiny / "train-000.tar"), classes=str(tiny / "classes.json"), workers=1),
        augment=Augment(crop_scale=(0.5, 1.0), flip=0.5),
        optimizer=Optimizer(steps=steps, batch_size=batch, lr=lr, weight_decay=0.01, warmup=min(10, steps)),
        log=Log(every=5, save_every=0, eval_every=0, tensorboard=False),
    )


def image_folder(tiny: Path, folder: Path, per_class: int) -> tuple[Path, Path]:
    """The first validation images of each class as files under their WordNet id, and a JSON of the classes' names."""
    classes = json.loads((tiny / "classes.json").read_text())
    counts = [0] * len(classes)
    with tarfile.open(tiny / "val-000.tar") as packed:
        files = {member.name: member for member in packed.getmembers()}
        for name in sorted(name for name in files if name.endswith(".cls")):
            label = int(packed.extractfile(files[name]).read())  # type: ignore[union-attr]
            if counts[label] < per_class:
                counts[label] += 1
                image = name.replace(".cls", ".jpg")
                path = folder / classes[label]["wnid"] / Path(image).name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(packed.extractfile(files[image]).read())  # type: ignore[union-attr]
    names = folder.with_suffix(".json")
    write_json(names, {item["wnid"]: item["names"] for item in classes})
    return folder, names


def one_folder(kinds: Path, folder: Path) -> Path:
    """Several folders of the same classes as one."""
    for path in sorted(kinds.glob("*/*/*")):
        copied = folder / path.parent.name / f"{path.parent.parent.name}-{path.name}"
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copied)
    return folder


def spent(started: float, cpu: float) -> str:
    """Time since both clocks were read, of this process alone."""
    return f"{time.perf_counter() - started:.0f} s, {time.process_time() - cpu:.0f} s of CPU"


if __name__ == "__main__":
    main()
