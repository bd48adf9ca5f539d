"""A small transformer with real weights, quantized: zero-shot top-1 of each variant, and what the export's proof says.

    python benchmarks/small_vit.py --data ../shared/data [--checkpoint runs/small-vit]

Trains ``recipes/small-vit.yaml`` (or takes the checkpoint of an earlier run) and exports it with every variant named,
ranges measured on 128 of the 500 ImageNet photographs. Scores each variant on Tiny-ImageNet's validation set, which is
held out, and on CIFAR-10. FP16 is scored on an engine that may compute it in float32; its proof is of a graph that
rounds. A variant that misses a limit of the export's gate stops the run. Prints the machine.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
from pathlib import Path

import msgspec
from rich.console import Console
from wise_ft import image_folder

from edgeclip import load_templates
from edgeclip.calibration.images import sample_images
from edgeclip.devices.machine.probe import describe_machine, summary
from edgeclip.evaluation.accuracy.zeroshot import evaluate_folder
from edgeclip.export.bundle import CALIBRATION_IMAGES, VariantOptions, export_bundle
from edgeclip.export.photographs import photographs
from edgeclip.runtime.proof.parity import ParityReport
from edgeclip.training.load import load_model
from edgeclip.training.loop.trainer import train_recipe
from edgeclip.training.recipe import Recipe
from edgeclip.training.recipe_file import load_recipe

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Train, export, score, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with the data sets")
    parser.add_argument("--checkpoint", help="of an earlier run; no training then")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one of the recipe")
    parser.add_argument("--variants", nargs="*", default=["fp16", "int8", "int8-cpu"])
    given = parser.parse_args()
    templates = load_templates("simple")
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = given.checkpoint
        if not checkpoint:
            recipe = load_recipe(ROOT / "recipes" / "small-vit.yaml", overrides=given.set)
            assert isinstance(recipe, Recipe)
            checkpoint = str(Path(scratch) / "run")
            train_recipe(recipe, Path(checkpoint), console=Console(file=io.StringIO()))
        calibration = sample_images(given.data / "imagenet-sample", CALIBRATION_IMAGES, seed=0)
        bundle = export_bundle(
            load_model(checkpoint),
            Path(scratch) / "small-vit.edgeclip",
            photos=photographs(),
            variants=VariantOptions(tuple(given.variants), calibration),
        )
        for variant in bundle.manifest.variants:
            report = json.loads(bundle.file(f"reports/parity-{variant.name}.json").read_text())["parity"]
            parity = msgspec.convert(report, ParityReport)
            agreement = "" if parity.agreement is None else f"; same best class {parity.agreement:.1%}"
            size = bundle.variant_path(variant.name).stat().st_size
            print(
                f"{variant.name}: {size / 2**20:.1f} MiB; on {parity.images} images cosine worst "
                f"{parity.min_cosine:.5f}, mean {parity.mean_cosine:.5f}, centred mean "
                f"{parity.mean_centred_cosine:.5f}{agreement}"
            )
        tiny, names = image_folder(given.data / "tiny-imagenet", Path(scratch) / "tiny-imagenet-val", 25)
        for data, named in ((tiny, names), (given.data / "cifar10-test", None)):
            for variant in bundle.manifest.variants:
                against = None if variant.name == "fp32" else "fp32"
                found = evaluate_folder(
                    bundle, data, templates=templates, names=named, variant=variant.name, against=against
                )
                low, high = found.ci95
                print(
                    f"{data.name}, {found.classes} classes, {found.n:,} images, {variant.name}: top-1 {found.top1:.4f} "
                    f"(95 % {low:.4f}–{high:.4f}), top-5 {found.top5:.4f}"
                    + (f"; {found.difference}" if found.difference else ""),
                    flush=True,
                )
    print(f"on {summary(describe_machine())}")


if __name__ == "__main__":
    main()
