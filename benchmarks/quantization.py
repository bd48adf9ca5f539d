"""Every variant of several model families against FP32 in one run: size, agreement, and time on two CPU engines.

    python benchmarks/quantization.py [--families ViT-B-32 RN50] [--images ../shared/data/imagenet-sample] [--json FILE]

Needs the extra ``dev`` and a checkout. Ranges are measured on some images, variants held against FP32 on others. All
variants run on all engines in turn, in one process, one image at a time: each round gives each of them one untimed and
one timed run in random order, and its ratio to ONNX Runtime FP32 in that round. A variant that misses a limit of the
export's gate is shown with what it missed. The open_clip families have random weights: see what the output says of
them. Exported FP32 graphs are kept in the cache. Prints the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import random
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table

from edgeclip import Bundle, EncoderSpec
from edgeclip.calibration.images import crops, sample_images
from edgeclip.devices.machine.probe import describe_machine, installed_versions, summary
from edgeclip.errors import EdgeclipError
from edgeclip.export import onnx as onnx_export
from edgeclip.export import onnx as simplify
from edgeclip.export.bundle import calibration_inputs, onnx_metadata
from edgeclip.export.half.precision import convert_precision
from edgeclip.export.half.rounding import emulate
from edgeclip.export.int8.cpu_layout import lay_out_for_cpu
from edgeclip.export.int8.quantization import DEFAULT_RECIPE, quantize
from edgeclip.export.lint.lint import lint
from edgeclip.export.photographs import photographs
from edgeclip.export.proofs import check_parity, class_rows
from edgeclip.export.variants import TOOLS
from edgeclip.files import atomic_folder, cache_dir, write_json
from edgeclip.prompts import FloatArray
from edgeclip.runtime.engines.base import Engine, load_engine
from edgeclip.runtime.images import Image
from edgeclip.runtime.proof.parity import LIMITS, ParityReport, compare_embeddings
from edgeclip.spec import Precision
from edgeclip.training.towers import open_clip as open_clip_model

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # tests/families.py: how random weights come to look trained is said once

from tests import families  # noqa: E402

FAMILIES = ("ViT-B-32", "ViT-B-16-SigLIP", "MobileCLIP2-S0", "RN50", "starter")
ENGINES = {"onnxruntime": "ORT", "openvino": "OpenVINO"}
BASE = ("fp32", "onnxruntime")
NEEDS = {("ViT-B-32", "int8-cpu", "onnxruntime"): 1.7, ("ViT-B-32", "int8", "openvino"): 2.5}
STATISTICS_IMAGES = 64


@dataclass(frozen=True)
class Subject:
    """A family's FP32 graph, what it takes and returns, and (C, D) unit rows of classes; (0, D) without a tokenizer."""

    family: str
    weights: str
    fp32: Path
    encoder: EncoderSpec
    classes: FloatArray


