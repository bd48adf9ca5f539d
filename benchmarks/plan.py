"""The planner's ranges beside what was measured: by others on GPUs, here on this CPU; and what a build takes of memory.

    python benchmarks/plan.py [BUNDLE ...] --ghz 2.6 [--device x86-avx512-vnni] [--json FILE]
    python benchmarks/plan.py [BUNDLE ...] --builds                 # what builds take, and no more

Latencies of others come from ``tests/devices/published.toml``, each with its source; the planner's shares were fitted
to them (``tools/fit_latency.py`` prints what it says of those that it left out). Those of this machine are proofs of
each bundle's variants (the median of single images). A build's memory is the peak of a process that builds a plan by
TensorRT-RTX for compute capability 8.6, less that of one that loads the library alone. Prints the machine.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import msgspec

from edgeclip.bundle import Bundle
from edgeclip.devices.catalogue.profile import load_profile
from edgeclip.devices.machine.probe import describe_machine, summary
from edgeclip.devices.plan.plan import plan
from edgeclip.devices.plan.records import Demand
from edgeclip.devices.plan.speed import estimate_on
from edgeclip.export.cost import cost_of_bundle
from edgeclip.files import write_json
from edgeclip.runtime.engines.base import engine_class
from edgeclip.runtime.proof.golden import golden_of
from edgeclip.runtime.proof.proof import prove
from tests.devices.published import published_latencies

_CPU_ENGINES = ("onnxruntime", "openvino")
_BUILDER = "tensorrt-rtx"
_CAPABILITY = "8.6"


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A measured latency beside its planned range, milliseconds a batch."""

    what: str
    low: float
    measured: float
    high: float

    @property
    def inside(self) -> bool:
        """Whether the range holds it."""
        return self.low <= self.measured <= self.high


class BuildRow(msgspec.Struct, frozen=True, kw_only=True):
    """What one build took; bytes."""

    what: str
    graph: int
    peak: int

    @property
    def copies(self) -> float:
        """Bytes of memory for each byte of the graph."""
        return self.peak / self.graph


def published_rows() -> list[Row]:
    """Every published latency beside the plan for its device."""
    rows = []
    for each in published_latencies():
        estimated = estimate_on(
            each.profile, each.cost, each.precision, each.engine, batch=each.batch, cores=each.cores, ghz=each.ghz
        )
        if estimated is None:
            raise SystemExit(f"{each.device} has no peak of {each.precision}: its latencies cannot be planned")
        latency = estimated.latency_ms
        rows.append(Row(what=str(each), low=latency.low, measured=each.ms, high=latency.high))
    return rows


def rows_here(bundle: Bundle, device: str, ghz: float) -> list[Row]:
    """Every variant that the plan has, proved on each CPU engine that is meant for it."""
    golden = golden_of(bundle)
    if golden is None:
        raise SystemExit(f"{bundle.path} has no golden images: export it again")
    demand = Demand(cores=len(os.sched_getaffinity(0)), ghz=ghz, batch=1)
    rows = []
    for engine in _CPU_ENGINES:
        planned = plan(cost_of_bundle(bundle), load_profile(device), replace(demand, engine=engine))
        for variant in bundle.manifest.variants:
            outlook = next((each for each in planned.variants if each.name == variant.name), None)
            if outlook is None or outlook.estimate is None:
                continue
            if engine_class(engine).suits(variant) and engine_class(engine).available():
                proof = prove(bundle, variant.name, engine, golden)
                latency = outlook.estimate.latency_ms
                what = f"{bundle.manifest.model.name} {variant.name} {engine}"
                rows.append(Row(what=what, low=latency.low, measured=proof.latency_ms, high=latency.high))
    return rows


def build_rows(bundle: Bundle) -> list[BuildRow]:
    """Peak memory of building each variant that TensorRT-RTX is meant for."""
    idle = peak_bytes(
        [sys.executable, "-c", "import edgeclip.runtime.engines.build, tensorrt_rtx as t; t.Builder(t.Logger())"]
    )
    rows = []
    for variant in bundle.manifest.variants:
        if engine_class(_BUILDER).suits(variant):
            arguments = ["build", str(bundle.path), "--variant", variant.name, "--engine", _BUILDER]
            command = [sys.executable, "-m", "edgeclip", *arguments, "--compute-capability", _CAPABILITY]
            graph = sum(bundle.manifest.files[file].size for file in (variant.file, *variant.data_files))
            peak = peak_bytes(command) - idle
            rows.append(BuildRow(what=f"{bundle.manifest.model.name} {variant.name}", graph=graph, peak=peak))
    return rows


def peak_bytes(command: list[str]) -> int:
    """Peak resident memory of a process with an empty cache; Linux counts it in KiB."""
    code = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
    code += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "EDGECLIP_CACHE": cache}
        done = subprocess.run(
            [sys.executable, "-c", code, *command], env=environment, check=True, capture_output=True, text=True
        )
    return int(done.stdout) * 1024


def main() -> None:
    """Print all three tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="*", default=["starter"])
    parser.add_argument("--device", default="x86-avx512-vnni", help="profile of this CPU")
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--ghz", type=float, help="its clock under load")
    asked.add_argument("--builds", action="store_true", help="only what builds take of memory")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    bundles = [Bundle.open(path) for path in arguments.bundles]

    published = here = []
    if not arguments.builds:
        published = published_rows()
        here = [row for bundle in bundles for row in rows_here(bundle, arguments.device, arguments.ghz)]
    builds = [row for bundle in bundles for row in build_rows(bundle)] if find_spec("tensorrt_rtx") else []
    if not arguments.builds:
        print("published by others, ms a batch (planned range, published)")
        show(published)
        print("\nmeasured here, ms an image (planned range, measured)")
        show(here)
        inside = sum(row.inside for row in (*published, *here))
        print(f"\n{inside} of {len(published) + len(here)} inside their range\n")
    print(f"peak memory of a build by {_BUILDER}, beyond its libraries")
    for row in builds:
        print(f"  {row.what:44} {row.peak / 1e6:8.0f} MB, {row.copies:.1f} for each byte of the graph")
    print(f"on {summary(describe_machine())}")
    if arguments.json:
        content = {"published": published, "here": here, "builds": builds, "machine": describe_machine()}
        write_json(arguments.json, content)


def show(rows: list[Row]) -> None:
    """Print rows, those outside their range marked."""
    for row in rows:
        mark = "" if row.inside else "  outside"
        print(f"  {row.what:44} {row.low:8.2f} to {row.high:8.2f} {row.measured:10.2f}{mark}")


if __name__ == "__main__":
    main()
