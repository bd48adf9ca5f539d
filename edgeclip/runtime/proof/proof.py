"""A variant and an engine in; the proof that they agree with FP32 on this machine, and how long an image takes, out."""

from __future__ import annotations

import math
import time
from pathlib import Path

import msgspec
import numpy as np

from edgeclip.bundle import Bundle
from edgeclip.devices.machine.probe import Description, describe_machine
from edgeclip.devices.sensors.measurement_conditions import MeasurementConditions
from edgeclip.files import cache_dir, keep_json, kept_json
from edgeclip.runtime.engines.base import Engine, load_engine
from edgeclip.runtime.engines.first_run import check_first_run
from edgeclip.runtime.proof.golden import GoldenImages
from edgeclip.runtime.proof.parity import LIMITS, Check, ParityReport
from edgeclip.runtime.proof.what_runs import WhatRuns, remembered_versions, what_runs
from edgeclip.spec import Precision

_WARM_UP_S, _MEASURE_S, _RUNS = 0.3, 1.0, 30
_BUSY = 0.15  # of all cores, taken by others: a latency is longer than on a machine that does nothing else
_TELLING_S = 0.05  # Linux counts a load in ticks of 10 ms


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """How one variant on one engine did on this machine.

    Attributes:
        ran_on: what really ran, as the engine says.
        versions: of the engine's library and of what it ran with, as the engine names them.
        parity: against the bundle's golden embeddings.
        latency_ms: median of single images, preprocessed and in memory.
        machine: this machine.
        conditions: what it was doing while the images were timed.
    """

    variant: str
    precision: Precision
    engine: str
    ran_on: str
    versions: dict[str, str] = {}
    parity: ParityReport
    latency_ms: float
    machine: Description
    conditions: MeasurementConditions | None = None

    @property
    def failures(self) -> list[str]:
        """The limits of the variant's precision that were not reached."""
        return self.parity.failures(LIMITS[self.precision])

    @property
    def unchecked(self) -> tuple[str, ...]:
        """The figures whose limits could not be checked."""
        return tuple(check.figure for check in self.checks if check.status == "could not be checked")

    @property
    def checks(self) -> tuple[Check, ...]:
        """What became of every limit of the variant's precision."""
        return self.parity.checks(LIMITS[self.precision])

    @property
    def slowed_by(self) -> str:
        """What else kept the machine busy while the images were timed; empty if nothing did, or nobody can tell."""
        if self.conditions is None or self.conditions.seconds < _TELLING_S:
            return ""
        whole, own = (self.conditions.of("load", part) for part in ("cpu", "process"))
        others = whole[0].mean - own[0].mean if whole and own else 0.0
        return f"timed while other processes took {others:.0%} of the CPU" if others >= _BUSY else ""

    def __str__(self) -> str:
        agreement = "" if self.parity.agreement is None else f", {self.parity.agreement:.0%} of labels the same"
        return f"{self.latency_ms:.1f} ms an image, cosine to fp32 at least {self.parity.min_cosine:.4f}{agreement}"


def prove(
    bundle: Bundle,
    variant: str,
    engine: str,
    golden: GoldenImages,
    *,
    threads: int | None = None,
    renew: bool = False,
    remembered: bool = False,
) -> Proof:
    """Run the golden images, and time single ones; taken from the cache if nothing that matters has changed.

    The cache is keyed by the golden images and by all that decides what runs (``what_runs.py``).

    Args:
        renew: run them also where the cache has the proof.
        remembered: a proof in the cache may be one of the versions that the engine named last, so that its library is
            not loaded for it.

    Raises:
        EdgeclipError: the engine cannot run the variant here; which kind says why.
    """
    described = bundle.variant(variant)
    path = bundle.variant_path(variant)
    if remembered and (named := remembered_versions(engine)) is not None:
        runs = what_runs(bundle, variant, engine, threads=threads, versions=named)
        if (found := kept_json(_kept(runs, golden), Proof)) is not None:
            return found
    runs = what_runs(bundle, variant, engine, threads=threads)
    if not renew and (found := kept_json(_kept(runs, golden), Proof)) is not None:
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
            versions=runs.versions,
            parity=parity,
            latency_ms=latency_ms,
            machine=describe_machine(),
            conditions=conditions,
        )
    # JSON has no NaN: what is none would come back as a figure that was not taken.
    if all(math.isfinite(figure) for figure in msgspec.structs.astuple(parity) if isinstance(figure, float)):
        # Under another name if loading compiled a plan.
        keep_json(_kept(what_runs(bundle, variant, engine, threads=threads), golden), proof)
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


def _kept(runs: WhatRuns, golden: GoldenImages) -> Path:
    """Where the proof is kept that was made with all this."""
    return cache_dir("proofs") / f"{runs.digest(golden.sha256)}.json"