@dataclass(frozen=True)
class Graph:
    """A variant's graph and what TensorRT would refuse in it."""

    path: Path
    precision: Precision
    refused: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Of the graph and of weights beside it."""
        return sum(file.stat().st_size for file in self.path.parent.glob(f"{self.path.name}*"))


class Row(msgspec.Struct, kw_only=True):
    """One variant on one engine.

    Attributes:
        ran_on: what really ran, as the engine says; None if it cannot.
        latency_ms: median of single images.
        ratio, ratio_p10, ratio_p90: time of FP32 on ONNX Runtime by this one's, round by round: median, 10 % and 90 %.
        parity: against FP32 on ONNX Runtime.
        emulated: whether ``parity`` is of a float32 graph that rounds as a device would.
        missed: limits of the export's gate that are not reached, and what TensorRT would refuse.
        why: the reason that it cannot run.
    """

    family: str
    variant: str
    engine: str
    size_bytes: int
    ran_on: str | None = None
    latency_ms: float | None = None
    ratio: float | None = None
    ratio_p10: float | None = None
    ratio_p90: float | None = None
    parity: ParityReport | None = None
    emulated: bool = False
    missed: list[str] = []
    why: str | None = None


def say(text: str) -> None:
    """Progress, apart from the results."""
    print(text, file=sys.stderr, flush=True)


def split_images(folder: Path | None, calibration: int, evaluation: int) -> tuple[list[Image], list[Image]]:
    """Images to measure ranges on, and others to compare on."""
    if folder is None:
        packaged = [image for _, image in photographs()]
        # Every other one: so both views of the motorcycle are on one side.
        return crops(packaged[::2], calibration), crops(packaged[1::2], evaluation)
    images = sample_images(folder, calibration + evaluation)
    if len(images) < calibration + 2:
        sys.exit(f"expected {calibration + evaluation} images below {folder}, got {len(images)}: lower --calibration")
    return images[:calibration], images[calibration:]


# From a family to its graphs


def starter() -> Subject:
    """The shipped starter; its FP32 weights lie on an 8-bit grid and are stored so."""
    bundle = Bundle.open("starter")
    classes = bundle.table("objects").embeddings
    weights = "trained (the shipped starter)"
    return Subject("starter", weights, bundle.variant_path("fp32"), bundle.manifest.encoder, classes)


def open_family(name: str, calibration: Sequence[Image]) -> Subject:
    """Export a family with weights that look trained, or take what was exported before of the same sources."""
    sources = (onnx_export, simplify, open_clip_model, families)
    digest = hashlib.sha256(repr((name, sorted(installed_versions(TOOLS).items()))).encode())
    for content in [*(Path(str(module.__file__)).read_bytes() for module in sources), *calibration]:
        digest.update(np.ascontiguousarray(content) if isinstance(content, np.ndarray) else content)
    kept = cache_dir("benchmarks", name.replace("/", "-")) / digest.hexdigest()[:16]
    if not kept.is_dir():
        for old in kept.parent.iterdir():
            shutil.rmtree(old)
        say(f"{name}: exporting fp32")
        with atomic_folder(kept) as folder:
            export_family(name, calibration, folder)
    encoder = msgspec.json.decode((kept / "encoder.json").read_bytes(), type=EncoderSpec)
    weights = (kept / "weights.txt").read_text(encoding="utf-8")
    return Subject(name, weights, kept / "fp32.onnx", encoder, np.load(kept / "classes.npy"))


def export_family(name: str, calibration: Sequence[Image], folder: Path) -> None:
    """Write ``fp32.onnx``, ``encoder.json``, ``classes.npy`` and, about the weights, ``weights.txt``."""
    with tempfile.TemporaryDirectory() as scratch:
        model = families.as_if_trained(families.FAMILIES[name](Path(scratch)))
    images = calibration_inputs(calibration[:STATISTICS_IMAGES], (), model.encoder)
    normalisations = families.estimate_statistics(model, images)
    metadata = onnx_metadata(model.name, model.identity.id, "fp32")
    onnx_export.export_onnx(model.exportable(), model.encoder, folder / "fp32.onnx", metadata=metadata)
    check_parity(model, folder / "fp32.onnx", photographs()[:4])
    np.save(folder / "classes.npy", class_rows(model.text, model.encoder.embedding_dim))
    write_json(folder / "encoder.json", model.encoder)
    weights = "random (seed 0); normalisations, biases and layer scales varied as if trained"
    if normalisations:
        weights += f"; statistics of {normalisations} batch norms taken on {len(images)} of the calibration images"
    (folder / "weights.txt").write_text(weights, encoding="utf-8")


def make_graphs(subject: Subject, images: FloatArray, folder: Path) -> tuple[dict[str, Graph], dict[str, str]]:
    """All variants' graphs, and why any of them could not be made."""
    fp32, int8 = subject.fp32, folder / "int8.onnx"
    makers: dict[str, tuple[Precision, Callable[[Path], object]]] = {
        "fp16": ("fp16", lambda target: convert_precision(fp32, target, "fp16", images)),
        "bf16": ("bf16", lambda target: convert_precision(fp32, target, "bf16", images)),
        "int8": ("int8", lambda target: quantize(fp32, target, images, DEFAULT_RECIPE)),
        "int8-cpu": ("int8", lambda target: lay_out_for_cpu(int8, target)),
    }
    graphs, failed = {"fp32": Graph(fp32, "fp32")}, {}
    for variant, (precision, make) in makers.items():
        say(f"{subject.family}: making {variant}")
        path = folder / f"{variant}.onnx"
        try:
            make(path)
        except EdgeclipError as error:
            failed[variant] = str(error)
            continue
        findings = () if variant == "int8-cpu" else lint(path)  # that one is not for TensorRT
        refused = tuple(f"{item.node}: {item.message}" for item in findings if item.severity == "error")
        graphs[variant] = Graph(path, precision, refused)
    return graphs, failed


