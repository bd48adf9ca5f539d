"""A variant and an engine in; the proof that they agree with FP32 on this machine, and how long an image takes, out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from edgeclip.bundle import Bundle
from edgeclip.devices.machine.cuda import find_gpu
from edgeclip.devices.machine.probe import Description, describe_machine
from edgeclip.devices.sensors.measurement_conditions import MeasurementConditions
from edgeclip.errors import MissingExtraError
from edgeclip.files import cache_dir, keep_json, read_json, sha256_json
from edgeclip.runtime.engines.base import Engine, load_engine
from edgeclip.runtime.engines.first_run import check_first_run
from edgeclip.runtime.engines.plan_cache import graph_sha256, records
from edgeclip.runtime.proof.golden import FILE, GoldenImages
from edgeclip.runtime.proof.parity import LIMITS, ParityReport
from edgeclip.spec import Precision
from edgeclip.version import __version__

_WARM_UP_S, _MEASURE_S, _RUNS = 0.3, 1.0, 30


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """How one variant on one engine did on this machine.

    Attributes:
        ran_on: what really ran, as the engine says.
        parity: against the bundle's golden embeddings.
        latency_ms: median of single images, preprocessed and in memory.
        machine: this machine.
        conditions: what it was doing while the images were timed.
    """

    variant: str
    precision: Precision
    engine: str
    ran_on: str
    parity: ParityReport
    latency_ms: float
    machine: Description
    conditions: MeasurementConditions | None = None

    @property
    def failures(self) -> list[str]:
        """The limits of the variant's precision that were not reached."""
        return self.parity.failures(LIMITS[self.precision])

    def __str__(self) -> str:
        agreement = "" if self.parity.agreement is None else f", {self.parity.agreement:.0%} of labels the same"
        return f"{self.latency_ms:.1f} ms an image, cosine to fp32 at least {self.parity.min_cosine:.4f}{agreement}"


def prove(bundle: Bundle, variant: str, engine: str, golden: GoldenImages, *, threads: int | None = None) -> Proof:
    """Run the golden images, and time single ones; taken from the cache if nothing that matters has changed.

    The cache is keyed by the variant, what its encoder takes, its and the golden set's sha256, the engine with its
    compiled plans of the variant, its threads, and the machine with its GPU and the versions of its libraries.

    Raises:
        EdgeclipError: the engine cannot run the variant here; which kind says why.
    """
    described = bundle.variant(variant)
    path = bundle.variant_path(variant)
    machine = describe_machine()
    # Just checked against the manifest, so read from there where one file is all there is.
    graph = graph_sha256(path) if described.data_files else bundle.manifest.files[described.file].sha256
    decides = (described, bundle.manifest.encoder, graph, bundle.manifest.files[FILE].sha256, engine, threads, machine)
    if (found := read_json(_kept(decides, engine, graph), Proof)) is not None:
        return found
    check_first_run(bundle, variant)
    encoder = bundle.manifest.encoder
    with load_engine(engine, path, encoder, precision=described.precision, threads=threads) as loaded:
        parity = golden.compare(loaded, dynamic_batch=described.dynamic_batch)
        latency_ms, conditions = timed(loaded, golden)
        proof = Proof(
            variant=variant,
            precision=described.precision,
            engine=engine,
            ran_on=loaded.describe(),
            parity=parity,
            latency_ms=latency_ms,
            machine=machine,
            conditions=conditions,
        )
    keep_json(_kept(decides, engine, graph), proof)  # under another name if loading compiled a plan
    return proof


def timed(engine: Engine, golden: GoldenImages) -> tuple[float, MeasurementConditions]:
    """Median time of one image, milliseconds, once the engine has warmed up; and what the machine was doing then."""
    # Here, as a start that finds its proofs in the cache needs none.
    from edgeclip.devices.sensors.telemetry import Telemetry

    image = golden.inputs(engine.encoder.preprocess)[:1]
    with Telemetry() as telemetry:
        start = time.perf_counter()
        while time.perf_counter() - start < _WARM_UP_S:
            engine.infer(image)
        times: list[float] = []
        start = telemetry.mark()
        while len(times) < 3 or (len(times) < _RUNS and time.perf_counter() - start < _MEASURE_S):
            before = time.perf_counter()
            engine.infer(image)
            times.append(time.perf_counter() - before)
        conditions = telemetry.conditions(inferences=len(times), start=start, end=telemetry.mark())
    return round(float(np.median(times)) * 1e3, 3), conditions


def _kept(decides: Sequence[object], engine: str, graph: str) -> Path:
    """Where the proof is kept that was made with all this and with the plans that are there now."""
    plans = [record.sha256 for record in records(engine, graph)]  # an engine takes the one built last
    return cache_dir("proofs") / f"{sha256_json((*decides, plans, _gpu(), __version__))}.json"


def _gpu() -> tuple[str, str] | None:
    try:
        gpu = find_gpu()
    except MissingExtraError:
        return None
    return (gpu.name, gpu.compute_capability) if gpu else None
