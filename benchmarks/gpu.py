"""A bundle on an NVIDIA GPU: each variant proved there, then timed in turns with its own model in PyTorch.

    python benchmarks/gpu.py BUNDLE [--engines onnxruntime-cuda,tensorrt-rtx] [--batches 1,8,32] [--rounds 12]
        [--calls 20] [--no-peers] [--json FILE]

The peers are the model that the bundle was made from, loaded again by its origin and moved to the GPU in float16: as
PyTorch runs it, and compiled (``torch.compile``, with CUDA graphs). Engines and peers are timed alike, from
preprocessed float32 images in host memory to float32 embeddings there; for the peers the forward pass alone is timed
too, by CUDA events. The rounds of all rows are interleaved; a ratio stands beside the 95 % interval of its rounds.

A bundle of random weights (``edgeclip export ViT-B-32 --pretrained none --output b.edgeclip --variants fp16``) will do
for agreement and time, and says nothing of accuracy. Prints the machine, the GPU, its driver's CUDA and the versions.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgeclip import Bundle
from edgeclip.devices.machine.cuda import driver_cuda_version, find_gpu
from edgeclip.devices.machine.probe import describe_machine, installed_versions, summary
from edgeclip.engine_list import engine_packages
from edgeclip.errors import EdgeclipError
from edgeclip.evaluation.statistics.rounds import compare_rounds
from edgeclip.files import write_json
from edgeclip.prompts import FloatArray
from edgeclip.runtime.engines.base import engine_class, load_engine
from edgeclip.runtime.proof.golden import GoldenImages, golden_of
from edgeclip.runtime.proof.proof import prove

_LIBRARIES = (*engine_packages(), "torch", "numpy")
_WARM_UP = 10
Infer = Callable[[FloatArray], FloatArray]


class Row(msgspec.Struct, kw_only=True):
    """One thing that runs a batch; milliseconds a batch.

    Attributes:
        rounds_ms: each round's median.
        forward_ms: median of the forward pass alone, by CUDA events; None for engines, which do not show it.
    """

    what: str
    batch: int
    rounds_ms: list[float] = []
    forward_ms: float | None = None


def proofs(bundle: Bundle, golden: GoldenImages, engines: list[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Prove every variant on every engine that is for it: the pairs that agree with FP32, and a line for each tried."""
    good, said = [], []
    for engine in engines:
        for variant in bundle.manifest.variants:
            if not engine_class(engine).suits(variant):
                continue
            what = f"{variant.name} on {engine}"
            try:
                proof = prove(bundle, variant.name, engine, golden)
            except EdgeclipError as error:
                said.append(f"{what}: does not run: {error}")
                continue
            said.append(f"{what}: {proof}; {proof.ran_on}")
            if proof.failures:
                said[-1] += f"; refused: {'; '.join(proof.failures)}"
            else:
                good.append((variant.name, engine))
    return good, said


class Peer:
    """The bundle's own model on the GPU in float16.

    Args:
        compiled: with ``torch.compile``.
    """

    def __init__(self, bundle: Bundle, *, compiled: bool) -> None:
        import torch

        from edgeclip.training.load import load_model

        origin = bundle.manifest.model.origin
        random_weights = "none" if origin.loader == "open_clip" else None
        loaded = load_model(origin.name, pretrained=origin.pretrained or random_weights, seed=origin.seed or 0)
        self._torch: Any = torch
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        module = loaded.exportable().to(self._device, torch.float16).eval()
        self._module = torch.compile(module, mode="reduce-overhead") if compiled else module
        self.what = f"torch {'compiled' if compiled else 'eager'} fp16 on {self._device}"
        self.forward_ms: list[float] = []

    def __call__(self, images: FloatArray) -> FloatArray:
        """(N, 3, H, W) float32 → (N, D) float32, both in host memory."""
        torch = self._torch
        with torch.inference_mode():
            batch = torch.from_numpy(images).to(self._device).half()
            if self._device == "cpu":
                return self._module(batch).float().numpy()  # type: ignore[no-any-return]
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            embeddings = self._module(batch)
            end.record()
            found: FloatArray = embeddings.float().cpu().numpy()
        self.forward_ms.append(start.elapsed_time(end))
        return found