# From graphs to rows


def measure(subject: Subject, graphs: dict[str, Graph], inputs: FloatArray, rounds: int) -> list[Row]:
    """One row for each variant and engine."""
    rows: dict[tuple[str, str], Row] = {}
    loaded: dict[tuple[str, str], Engine] = {}
    with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory() as scratch:
        for variant, graph in graphs.items():
            for engine in ENGINES:
                row = Row(family=subject.family, variant=variant, engine=engine, size_bytes=graph.size_bytes)
                rows[variant, engine] = row
                try:
                    opened = load_engine(engine, graph.path, subject.encoder, precision=graph.precision)
                except EdgeclipError as error:
                    row.why = str(error).replace(str(graph.path), graph.path.name)
                else:
                    loaded[variant, engine] = stack.enter_context(opened)
                    row.ran_on = opened.describe()
        say(f"{subject.family}: comparing on {len(inputs)} images")
        reference = encode(loaded[BASE], inputs)
        for (variant, engine), row in rows.items():
            graph = graphs[variant]
            row.emulated = engine == "onnxruntime" and graph.precision in {"fp16", "bf16"}
            if row.emulated:
                emulated, *_ = emulate(graph.path, Path(scratch) / f"{variant}.onnx")
                with load_engine(engine, emulated, subject.encoder) as rounding:
                    got = encode(rounding, inputs)
            elif (variant, engine) in loaded:
                got = encode(loaded[variant, engine], inputs)
            else:
                continue
            names = [str(index) for index in range(len(inputs))]
            row.parity = compare_embeddings(reference, got, names, batch_size=1, classes=subject.classes)
            row.missed = [*row.parity.failures(LIMITS[graph.precision]), *graph.refused]
        say(f"{subject.family}: timing {len(loaded)} engines in {rounds} rounds")
        times = race(loaded, inputs[:1], rounds)
        for key, taken in times.items():
            row, ratios = rows[key], times[BASE] / taken
            row.latency_ms = round(float(np.median(taken)), 3)
            row.ratio, row.ratio_p10, row.ratio_p90 = (float(np.percentile(ratios, q)) for q in (50, 10, 90))
    return list(rows.values())


def encode(engine: Engine, inputs: FloatArray) -> FloatArray:
    """Embeddings (N, D) of images one by one."""
    return np.concatenate([engine.infer(image[None]) for image in inputs])


def race(
    engines: dict[tuple[str, str], Engine], image: FloatArray, rounds: int
) -> dict[tuple[str, str], np.typing.NDArray[np.float64]]:
    """Milliseconds of each engine in each round."""
    times: dict[tuple[str, str], list[float]] = {key: [] for key in engines}
    order, shuffled = list(engines), random.Random(0)
    for _ in range(rounds):
        shuffled.shuffle(order)
        for key in order:
            engines[key].infer(image)  # brings the weights back to the cache, outlasts the last one's spinning threads
            start = time.perf_counter()
            engines[key].infer(image)
            times[key].append((time.perf_counter() - start) * 1e3)
    return {key: np.array(values) for key, values in times.items()}


# From rows to text


def show(console: Console, subject: Subject, rows: Sequence[Row], failed: dict[str, str]) -> None:
    """A family's table, what missed a limit or cannot run, and the ratios that were promised."""
    console.rule(f"{subject.family}", align="left", characters="─")
    console.print(f"weights: {subject.weights}")
    table = Table(box=None, header_style="bold", padding=(0, 1))
    table.add_column("variant")
    for heading in ("MiB", "engine", "ms", "x ORT FP32", "10–90 %", "cosine", "p01", "min", "centred", "min", "top-1"):
        table.add_column(heading, justify="left" if heading == "engine" else "right")
    table.add_column("limits")
    for row in rows:
        table.add_row(*cells(row))
    console.print(table)
    for variant, why in failed.items():
        console.print(f"{variant} cannot be made: {why}")
    for row in rows:
        who = f"{row.variant} on {ENGINES[row.engine]}"
        if row.why:
            console.print(f"{who} cannot run: {row.why}")
        if row.missed:
            more = f"; and {len(row.missed) - 6} more" if len(row.missed) > 6 else ""
            console.print(f"{who} misses {'; '.join(row.missed[:6])}{more}")
    found = {(row.variant, row.engine): row for row in rows}
    for variant, engine, said in (
        ("int8-cpu", "onnxruntime", "int8-cpu"),
        ("int8", "openvino", "OpenVINO int8"),
        ("int8", "onnxruntime", "int8 (NNCF's layout, which int8-cpu replaces) on ORT"),
    ):
        row = found.get((variant, engine))
        if row is not None and row.ratio is not None:
            least = NEEDS.get((subject.family, variant, engine))
            needs = "" if least is None else f" (needs {least}{'' if row.ratio >= least else ': MISSED'})"
            console.print(f"{subject.family} {said}: {row.ratio:.2f}x ORT FP32{needs}")
    console.print()


