"""Measuring ranges for INT8: a first time, and again with the statistics that were kept; in pairs.

    python benchmarks/range_cache.py --images FOLDER [--families ViT-B-32 RN50 starter] [--count 64] [--rounds 2]
        [--search starter] [--commands] [--json FILE]

For each family and round the kept statistics are deleted, then ``quantize`` is called: on
``--count`` images, on the same again, and on twice as many. Libraries are loaded before. With ``--search``, the recipes
that ``edgeclip quantize`` tries are gone through, with statistics kept from one to the next, and deleted before each.
With ``--commands``, ``edgeclip export`` of the starter is run as a whole. Open_clip families have random weights, on
which no time depends. Beside the time on the clock stands that of the processor, which says more of a machine that does
other things too. Prints the machine.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec

from edgeclip import Bundle
from edgeclip.calibration.images import sample_images
from edgeclip.devices.machine.probe import describe_machine, installed_versions, summary
from edgeclip.export.bundle import calibration_inputs
from edgeclip.export.int8.quantization import ESTIMATORS, QuantizationRecipe, default_recipe, is_transformer, quantize
from edgeclip.export.int8.search import ALPHAS, blocks
from edgeclip.export.onnx import export_onnx
from edgeclip.extras import require
from edgeclip.files import cache_place, write_json
from edgeclip.prompts import FloatArray
from edgeclip.spec import EncoderSpec
from edgeclip.training.load import load_model


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of run without, and then with, what was kept: medians over rounds.

    Attributes:
        seconds: on the clock.
        cpu_seconds: of this process and its children, all threads.
        ratio: of the seconds, round by round.
        images_run: how often an image was run; None where that is not known.
    """

    what: str
    seconds: tuple[float, float]
    cpu_seconds: tuple[float, float]
    ratio: float
    images_run: tuple[int, int] | None = None


class Spent(NamedTuple):
    """Seconds on the clock and of the processor."""

    seconds: float
    cpu: float


def statistics_folder() -> Path:
    """Where the statistics are kept."""
    return cache_place() / "activation-statistics"


def forget() -> None:
    """Delete the statistics that were kept."""
    shutil.rmtree(statistics_folder(), ignore_errors=True)