def round_ms(infer: Infer, images: FloatArray, calls: int) -> float:
    """Median of so many calls, milliseconds."""
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        infer(images)
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def timed(runners: dict[str, Infer], images: FloatArray, rounds: int, calls: int) -> tuple[list[Row], list[str]]:
    """Rows of one batch size, their rounds in turns, and a line for each runner that does not take the batch."""
    rows, refused = {what: Row(what=what, batch=len(images)) for what in runners}, []
    for what, infer in runners.items():
        try:
            for _ in range(_WARM_UP):
                infer(images)
        except (EdgeclipError, RuntimeError) as error:  # the second is how torch.compile fails
            refused.append(f"{what}: no batch of {len(images)}: {error}")
            del rows[what]
        if isinstance(infer, Peer):
            infer.forward_ms.clear()
    if not rows:
        return [], refused
    names = list(rows)
    for turn in range(rounds):
        for what in names[turn % len(names) :] + names[: turn % len(names)]:
            rows[what].rounds_ms.append(round_ms(runners[what], images, calls))
    for what, row in rows.items():
        infer = runners[what]
        if isinstance(infer, Peer) and infer.forward_ms:
            row.forward_ms = statistics.median(infer.forward_ms)
    return list(rows.values()), refused


def print_rows(rows: list[Row]) -> None:
    """A line a row; what the others are compared with is the first."""
    for row in rows:
        median = statistics.median(row.rounds_ms)
        line = f"  batch {row.batch:3}  {row.what:32} {median:8.3f} ms  {1e3 * row.batch / median:9,.0f} images/s"
        if row.forward_ms is not None:
            line += f"  forward alone {row.forward_ms:.3f} ms"
        if row is not rows[0]:
            line += f"  {compare_rounds(rows[0].rounds_ms, row.rounds_ms, paired=True)}"
        print(line, flush=True)


def main() -> None:
    """Print the machine, a line a proof and a line a row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--engines", default="onnxruntime-cuda,tensorrt-rtx")
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--no-peers", dest="peers", action="store_false")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    bundle, machine, versions = Bundle.open(given.bundle), describe_machine(), installed_versions(_LIBRARIES)
    golden = golden_of(bundle)
    if golden is None:
        parser.error(f"expected a bundle with golden images, got {given.bundle}")
    gpu, cuda = find_gpu(), driver_cuda_version()
    print(summary(machine))
    print(f"GPU: {gpu}; the driver's CUDA: {cuda}; {', '.join(f'{name} {each}' for name, each in versions.items())}")
    print(f"{bundle.manifest.model.name}, {bundle.manifest.model.origin}")
    good, said = proofs(bundle, golden, given.engines.split(","))
    print(*said, sep="\n", flush=True)
    inputs, rows = golden.inputs(bundle.manifest.encoder.preprocess), []
    with ExitStack() as stack:
        peers = [Peer(bundle, compiled=compiled) for compiled in (False, True)] if given.peers else []
        runners: dict[str, Infer] = {peer.what: peer for peer in peers}
        for variant, engine in good:
            path, precision = bundle.variant_path(variant), bundle.variant(variant).precision
            loaded = stack.enter_context(load_engine(engine, path, bundle.manifest.encoder, precision=precision))
            runners[f"{variant} on {engine}"] = loaded.infer
        for batch in map(int, given.batches.split(",")):
            images = np.resize(inputs, (batch, *inputs.shape[1:]))
            found, refused = timed(runners, images, given.rounds, given.calls)
            print_rows(found)
            print(*refused, sep="\n", end="\n" if refused else "")
            rows += found
    if given.json:
        write_json(
            given.json, {"machine": machine, "gpu": str(gpu), "versions": versions, "proofs": said, "rows": rows}
        )


if __name__ == "__main__":
    main()