def cells(row: Row) -> list[str]:
    """A row's numbers as text."""
    first = row.engine == "onnxruntime"
    line = [row.variant if first else "", f"{row.size_bytes / 2**20:.1f}" if first else "", ENGINES[row.engine]]
    if row.ratio is None:
        line += ["cannot run", "", ""]
    else:
        line += [f"{row.latency_ms:.2f}", f"{row.ratio:.2f}", f"{row.ratio_p10:.2f}–{row.ratio_p90:.2f}"]
    parity = row.parity
    if parity is None:
        return [*line, *[""] * 7]
    cosines = (parity.mean_cosine, parity.p01_cosine, parity.min_cosine)
    centred = (parity.mean_centred_cosine, parity.min_centred_cosine)
    line += [f"{value:.5f}" for value in cosines]
    line += ["" if value is None else f"{value:.5f}" for value in centred]
    line += ["" if parity.agreement is None else f"{parity.agreement:.1%}"]
    return [*line, ("missed" if row.missed else "met") + (" *" if row.emulated else "")]


def main() -> None:
    """Print one table a family."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = (*families.FAMILIES, "starter")
    parser.add_argument("--families", nargs="+", default=FAMILIES, choices=known, metavar="NAME", help=", ".join(known))
    parser.add_argument("--images", type=Path, help="photographs; without, crops of the packaged ones")
    parser.add_argument("--calibration", type=int, default=128, help="images to measure ranges on")
    parser.add_argument("--evaluation", type=int, default=64, help="other images to compare on")
    parser.add_argument("--rounds", type=int, default=30, help="timed runs of each variant on each engine")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    arguments = parser.parse_args()
    calibration, evaluation = split_images(arguments.images, arguments.calibration, arguments.evaluation)
    described, tools = describe_machine(), installed_versions((*TOOLS, "openvino"))

    console = Console(width=140, highlight=False, soft_wrap=True)
    console.print(f"command: python benchmarks/quantization.py {shlex.join(sys.argv[1:])}")
    console.print(f"machine: {summary(described)}; load average {os.getloadavg()[0]:.1f} at the start")
    console.print("versions: " + ", ".join(f"{name} {version}" for name, version in tools.items()))
    console.print(f"images: {len(calibration)} to measure ranges on, {len(evaluation)} others to compare on, ", end="")
    console.print("crops of the packaged photographs" if arguments.images is None else f"of {arguments.images}")
    console.print(f"times: one image, all engines in turn, {arguments.rounds} rounds; ratios round by round, median")
    console.print("centred: cosine of embeddings less FP32's mean; top-1: same best class; limits: the export's")
    console.print("*: agreement of a float32 graph that rounds as a device would; the time is ORT's own\n")
    everything: list[Row] = []
    for name in arguments.families:
        subject = starter() if name == "starter" else open_family(name, calibration)
        with tempfile.TemporaryDirectory() as scratch:
            images = calibration_inputs(calibration, (), subject.encoder)
            graphs, failed = make_graphs(subject, images, Path(scratch))
            rows = measure(subject, graphs, calibration_inputs(evaluation, (), subject.encoder), arguments.rounds)
        show(console, subject, rows, failed)
        everything += rows
    console.print(f"load average {os.getloadavg()[0]:.1f} at the end")
    if arguments.json:
        content = {"command": sys.argv, "machine": described, "tools": tools, "rows": everything}
        write_json(arguments.json, content)


if __name__ == "__main__":
    main()
