"""What merging tokens saves and costs: products, time on two CPU engines, agreement with the unmerged tower.

    python benchmarks/merge_tokens.py [--models ViT-B-32 ViT-B-16] [--merge 4 8 13] [--int8] [--json FILE]

Needs the extra ``dev`` and a checkout. Each R is exported and proved as ``edgeclip export --merge-tokens R`` does it.
All R run on all engines in turn, in one process, one image at a time: each round gives each of them one untimed and one
timed run in random order, and its ratio to the unmerged graph on the same engine in that round. With ``--int8`` the
``int8-cpu`` graphs run on ONNX Runtime too. Weights are random, so agreement says what merging does to this tower and
nothing on accuracy. Prints the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import shlex
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from quantization import ENGINES, FloatArray, race, say
from rich.console import Console
from rich.table import Table

from edgeclip.calibration.images import crops
from edgeclip.devices.machine.probe import describe_machine, installed_versions, summary
from edgeclip.export.bundle import calibration_inputs
from edgeclip.export.cost import graph_cost
from edgeclip.export.int8.cpu_layout import lay_out_for_cpu
from edgeclip.export.int8.quantization import default_recipe, quantize
from edgeclip.export.merge_tokens.model import MergedModel, MergeReport
from edgeclip.export.onnx import export_onnx
from edgeclip.export.photographs import photographs
from edgeclip.export.proofs import check_parity, class_rows
from edgeclip.export.variants import TOOLS
from edgeclip.files import write_json
from edgeclip.runtime.engines.base import load_engine
from edgeclip.runtime.proof.parity import LIMITS, compare_embeddings
from edgeclip.spec import EncoderSpec
from edgeclip.training.model import ContrastiveModel
from edgeclip.training.towers.open_clip import OpenClipModel

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # tests/families.py: how random weights come to look trained is said once

from tests.families import as_if_trained  # noqa: E402

VIEWS = 16


@dataclass(frozen=True)
class Merged:
    """One R: its graphs by variant, products of one image, and what merging changes; None without any."""

    merged: int
    graphs: dict[str, Path]
    macs: int
    report: MergeReport | None


def make(model: ContrastiveModel, merged: int, folder: Path, classes: FloatArray, *, int8: bool) -> Merged:
    """Export one R and prove it: FP32 against torch, INT8 against FP32."""
    say(f"{model.name}: R = {merged}")
    reduced = MergedModel(model, merged) if merged else model
    fp32 = folder / f"{merged}.onnx"
    photos = photographs()
    export_onnx(reduced.exportable(), model.encoder, fp32, metadata={})
    check_parity(reduced, fp32, photos)
    graphs = {"fp32": fp32}
    if int8:
        plain, graphs["int8-cpu"] = folder / f"{merged}-int8.onnx", folder / f"{merged}-int8-cpu.onnx"
        quantize(fp32, plain, calibration_inputs((), photos, model.encoder), default_recipe(fp32))
        lay_out_for_cpu(plain, graphs["int8-cpu"])
    views = [*photos, *((f"crop {n}", image) for n, image in enumerate(crops([image for _, image in photos], VIEWS)))]
    report = reduced.report(views, classes) if isinstance(reduced, MergedModel) else None
    return Merged(merged, graphs, graph_cost(fp32).macs, report)


def measure(
    all_merged: list[Merged], encoder: EncoderSpec, rounds: int
) -> tuple[dict[tuple[str, str, int], FloatArray], list[str]]:
    """Milliseconds (rounds,) by variant, engine and R, and which missed a limit against FP32 on ONNX Runtime."""
    views = calibration_inputs((), photographs(), encoder, count=VIEWS)
    names = [str(index) for index in range(len(views))]
    missed: list[str] = []
    with contextlib.ExitStack() as stack:
        loaded = {}
        for each in all_merged:
            for variant, path in each.graphs.items():
                for engine in ENGINES if variant == "fp32" else ("onnxruntime",):
                    precision = "fp32" if variant == "fp32" else "int8"
                    opened = load_engine(engine, path, encoder, precision=precision)
                    loaded[variant, engine, each.merged] = stack.enter_context(opened)
            rows = {
                (variant, engine): np.concatenate([opened.infer(view[None]) for view in views])
                for (variant, engine, merged), opened in loaded.items()
                if merged == each.merged
            }
            for (variant, engine), got in rows.items():
                limits = LIMITS["fp32" if variant == "fp32" else "int8"]
                found = compare_embeddings(rows["fp32", "onnxruntime"], got, names, batch_size=1).failures(limits)
                missed += [
                    f"{variant} on {ENGINES[engine]}, R = {each.merged}: expected {failure}" for failure in found
                ]
        say(f"timing {len(loaded)} engines in {rounds} rounds")
        return race(loaded, views[:1], rounds), missed


def show(console: Console, name: str, all_merged: list[Merged], times: dict[tuple[str, str, int], FloatArray]) -> None:
    """One table a model."""
    console.rule(name, align="left", characters="─")
    table = Table(box=None, header_style="bold", padding=(0, 1))
    for heading in ("R", "tokens in, last block", "GMAC", "variant", "engine", "ms", "x unmerged", "10–90 %"):
        table.add_column(heading, justify="left" if heading in {"variant", "engine"} else "right")
    for heading in ("cosine", "worst", "centred", "top-1"):
        table.add_column(heading, justify="right")
    for each in all_merged:
        what = [str(each.merged), "", f"{each.macs / 1e9:.2f}"]
        agrees = [""] * 4
        if each.report:
            what[1] = f"{each.report.tokens[0]}, {each.report.tokens[-2]}"
            found = each.report.agreement
            agrees = [f"{found.mean_cosine:.4f}", f"{found.min_cosine:.4f}", f"{found.mean_centred_cosine:.4f}"]
            agrees.append("" if found.agreement is None else f"{found.agreement:.0%}")
        for (variant, engine, merged), taken in times.items():
            if merged == each.merged:
                ratio = np.percentile(times[variant, engine, 0] / taken, (50, 10, 90))
                spread = f"{ratio[1]:.2f}–{ratio[2]:.2f}" if merged else ""
                timing = [variant, ENGINES[engine], f"{np.median(taken):.1f}", f"{ratio[0]:.2f}", spread]
                table.add_row(*what, *timing, *agrees)
                what, agrees = [""] * 3, [""] * 4
    console.print(table)
    console.print()


def main() -> None:
    """Print one table a model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["ViT-B-32", "ViT-B-16"], help="open_clip's, random weights")
    parser.add_argument("--merge", nargs="+", type=int, default=[4, 8, 13], metavar="R", help="tokens a block")
    parser.add_argument("--rounds", type=int, default=20, help="timed runs of each graph on each engine")
    parser.add_argument("--int8", action="store_true", help="time int8-cpu on ONNX Runtime too")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    given = parser.parse_args()
    described, tools = describe_machine(), installed_versions((*TOOLS, "openvino"))
    console = Console(width=140, highlight=False, soft_wrap=True)
    console.print(f"command: python benchmarks/merge_tokens.py {shlex.join(sys.argv[1:])}")
    console.print(f"machine: {summary(described)}; load average {os.getloadavg()[0]:.1f} at the start")
    console.print("versions: " + ", ".join(f"{tool} {version}" for tool, version in tools.items()))
    console.print("weights: random (seed 0); normalisations and biases varied as if trained")
    console.print(f"times: one image, all in turn, {given.rounds} rounds; ratios round by round to R = 0, median")
    console.print(
        f"agreement with the unmerged tower: 9 photographs and {VIEWS} crops of them; centred: less its mean\n"
    )
    written = []
    for name in given.models:
        model = as_if_trained(OpenClipModel(name))
        classes = class_rows(model.text, model.encoder.embedding_dim)
        with tempfile.TemporaryDirectory() as scratch:
            made = [make(model, merged, Path(scratch), classes, int8=given.int8) for merged in (0, *given.merge)]
            encoder = model.encoder
            del model
            gc.collect()
            times, missed = measure(made, encoder, given.rounds)
        show(console, name, made, times)
        for line in missed:
            console.print(f"misses the export's limits against FP32 on ONNX Runtime: {line}")
        timed = [{"variant": v, "engine": e, "merged": r, "ms": list(ms)} for (v, e, r), ms in times.items()]
        reports = [{"merged": each.merged, "macs": each.macs, "report": each.report} for each in made]
        written.append({"model": name, "graphs": reports, "times": timed})
    console.print(f"load average {os.getloadavg()[0]:.1f} at the end")
    if given.json:
        write_json(given.json, {"command": sys.argv, "machine": described, "tools": tools, "models": written})


if __name__ == "__main__":
    main()
