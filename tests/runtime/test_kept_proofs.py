"""A proof is kept until anything that it depends on changes, and what is kept is read with care."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

import edgeclip
from edgeclip import Bundle
from edgeclip.devices.machine.cpu import cpu_flags
from edgeclip.devices.machine.probe import describe_machine
from edgeclip.devices.sensors.base import Part
from edgeclip.devices.sensors.measurement_conditions import MeasurementConditions, Reading
from edgeclip.devices.sensors.telemetry import Telemetry
from edgeclip.engine_list import EngineEntry
from edgeclip.errors import EngineError, MissingExtraError, ParityError
from edgeclip.files import kept_json, sha256_file
from edgeclip.manifest import read_manifest, write_manifest
from edgeclip.runtime.engines import plan_cache
from edgeclip.runtime.engines.base import Engine, FloatArray, load_engine
from edgeclip.runtime.engines.plan_cache import PlanKey
from edgeclip.runtime.proof.choose import choose
from edgeclip.runtime.proof.golden import FILE, GoldenImages
from edgeclip.runtime.proof.parity import LIMITS, ParityReport
from edgeclip.runtime.proof.proof import _MEASURE_S, _WARM_UP_S, Proof, prove, timed
from edgeclip.runtime.proof.what_runs import remembered_versions, what_runs
from edgeclip.spec import Precision
from tests import CORES
from tests.conftest import CountingEngine, add_variant, edit_weight
from tests.runtime.test_golden import flip, golden_set
from tests.runtime.test_parity import GOOD

SHIPPED = (_WARM_UP_S, _MEASURE_S)


def busy(whole: float | None, own: float | None, *, seconds: float = 1.0) -> MeasurementConditions:
    """A measurement beside which the CPU was busy by so much, and by so much for it; None where that was not read."""
    loads: list[tuple[Part, float | None]] = [("cpu", whole), ("process", own)]
    readings = tuple(
        Reading(
            name=part, kind="load", part=part, source="x", before=load, after=load, least=load, mean=load, most=load
        )
        for part, load in loads
        if load is not None
    )
    return MeasurementConditions(
        seconds=seconds, rate_hz=10.0, cost=0.0, power_mode=None, throttled=None, readings=readings
    )


pytestmark = pytest.mark.usefixtures("cache")
NAN = edit_weight("projection", lambda weight: weight * np.nan)


def change_variant(bundle: Path) -> None:
    add_variant(bundle, "fp16", edit_weight("kernel", lambda weight: weight * 2))


def change_golden(bundle: Path) -> None:
    golden = golden_set(Bundle.open(bundle))
    replace(golden, names=("another name", *golden.names[1:])).save(bundle / FILE)
    write_manifest(bundle, read_manifest(bundle), scan=True)


def change_preprocessing(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    preprocess = msgspec.structs.replace(manifest.encoder.preprocess, mean=(0.4, 0.5, 0.5))
    encoder = msgspec.structs.replace(manifest.encoder, preprocess=preprocess)
    write_manifest(bundle, msgspec.structs.replace(manifest, encoder=encoder))


def change_precision(bundle: Path) -> None:
    add_variant(bundle, "fp16", lambda graph: None, precision="bf16", start="fp16")


def build_a_plan(bundle: Path) -> None:
    graph = plan_cache.graph_sha256(bundle / "image_encoder" / "fp16.onnx")
    key = PlanKey(engine="counting", library_version="1", variant_sha256=graph, device="x", options={})
    plan_cache.store(key, b"plan", build_s=0.0)


def other_machine(bundle: Path) -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


@pytest.mark.parametrize(
    ("change", "again"),
    [
        pytest.param(lambda bundle: None, False, id="nothing"),
        pytest.param(lambda bundle: add_variant(bundle, "other", NAN), False, id="another variant"),
        pytest.param(change_variant, True, id="the variant"),
        pytest.param(change_golden, True, id="the golden images"),
        pytest.param(change_preprocessing, True, id="the preprocessing"),
        pytest.param(change_precision, True, id="the precision that it is held to"),
        pytest.param(build_a_plan, True, id="the plan that the engine loads"),
        pytest.param(
            other_machine,
            True,
            id="the cores",
            marks=pytest.mark.skipif(len(CORES) < 2, reason="needs two cores"),
        ),
    ],
)
def test_a_proof_is_kept_until_something_that_matters_changes(
    fp16_bundle: Path, counting: list[str], all_cores: None, change: Callable[[Path], None], again: bool
) -> None:
    def proved() -> Proof:
        bundle = Bundle.open(fp16_bundle)
        return prove(bundle, "fp16", "counting", golden_set(bundle))

    first = proved()
    assert counting == ["fp16"]
    change(fp16_bundle)
    second = proved()
    assert len(counting) == 1 + again
    assert again or second == first
    proved()
    assert len(counting) == 1 + again


def test_threads_have_a_proof_each(fp16_bundle: Path, counting: list[str]) -> None:
    bundle = Bundle.open(fp16_bundle)
    said = {prove(bundle, "fp16", "counting", golden_set(bundle), threads=threads).ran_on for threads in (1, 2, 1, 2)}
    assert len(counting) == 2
    assert sorted(text.rpartition(", ")[2] for text in said) == ["1 thread", "2 threads"]


@pytest.mark.parametrize("damage", [flip, lambda data: data[:-20], lambda data: b"", lambda data: b"\xff\xfe"])
def test_a_damaged_proof_is_made_anew(
    fp16_bundle: Path, counting: list[str], cache: Path, damage: Callable[[bytes], bytes]
) -> None:
    bundle = Bundle.open(fp16_bundle)
    prove(bundle, "fp16", "counting", golden_set(bundle))
    (kept,) = (cache / "proofs").iterdir()
    whole = kept.read_bytes()
    damaged = whole.replace(b'"parity"', b'"parit"') if damage is flip else damage(whole)
    kept.write_bytes(damaged)
    proof = prove(bundle, "fp16", "counting", golden_set(bundle))
    assert len(counting) == 2
    assert list((cache / "proofs").iterdir()) == [kept]
    assert kept_json(kept, Proof) == proof


def test_a_kept_proof_is_held_to_todays_limits(
    fp16_bundle: Path, counting: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(fp16_bundle)
    choose(bundle, variant="fp16")
    monkeypatch.setitem(LIMITS, "fp16", msgspec.structs.replace(LIMITS["fp16"], min_cosine=2.0))
    with pytest.raises(ParityError, match="a cosine of at least 2"):
        choose(bundle, variant="fp16")
    assert counting == ["fp16"]


def test_a_refusal_is_not_kept(fp16_bundle: Path, counting: list[str], cache: Path) -> None:
    bundle = add_variant(fp16_bundle, "nan", NAN)
    for _ in range(2):
        with pytest.raises(EngineError):
            choose(bundle, variant="nan")
    assert counting == ["nan", "nan"]
    assert not list((cache / "proofs").iterdir())


# What a proof says


def test_a_proof_says_what_ran_where_and_how_well(fp16_bundle: Path, counting: list[str], cache: Path) -> None:
    bundle = Bundle.open(fp16_bundle)
    golden = golden_set(bundle)
    proof = prove(bundle, "fp16", "counting", golden, threads=1)
    described = (proof.variant, proof.precision, proof.engine)
    assert described == ("fp16", "fp16", "counting")
    assert proof.versions == CountingEngine.versions()
    assert proof.machine == describe_machine()
    assert proof.conditions is not None
    assert proof.conditions.inferences is not None
    assert 3 <= proof.conditions.inferences <= 30
    with load_engine(
        "counting", bundle.variant_path("fp16"), bundle.manifest.encoder, precision="fp16", threads=1
    ) as engine:
        assert proof.ran_on == engine.describe()
        assert proof.parity == golden.compare(engine)
    assert 0 < proof.latency_ms == round(proof.latency_ms, 3)
    (kept,) = (cache / "proofs").iterdir()
    assert kept.name == f"{what_runs(bundle, 'fp16', 'counting', threads=1).digest(golden.sha256)}.json"
    assert prove(bundle, "fp16", "counting", golden, threads=1) == proof


def test_a_proof_that_is_to_be_renewed_is_taken_again(fp16_bundle: Path, counting: list[str]) -> None:
    bundle = Bundle.open(fp16_bundle)
    for loads, renew in enumerate((False, True, True), start=1):
        prove(bundle, "fp16", "counting", golden_set(bundle), renew=renew)
        assert len(counting) == loads


def test_a_variant_with_a_fixed_batch_is_proved_one_by_one(fp16_bundle: Path, counting: list[str]) -> None:
    manifest = read_manifest(fp16_bundle)
    fixed = tuple(msgspec.structs.replace(each, dynamic_batch=False) for each in manifest.variants)
    write_manifest(fp16_bundle, msgspec.structs.replace(manifest, variants=fixed))
    bundle = Bundle.open(fp16_bundle)
    assert prove(bundle, "fp16", "counting", golden_set(bundle)).parity.batch_sizes == (1,)


def test_an_engine_is_loaded_for_the_variants_precision(
    fp16_bundle: Path, counting: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int | None]] = []
    load = CountingEngine._load

    def noted(self: CountingEngine) -> None:
        asked.append((self.precision, self.threads))
        load(self)

    monkeypatch.setattr(CountingEngine, "_load", noted)
    bundle = add_variant(fp16_bundle, "int8", lambda graph: None, precision="int8")
    prove(bundle, "int8", "counting", golden_set(bundle), threads=2)
    assert asked == [("int8", 2)]


def test_a_proof_belongs_to_the_plan_that_its_own_loading_compiled(
    fp16_bundle: Path, counting: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = CountingEngine._load

    def compiled(self: CountingEngine) -> None:
        load(self)
        build_a_plan(fp16_bundle)

    monkeypatch.setattr(CountingEngine, "_load", compiled)
    bundle = Bundle.open(fp16_bundle)
    for _ in range(2):
        prove(bundle, "fp16", "counting", golden_set(bundle))
    assert counting == ["fp16"]


def test_a_graph_beyond_its_bounds_is_not_loaded(
    fp16_bundle: Path, counting: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeclip.runtime.engines.first_run._tried", lambda *_, **__: "is too much")
    monkeypatch.setenv("EDGECLIP_MAX_FIRST_RUN_S", "58")
    bundle = Bundle.open(fp16_bundle)
    with pytest.raises(EngineError, match=r"^fp16 of tiny\.edgeclip is too much"):
        prove(bundle, "fp16", "counting", golden_set(bundle))
    assert counting == []


@pytest.mark.parametrize("figure", ["min_cosine", "p95_margin_loss", "max_relative_error"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_figure_that_is_no_number_is_not_kept(
    fp16_bundle: Path, counting: list[str], cache: Path, monkeypatch: pytest.MonkeyPatch, figure: str, value: float
) -> None:
    compare = GoldenImages.compare

    def wrong(self: GoldenImages, engine: Engine, *, dynamic_batch: bool = True) -> ParityReport:
        return msgspec.structs.replace(compare(self, engine, dynamic_batch=dynamic_batch), **{figure: value})

    monkeypatch.setattr(GoldenImages, "compare", wrong)
    bundle = Bundle.open(fp16_bundle)
    proof = prove(bundle, "fp16", "counting", golden_set(bundle))
    assert getattr(proof.parity, figure) == pytest.approx(value, nan_ok=True)
    assert not list((cache / "proofs").iterdir())


def proof(precision: Precision = "fp16", **parity: float | None) -> Proof:
    return Proof(
        variant="v",
        precision=precision,
        engine="onnxruntime",
        ran_on="x",
        parity=msgspec.structs.replace(GOOD, **parity),
        latency_ms=12.34,
        machine={},
    )


def test_a_proof_is_held_to_the_limits_of_its_precision() -> None:
    assert proof(min_cosine=0.99).failures == ["a cosine of at least 0.9995, got 0.990000"]
    assert proof("int8", min_cosine=0.99).failures == []
    assert [check.status for check in proof(min_cosine=0.99).checks] == ["failed"] + ["checked"] * 6
    assert proof(min_cosine=0.99).checks == proof(min_cosine=0.99).parity.checks(LIMITS["fp16"])


def test_a_proof_names_what_could_not_be_checked_and_that_is_no_failure() -> None:
    few = proof(mean_centred_cosine=None, p95_margin_loss=None, min_cosine=0.5)
    assert few.unchecked == ("mean of the mean-centred cosine", "margin loss")
    assert few.failures == ["a cosine of at least 0.9995, got 0.500000"]
    assert proof().unchecked == ()


def test_a_proof_is_said_in_a_line() -> None:
    assert str(proof(min_cosine=0.99996)) == "12.3 ms an image, cosine to fp32 at least 1.0000, 100% of labels the same"
    assert str(proof(agreement=0.987)).endswith(", 99% of labels the same")
    assert str(proof(agreement=None)) == "12.3 ms an image, cosine to fp32 at least 1.0000"


class Paced(Engine):
    """Each inference takes as long as the next of ``times``, seconds of a clock of its own; the last of them on."""

    name = "paced"
    times: tuple[float, ...] = (0.125,)

    def _load(self) -> None:
        self.now, self.calls = 0.0, 0
        self.shapes: set[tuple[int, ...]] = set()

    def _infer(self, images: FloatArray) -> FloatArray:
        self.now += self.times[min(self.calls, len(self.times) - 1)]
        self.calls += 1
        self.shapes.add(images.shape)
        return np.ones((len(images), self.encoder.embedding_dim), np.float32)


@pytest.mark.parametrize(
    ("times", "warm_up", "measured", "latency_ms"),
    [
        ((0.125,), 3, 8, 125.0),  # 0.3 s to warm up, and 1 s
        ((0.01,), 30, 30, 10.0),  # thirty are enough
        ((1.0,), 1, 3, 1000.0),  # three at least
        ((0.5,), 1, 3, 500.0),
        ((0.5, 2.0, 1.0, 0.25, 0.25), 1, 3, 1000.0),  # the median
        ((0.4, 0.0123456), 1, 30, 12.346),
    ],
)
def test_an_image_is_timed_after_a_warm_up_and_often_enough(
    monkeypatch: pytest.MonkeyPatch,
    tiny_bundle: Path,
    times: tuple[float, ...],
    warm_up: int,
    measured: int,
    latency_ms: float,
) -> None:
    monkeypatch.setattr("edgeclip.runtime.proof.proof._WARM_UP_S", SHIPPED[0])
    monkeypatch.setattr("edgeclip.runtime.proof.proof._MEASURE_S", SHIPPED[1])
    bundle = Bundle.open(tiny_bundle)
    monkeypatch.setattr(Paced, "times", times)
    engine = Paced(Path("x.onnx"), bundle.manifest.encoder)
    marks: list[float] = []
    mark = Telemetry.mark

    def marked(self: Telemetry) -> float:
        mark(self)
        marks.append(engine.now)
        return engine.now

    monkeypatch.setattr(Telemetry, "mark", marked)
    summed: dict[str, float] = {}

    def conditions(_: Telemetry, **given: float) -> None:
        summed.update(given)

    monkeypatch.setattr(Telemetry, "conditions", conditions)
    monkeypatch.setattr("edgeclip.runtime.proof.proof.time", SimpleNamespace(perf_counter=lambda: engine.now))
    took, _ = timed(engine, golden_set(bundle))
    assert took == latency_ms
    assert engine.calls == warm_up + measured
    assert engine.shapes == {(1, 3, 32, 32)}
    assert summed == {"inferences": measured, "start": marks[0], "end": engine.now}
    assert marks[0] == pytest.approx(sum(times[min(index, len(times) - 1)] for index in range(warm_up)))


# What a proof belongs to


def test_what_runs_is_all_that_decides_it(
    fp16_bundle: Path, counting: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(os.environ):
        if name.startswith(("OMP_", "KMP_", "ORT_", "CUDA_", "TBB_", "OV_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("ORT_B", "2")
    monkeypatch.setenv("OMP_A", "1")
    monkeypatch.setenv("XOMP_A", "1")
    bundle = Bundle.open(fp16_bundle)
    build_a_plan(fp16_bundle)
    runs = what_runs(bundle, "fp16", "counting", threads=3)
    assert runs.variant == bundle.variant("fp16")
    assert runs.encoder == bundle.manifest.encoder
    assert runs.graph == (sha256_file(fp16_bundle / "image_encoder" / "fp16.onnx"),)
    assert (runs.engine, runs.threads, runs.edgeclip) == ("counting", 3, edgeclip.__version__)
    assert runs.versions == CountingEngine.versions()
    assert runs.plans == (hashlib.sha256(b"plan").hexdigest(),)
    assert list(runs.variables.items()) == [("OMP_A", "1"), ("ORT_B", "2")]
    machine = describe_machine()
    assert runs.device["cpu" if "cpu" in machine else "architecture"] in machine.values()
    assert runs.device["instructions"] == " ".join(sorted(cpu_flags()))
    assert not {"torch", "memory_gib", "onnxruntime", "counting", "openvino"} & set(runs.device)
    assert {"architecture", "system", "kernel", "python", "cores_usable"} <= set(runs.device)
    assert runs.digest() == what_runs(bundle, "fp16", "counting", threads=3).digest() != runs.digest("more")
    assert what_runs(bundle, "fp32", "onnxruntime", threads=3).plans == ()


class GpuEngine(CountingEngine):
    """The same, on a GPU, as far as anybody asks."""

    name = "counting"
    on_cpu = False


def without_cuda() -> None:
    raise MissingExtraError("no CUDA")


@pytest.mark.parametrize(
    ("gpu", "driver", "said"),
    [
        (lambda: None, None, {}),
        (without_cuda, (13, 0), {"driver_cuda": "13.0"}),
        (
            lambda: SimpleNamespace(name="Orin", compute_capability="8.7"),
            (12, 6),
            {"gpu": "Orin", "compute_capability": "8.7", "driver_cuda": "12.6"},
        ),
    ],
)
@pytest.mark.parametrize("on_cpu", [False, True])
def test_the_gpu_counts_where_the_engine_may_use_it(
    fp16_bundle: Path,
    counting: list[str],
    engine_list: dict[str, EngineEntry],
    monkeypatch: pytest.MonkeyPatch,
    gpu: Callable[[], object],
    driver: tuple[int, int] | None,
    said: dict[str, str],
    on_cpu: bool,
) -> None:
    where = f"{CountingEngine.__module__ if on_cpu else __name__}:{'Counting' if on_cpu else 'Gpu'}Engine"
    engine_list["counting"] = EngineEntry("counting", where, module="counting", packages=("counting",))
    machine = {"architecture": "x", "gpu": "as nvidia-smi has it", "nvidia_driver": "580", "torch": "9", "cpu": "c"}
    place = "edgeclip.runtime.proof.what_runs"
    monkeypatch.setattr(f"{place}.describe_machine", lambda: dict(machine))
    monkeypatch.setattr(f"{place}.cpu_flags", lambda: {"sse", "avx"})
    monkeypatch.setattr(f"{place}.find_gpu", gpu)
    monkeypatch.setattr(f"{place}.driver_cuda_version", lambda: driver)
    device = what_runs(Bundle.open(fp16_bundle), "fp16", "counting", threads=None).device
    expected = {"architecture": "x", "cpu": "c", "instructions": "avx sse"}
    if not on_cpu:
        expected |= {"gpu": machine["gpu"], "nvidia_driver": "580"} | said
    assert device == expected


def test_a_proof_is_looked_up_by_what_the_engine_named_last(
    fp16_bundle: Path, counting: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def versions(_: type[CountingEngine]) -> dict[str, str]:
        asked.append("counting")
        return {"counting": "1", "build": "7"}

    monkeypatch.setattr(CountingEngine, "versions", classmethod(versions))
    bundle = Bundle.open(fp16_bundle)
    assert remembered_versions("counting") is None
    first = prove(bundle, "fp16", "counting", golden_set(bundle), remembered=True)
    assert remembered_versions("counting") == first.versions == {"counting": "1", "build": "7"}
    asked.clear()
    assert prove(bundle, "fp16", "counting", golden_set(bundle), remembered=True) == first
    assert asked == []
    assert prove(bundle, "fp16", "counting", golden_set(bundle)) == first
    assert asked == ["counting"]
    assert counting == ["fp16"]
    for change in ({"threads": 1}, {"renew": True}):
        prove(bundle, "fp16", "counting", golden_set(bundle), **change)
    assert counting == ["fp16"] * 3
    given = {"counting": "another"}
    assert what_runs(bundle, "fp16", "counting", threads=None, versions=given).versions == given
    assert remembered_versions("counting") == first.versions
    monkeypatch.setattr("edgeclip.runtime.proof.what_runs.installed_versions", lambda packages: {packages[0]: "2"})
    assert remembered_versions("counting") is None  # its package is another


@pytest.mark.parametrize(
    ("conditions", "said"),
    [
        (busy(0.9, 0.2), "timed while other processes took 70% of the CPU"),
        (busy(0.25, 0.0), "timed while other processes took 25% of the CPU"),
        (busy(0.25, 0.125), ""),
        (busy(0.15, 0.0), "timed while other processes took 15% of the CPU"),
        (busy(1.0, 0.95), ""),
        (busy(0.9, 0.2, seconds=0.05), "timed while other processes took 70% of the CPU"),
        (busy(0.9, 0.2, seconds=0.049), ""),
        (busy(0.9, None), ""),
        (busy(None, 0.2), ""),
        (None, ""),
    ],
)
def test_a_latency_says_what_else_kept_the_machine_busy(conditions: MeasurementConditions | None, said: str) -> None:
    assert msgspec.structs.replace(proof(), conditions=conditions).slowed_by == said
