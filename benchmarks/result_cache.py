"""Quantizing a first time, and again from the cache.

    python benchmarks/result_cache.py --images FOLDER [--families ViT-B-32 RN50 starter] [--count 64] [--rounds 3]

For each family and round the cache is emptied, then ``quantize`` is called twice with the same graph, images and
recipe; that both graphs have the same bytes is checked. Open_clip families have random weights, on which no time
depends. Libraries are loaded before. Prints the machine.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from edgeclip import Bundle
from edgeclip.calibration.images import sample_images
from edgeclip.devices.machine.probe import describe_machine, installed_versions, summary
from edgeclip.export.bundle import calibration_inputs
from edgeclip.export.int8.quantization import default_recipe, quantize
from edgeclip.export.onnx import export_onnx
from edgeclip.prompts import FloatArray
from edgeclip.spec import EncoderSpec
from edgeclip.training.load import load_model


def open_family(name: str, folder: Path) -> tuple[Path, EncoderSpec]:
    """The FP32 graph of an open_clip model with random weights, or of the starter."""
    if name == "starter":
        bundle = Bundle.open("starter")
        return bundle.variant_path("fp32"), bundle.manifest.encoder
    model = load_model(name, pretrained="none", seed=0)
    fp32 = folder / f"{name}.onnx"
    export_onnx(model.exportable(), model.encoder, fp32, metadata={})
    return fp32, model.encoder


def timed(fp32: Path, images: FloatArray, target: Path) -> tuple[float, bytes]:
    """Seconds of a call of ``quantize``, and the graph's bytes."""
    start = time.perf_counter()
    quantize(fp32, target, images, default_recipe(fp32))
    return time.perf_counter() - start, target.read_bytes()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--families", nargs="+", default=["ViT-B-32", "RN50", "starter"])
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    print(f"machine: {summary(describe_machine())}; load average {os.getloadavg()[0]:.1f} at the start")
    versions = installed_versions(("edgeclip", "torch", "onnx", "onnxruntime", "nncf"))
    print("versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()))
    print(f"{given.count} images, median of {given.rounds} rounds, seconds\n{'':<16}{'first':>8}{'again':>8}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ["EDGECLIP_CACHE"] = str(folder / "cache")
        for name in given.families:
            fp32, encoder = open_family(name, folder)
            images = calibration_inputs(sample_images(given.images, given.count), (), encoder)
            target = folder / "int8.onnx"
            timed(fp32, images[:1], target)  # libraries are loaded
            pairs = []
            for _ in range(given.rounds):
                shutil.rmtree(folder / "cache")
                (first, made), (again, found) = timed(fp32, images, target), timed(fp32, images, target)
                assert made == found, f"{name}: the graph from the cache has other bytes"
                pairs.append((first, again))
            medians = [statistics.median(times) for times in zip(*pairs, strict=True)]
            print(f"{name:<16}{medians[0]:>8.1f}{medians[1]:>8.2f}", flush=True)


if __name__ == "__main__":
    main()
