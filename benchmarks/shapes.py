"""A model trained from nothing on coloured shapes: does it name the combinations that it has never seen?

    python benchmarks/shapes.py [--recipe recipes/scratch-vit.yaml] [--set key=value …]

Writes the generated set to a temporary folder, trains the recipe on it, and scores the saved checkpoint zero-shot on
the held-out combinations and on those of the training, among all 64 names. Prints accuracy, seconds and the machine.
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
import time
from pathlib import Path

from rich.console import Console

from edgeclip.devices.machine.probe import describe_machine, summary
from edgeclip.training.checkpoint.checkpoint import load_checkpoint
from edgeclip.training.loop.trainer import train_recipe
from edgeclip.training.loop.validate import ZeroShot
from edgeclip.training.recipe import Data, Recipe
from edgeclip.training.recipe_file import load_recipe
from tools.shapes import CLASSES, held_out, write_shapes

ROOT = Path(__file__).resolve().parents[1]


def measure(path: Path, overrides: list[str], folder: Path) -> dict[str, float]:
    """Train in ``folder``; top-1 of both kinds of combinations, and seconds of wall clock and processor."""
    shapes = folder / "shapes"
    begun = time.perf_counter()
    write_shapes(shapes)
    written = time.perf_counter()
    here = [f"data.pairs={shapes}/train-*.tar", f"data.val={shapes}/held-out-*.tar"]
    recipe = load_recipe(path, overrides=[*here, f"data.val_classes={shapes}/classes.json", *overrides])
    assert isinstance(recipe, Recipe)
    before = _cpu_s()
    train_recipe(recipe, folder / "run", console=Console(file=io.StringIO()))
    trained, used = time.perf_counter(), _cpu_s() - before
    model = load_checkpoint(str(folder / "run" / "checkpoint"))
    top1 = {}
    for name in ("held-out", "seen"):
        data = Data(pairs="", val=f"{shapes}/{name}-*.tar", val_classes=recipe.data.val_classes)
        top1[name] = ZeroShot(data, model.encoder.preprocess).top1(model.encode_image, model.encode_text)
    return {**top1, "generate_s": written - begun, "train_s": trained - written, "cpu_s": used}


def _cpu_s() -> float:
    """Processor time of this process and of the loader's workers that have ended."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "scratch-vit.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(given.recipe, given.set, Path(folder))
    unseen = sum(held_out(label) for label in range(len(CLASSES)))
    print(
        f"top-1 among {len(CLASSES)} names, zero-shot, {unseen} combinations never trained on: {found['held-out']:.4f}"
    )
    print(f"top-1 among {len(CLASSES)} names, new images of the {len(CLASSES) - unseen} others: {found['seen']:.4f}")
    print(
        f"{found['train_s']:.1f} s to train, of the processor {found['cpu_s']:.1f} s (model building, logs and "
        f"validation too); {found['generate_s']:.1f} s to draw the images, on {summary(describe_machine())}"
    )


if __name__ == "__main__":
    main()