def cpu_seconds() -> float:
    """Of this process and those of its children that have ended."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def timed(run: Callable[[], object]) -> Spent:
    """What a call takes."""
    start, cpu = time.perf_counter(), cpu_seconds()
    run()
    return Spent(time.perf_counter() - start, cpu_seconds() - cpu)


def row(what: str, pairs: list[tuple[Spent, Spent]], images_run: tuple[int, int] | None = None) -> Row:
    """Medians of runs without and with what was kept."""
    middle = statistics.median
    seconds = middle(one.seconds for one, _ in pairs), middle(other.seconds for _, other in pairs)
    cpu = middle(one.cpu for one, _ in pairs), middle(other.cpu for _, other in pairs)
    ratio = middle(one.seconds / other.seconds for one, other in pairs)
    runs = "" if images_run is None else f"{images_run[0]:>8}{images_run[1]:>6}"
    print(f"{what:<52}{seconds[0]:>8.1f}{seconds[1]:>7.1f}{ratio:>7.1f}{cpu[0]:>9.1f}{cpu[1]:>7.1f}{runs}", flush=True)
    return Row(what=what, seconds=seconds, cpu_seconds=cpu, ratio=ratio, images_run=images_run)


def open_family(name: str, folder: Path) -> tuple[Path, EncoderSpec]:
    """The FP32 graph of an open_clip model with random weights, or of the starter."""
    if name == "starter":
        bundle = Bundle.open("starter")
        return bundle.variant_path("fp32"), bundle.manifest.encoder
    model = load_model(name, pretrained="none", seed=0)
    fp32 = folder / f"{name}.onnx"
    export_onnx(model.exportable(), model.encoder, fp32, metadata={})
    return fp32, model.encoder


def recipes(fp32: Path) -> list[QuantizationRecipe]:
    """Those of a search that tries everything, leaves three numbers of blocks in FP32 and makes the last one again."""
    ir = require("onnx_ir", purpose="read ONNX graphs", extra="export")
    start = default_recipe(fp32)
    tried = [msgspec.structs.replace(start, range_estimator=estimator) for estimator in ("mse", *ESTIMATORS[:3])]
    if is_transformer(ir.load(str(fp32))):
        tried += [msgspec.structs.replace(start, smooth_alpha=alpha) for alpha in ALPHAS[1:]]
    nodes = list(blocks(fp32).values())
    for count in (len(nodes) // 2, len(nodes) // 4, len(nodes) // 8):
        tried.append(msgspec.structs.replace(start, keep_float=tuple(name for part in nodes[:count] for name in part)))
    return [*tried, tried[-1]]


def compare(name: str, fp32: Path, images: FloatArray, rounds: int, target: Path) -> list[Row]:
    """The same images again, and twice as many after half of them."""
    again, more = [], []
    runs: list[str] = []
    ran: list[tuple[int, int]] = []
    half = images[: len(images) // 2]

    def run(chosen: FloatArray) -> Spent:
        runs.clear()
        return timed(lambda: quantize(fp32, target, chosen, default_recipe(fp32), progress=runs.append))

    run(images[:1])  # libraries are loaded
    for _ in range(rounds):
        forget()
        first, first_runs = run(half), len(runs)
        again.append((first, run(half)))
        ran.append((first_runs, len(runs)))
        kept, kept_runs = run(images), len(runs)
        forget()
        more.append((run(images), kept))
        ran.append((len(runs), kept_runs))
    size = sum(path.stat().st_size for path in statistics_folder().iterdir()) / len(images)
    print(f"{name}: {size / 1e6:.2f} MB kept an image")
    return [
        row(f"{name}, {len(half)} images, then the same", again, ran[0]),
        row(f"{name}, {len(images)} images, after {len(half)} of them", more, ran[1]),
    ]


def search(name: str, fp32: Path, images: FloatArray, target: Path) -> Row:
    """The recipes of a search, with statistics kept between them, and deleted."""
    tried = recipes(fp32)
    runs: list[str] = []

    def run(*, keep: bool) -> None:
        for recipe in tried:
            if not keep:
                forget()
            quantize(fp32, target, images, recipe, progress=runs.append)

    forget()
    kept = timed(lambda: run(keep=True))
    kept_runs = len(runs)
    without = timed(lambda: run(keep=False))
    what = f"{name}, {len(images)} images, {len(tried)} recipes of a search"
    return row(what, [(without, kept)], (len(runs) - kept_runs, kept_runs))


def command(images: Path, rounds: int, folder: Path) -> Row:
    """The whole export of the starter."""
    variants = "fp16, int8, int8-cpu"
    export = [
        *(sys.executable, "-m", "edgeclip", "export", "starter", "--output", str(folder / "starter.edgeclip")),
        *("--overwrite", "--variants", variants, "--calibration", str(images)),
    ]

    def run() -> Spent:
        return timed(lambda: subprocess.run(export, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

    run()  # what else is kept is there
    pairs = []
    for _ in range(rounds):
        forget()
        pairs.append((run(), run()))
    return row(f'edgeclip export starter --variants "{variants}"', pairs)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--families", nargs="+", default=["ViT-B-32", "RN50", "starter"])
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--search", nargs="*", default=[], metavar="FAMILY")
    parser.add_argument("--commands", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print(f"command: python benchmarks/{Path(__file__).name} {' '.join(sys.argv[1:])}")
    print(f"machine: {summary(describe_machine())}; load average {os.getloadavg()[0]:.1f} at the start")
    versions = installed_versions(("edgeclip", "torch", "onnx", "onnxruntime", "nncf"))
    print("versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()))
    print(f"{'':<52}{'seconds':>15}{'':>7}{'CPU seconds':>16}{'images run':>14}")
    print(f"{'median':<52}{'anew':>8}{'kept':>7}{'ratio':>7}{'anew':>9}{'kept':>7}{'anew':>8}{'kept':>6}")
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ["EDGECLIP_CACHE"] = str(folder / "cache")
        for name in options.families:
            fp32, encoder = open_family(name, folder)
            images = calibration_inputs(sample_images(options.images, 2 * options.count), (), encoder)
            rows += compare(name, fp32, images, options.rounds, folder / "int8.onnx")
            if name in options.search:
                rows.append(search(name, fp32, images[: options.count // 2], folder / "int8.onnx"))
        if options.commands:
            rows.append(command(options.images, options.rounds, folder))
    if options.json:
        write_json(options.json, {"machine": describe_machine(), "versions": versions, "rows": rows})


if __name__ == "__main__":
    main()
