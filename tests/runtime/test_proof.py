"""A variant runs only where it was shown to agree with FP32 on the golden images, and the fastest of those is taken."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np
import pytest
from rich.console import Console

from edgeclip import Bundle
from edgeclip.engine_list import EngineEntry
from edgeclip.errors import (
    BundleError,
    EngineError,
    InputError,
    IntegrityError,
    ParityError,
    SourceError,
    VariantError,
)
from edgeclip.files import kept_json, write_json
from edgeclip.manifest import read_manifest, write_manifest
from edgeclip.prompts import unit_rows
from edgeclip.runtime.engines import plan_cache
from edgeclip.runtime.engines.base import load_engine
from edgeclip.runtime.engines.build import build_variant
from edgeclip.runtime.engines.onnxruntime import OrtEngine
from edgeclip.runtime.engines.plan_cache import PlanKey
from edgeclip.runtime.engines.tensorrt_options import BuildOptions
from edgeclip.runtime.proof.basis import basis_of
from edgeclip.runtime.proof.choose import Choice, _best, candidates, choose
from edgeclip.runtime.proof.golden import FILE, GoldenImages, decoded_inputs, golden_of
from edgeclip.runtime.proof.parity import LIMITS
from edgeclip.runtime.proof.proof import Proof, prove
from edgeclip.runtime.sinks.terminal import print_choice
from edgeclip.spec import Precision
from tests import CORES
from tests.conftest import Run, add_variant, edit_weight, make_table, without_golden
from tests.runtime.test_parity import GOOD

pytest.importorskip("torch")
pytest.importorskip("onnx")

from edgeclip.evaluation.accuracy.zeroshot import evaluate_folder
from edgeclip.export import variants as workstation
from edgeclip.export.accuracy import LabelledImages
from edgeclip.export.bundle import extended
from edgeclip.export.photographs import photographs
from edgeclip.export.proofs import make_golden
from edgeclip.export.variants import Made, Materials, make_variants
from edgeclip.runtime.images import list_labelled


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, and timings too short to be good, which no test here is about."""
    monkeypatch.setenv("EDGECLIP_CACHE", str(tmp_path / "cache"))
    for name in ("_WARM_UP_S", "_MEASURE_S"):
        monkeypatch.setattr(f"edgeclip.runtime.proof.proof.{name}", 0.01)
    return tmp_path / "cache"


def bytes_of(folder: Path) -> dict[str, str]:
    """sha256 of every file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def golden_set(bundle: Bundle) -> GoldenImages:
    golden = golden_of(bundle)
    assert golden is not None
    return golden


# Variants that are broken, each in one way


def wrongly_normalised(graph: Any) -> None:
    """The encoder sees pixels in [0, 1] where it expects [-1, 1]."""
    from onnx import helper, numpy_helper

    graph.initializer.append(numpy_helper.from_array(np.array(0.5, np.float32), "half"))
    graph.node[0].input[0] = "wrong"
    graph.node.insert(0, helper.make_node("Add", ["halved", "half"], ["wrong"]))
    graph.node.insert(0, helper.make_node("Mul", ["image", "half"], ["halved"]))


def not_a_number(weight: np.ndarray) -> np.ndarray:
    weight[0, 0] = np.nan
    return weight


WRONG: dict[str, Callable[[Any], None]] = {
    "shuffled": edit_weight("projection", lambda weight: weight[::-1]),
    "normalised": wrongly_normalised,
}
NAN = edit_weight("projection", not_a_number)


class CountingEngine(OrtEngine):
    """ONNX Runtime for every precision, which counts how often it was loaded."""

    name = "counting"
    kinds = frozenset({"fp32", "fp16", "bf16", "int8"})
    loads: ClassVar[list[str]] = []

    def _load(self) -> None:
        self.precision = "fp32"  # ONNX Runtime takes other types than those it has fast kernels for
        super()._load()
        self.loads.append(self.path.stem)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch, engine_list: dict[str, EngineEntry]) -> list[str]:
    """The only engines are ONNX Runtime's, for fp32 alone, and one that counts, for all; its loads."""
    for name in set(engine_list) - {"onnxruntime"}:
        del engine_list[name]
    where = f"{__name__}:CountingEngine"
    engine_list["counting"] = EngineEntry("counting", where, module="counting", packages=("counting",))
    monkeypatch.setattr(CountingEngine, "loads", [])
    return CountingEngine.loads


# Golden images


def test_a_golden_set_comes_back_as_it_was_saved(golden_bundle: Path, tmp_path: Path) -> None:
    golden = golden_set(Bundle.open(golden_bundle))
    for kept in (golden, replace(golden, classes=golden.classes[:0])):
        kept.save(tmp_path / "again.safetensors")
        again = GoldenImages.load(tmp_path / "again.safetensors")
        assert (again.names, again.files) == (kept.names, kept.files)
        np.testing.assert_array_equal(again.embeddings, kept.embeddings)
        np.testing.assert_array_equal(again.classes, kept.classes)


def test_fp32_agrees_with_the_golden_embeddings_because_both_saw_the_same_pixels(golden_bundle: Path) -> None:
    bundle = Bundle.open(golden_bundle)
    with load_engine("onnxruntime", bundle.variant_path("fp32"), bundle.manifest.encoder) as engine:
        report = golden_set(bundle).compare(engine)
    assert report.images == 64
    assert report.batch_sizes == (1, 8)
    assert report.min_cosine == pytest.approx(1, abs=1e-6)
    assert report.min_centred_cosine == pytest.approx(1, abs=1e-6)
    assert report.agreement == 1
    assert report.p95_margin_loss == pytest.approx(0, abs=1e-3)


def test_golden_images_are_not_cropped_twice(golden_bundle: Path) -> None:
    """An encoder that crops after its resize gets the golden image itself: it was cropped when it was made."""
    bundle = Bundle.open(golden_bundle)
    golden, spec = golden_set(bundle), bundle.manifest.encoder.preprocess
    crops = msgspec.structs.replace(spec, resize_to=spec.height + 8)
    np.testing.assert_array_equal(golden.inputs(crops), golden.inputs(spec))


def test_the_same_photographs_give_the_same_golden_set(golden_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(golden_bundle)
    again = make_golden(bundle.variant_path("fp32"), bundle.manifest.encoder, photographs(), bundle.table().embeddings)
    again.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (golden_bundle / FILE).read_bytes()
    assert len(set(again.names)) == 64
    assert again.names[: len(photographs())] == tuple(name for name, _ in photographs())


def flip(data: bytes) -> bytes:
    return data[:-100] + bytes([data[-100] ^ 1]) + data[-99:]


@pytest.mark.parametrize("damage", [flip, lambda data: data[:-1], lambda data: b""])
def test_a_golden_set_is_under_the_manifests_hash(golden_bundle: Path, damage: Callable[[bytes], bytes]) -> None:
    path = golden_bundle / FILE
    path.write_bytes(damage(path.read_bytes()))
    bundle = Bundle.open(golden_bundle)
    with pytest.raises(IntegrityError, match="altered"):
        golden_of(bundle)
    with pytest.raises(IntegrityError, match="altered"):
        choose(bundle)


def tensors(**changes: np.ndarray) -> dict[str, np.ndarray]:
    whole = {
        "jpeg": np.zeros(4, np.uint8),
        "ends": np.array([2, 4]),
        "embeddings": np.ones((2, 3), np.float32),
        "classes": np.ones((5, 3), np.float32),
    }
    return whole | changes


NAMED = {"names": '["a", "b"]'}


@pytest.mark.parametrize(
    ("content", "metadata"),
    [
        (tensors(), None),
        (tensors(), {"other": "x"}),
        (tensors(), {"names": "5"}),
        (tensors(), {"names": '["a"]'}),
        (tensors(), {"names": "nothing"}),
        (tensors(embeddings=np.ones((3, 3), np.float32)), NAMED),
        (tensors(classes=np.ones((5, 4), np.float32)), NAMED),
        ({"jpeg": np.zeros(4, np.uint8)}, NAMED),
    ],
)
def test_a_file_that_holds_no_golden_images_is_refused(
    tmp_path: Path, content: dict[str, np.ndarray], metadata: dict[str, str] | None
) -> None:
    from safetensors.numpy import save_file

    save_file(content, str(tmp_path / "x.safetensors"), metadata)
    with pytest.raises(IntegrityError, match="holds no golden images"):
        GoldenImages.load(tmp_path / "x.safetensors")


@pytest.mark.parametrize("cut", [10, 1000, -10])
def test_a_truncated_file_is_refused(golden_bundle: Path, tmp_path: Path, cut: int) -> None:
    (tmp_path / "x.safetensors").write_bytes((golden_bundle / FILE).read_bytes()[:cut])
    with pytest.raises(IntegrityError, match="holds no golden images"):
        GoldenImages.load(tmp_path / "x.safetensors")


def test_images_that_are_no_jpeg_of_the_encoders_size_are_refused(golden_bundle: Path) -> None:
    bundle = Bundle.open(golden_bundle)
    spec, files = bundle.manifest.encoder.preprocess, golden_set(bundle).files
    larger = msgspec.structs.replace(spec, height=40, width=40, resize_to=40)
    for given, expected in (((b"hello",), spec), ((b"",), spec), (files, larger)):
        with pytest.raises(IntegrityError, match="is no JPEG of"):
            decoded_inputs(given, expected)


# The gate on the workstation


@pytest.fixture
def materials(golden_bundle: Path) -> Materials:
    bundle = Bundle.open(golden_bundle)
    golden = golden_set(bundle)
    encoder = bundle.manifest.encoder
    return Materials(bundle.variant_path("fp32"), encoder, golden, golden.inputs(encoder.preprocess))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_workstation_passes_what_is_right(materials: Materials, precision: Precision) -> None:
    report = workstation.prove(materials.fp32, precision, materials, name=precision)
    assert not report.failures(LIMITS[precision])


@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize("name", WRONG)
def test_the_workstation_refuses_a_broken_variant_and_names_the_worst_photographs(
    golden_bundle: Path, materials: Materials, name: str, precision: Precision
) -> None:
    broken = add_variant(golden_bundle, name, WRONG[name]).variant_path(name)
    with pytest.raises(ParityError, match=f"{name} differs from fp32: expected a .* of 64 images: ") as caught:
        workstation.prove(broken, precision, materials, name=name)
    named = re.search(r"of 64 images: (.*)\): do not use", str(caught.value))
    assert named
    with load_engine("onnxruntime", broken, materials.encoder) as engine:
        embeddings = engine.infer(materials.images)
    golden = materials.golden
    if precision == "fp32":
        centre = golden.embeddings.mean(axis=0)
        plain = (unit_rows(embeddings) * unit_rows(golden.embeddings)).sum(axis=1)
        centred = (unit_rows(embeddings - centre) * unit_rows(golden.embeddings - centre)).sum(axis=1)
        order = np.argsort(np.minimum(plain, centred))
        assert named[1] == ", ".join(golden.names[index] for index in order[:3])


def test_the_workstation_refuses_a_variant_that_is_not_a_number(golden_bundle: Path, materials: Materials) -> None:
    broken = add_variant(golden_bundle, "nan", NAN).variant_path("nan")
    with pytest.raises(EngineError, match="not finite"):
        workstation.prove(broken, "fp32", materials, name="nan")


def test_a_broken_variant_stops_making_and_has_no_report(
    golden_bundle: Path, materials: Materials, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = add_variant(golden_bundle, "shuffled", WRONG["shuffled"]).variant_path("shuffled")
    monkeypatch.setitem(workstation.VARIANTS, "fp16", lambda folder, _: Made((graph,), "fp16", None))
    with pytest.raises(ParityError, match="fp16 differs from fp32"):
        make_variants(["fp16"], golden_bundle, materials)
    assert not (golden_bundle / "reports" / "parity-fp16.json").exists()


def test_limits_may_be_drawn_tighter_than_the_precisions_own(materials: Materials) -> None:
    tight = msgspec.structs.replace(LIMITS["fp32"], min_cosine=2.0)
    with pytest.raises(ParityError, match="a cosine of at least 2"):
        workstation.prove(materials.fp32, "fp32", replace(materials, limits=tight), name="fp32")


def test_a_folder_may_be_given_by_a_relative_path(materials: Materials, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nncf")
    from edgeclip.export.int8.quantization import quantize

    monkeypatch.chdir(materials.fp32.parents[1])
    graph = Path("image_encoder")
    assert quantize(graph / "fp32.onnx", graph / "int8.onnx", materials.images[:2], materials.recipe)
    assert (graph / "int8.onnx").is_file()


# The gate on the device


@pytest.mark.parametrize("name", WRONG)
def test_the_device_passes_over_a_broken_variant_and_says_why(
    golden_bundle: Path, counting: list[str], name: str
) -> None:
    bundle = add_variant(golden_bundle, name, WRONG[name])
    choice = choose(bundle)
    assert choice.variant in {"fp32", "fp16"}
    assert {(proof.variant, proof.engine) for proof in choice.proofs} == {
        ("fp32", "onnxruntime"),
        ("fp32", "counting"),
        ("fp16", "counting"),
    }
    ((variant, engine, reason),) = choice.refused
    assert (variant, engine) == (name, "counting")
    assert re.search(r"a .*cosine of at least 0\.99.*, got -?0\.\d+", reason)
    with pytest.raises(ParityError, match=f"no variant is proved on this machine: {name} on onnxruntime: a "):
        choose(bundle, variant=name, engine="onnxruntime")


def test_the_device_passes_over_a_variant_that_is_not_a_number(golden_bundle: Path, counting: list[str]) -> None:
    bundle = add_variant(golden_bundle, "nan", NAN)
    choice = choose(bundle)
    assert choice.variant in {"fp32", "fp16"}
    assert [(variant, engine) for variant, engine, _ in choice.refused] == [("nan", "counting")]
    assert "not finite" in choice.refused[0][2]
    with pytest.raises(EngineError, match=r"no variant is proved .* nan on counting: .*not finite"):
        choose(bundle, variant="nan")


def test_when_all_variants_are_wrong_none_runs(golden_bundle: Path, counting: list[str]) -> None:
    add_variant(golden_bundle, "fp16", WRONG["shuffled"])
    bundle = add_variant(golden_bundle, "fp32", WRONG["shuffled"], precision="fp32")
    assert [variant.name for variant in bundle.manifest.variants] == ["fp16", "fp32"]
    with pytest.raises(ParityError, match=r"fp32 on onnxruntime: .*fp16 on counting: .*fp32 on counting: "):
        choose(bundle)


def test_the_limits_are_those_of_the_variants_precision(golden_bundle: Path, counting: list[str]) -> None:
    """Four bits of mantissa are too few for fp16 and enough for int8."""

    def coarse(weight: np.ndarray) -> np.ndarray:
        mantissa, exponent = np.frexp(weight)
        return np.ldexp(np.round(mantissa * 16) / 16, exponent).astype(np.float32)

    for name, precision in (("coarse-fp16", "fp16"), ("coarse-int8", "int8")):
        bundle = add_variant(golden_bundle, name, edit_weight("projection", coarse), precision=precision)
    choice = choose(bundle, engine="counting")
    assert [variant for variant, _, _ in choice.refused] == ["coarse-fp16"]
    assert {proof.variant for proof in choice.proofs} == {"fp32", "fp16", "coarse-int8"}


def test_an_altered_variant_is_an_error_and_not_passed_over(golden_bundle: Path, counting: list[str]) -> None:
    graph = golden_bundle / "image_encoder" / "fp16.onnx"
    graph.write_bytes(flip(graph.read_bytes()))
    with pytest.raises(IntegrityError, match=r"fp16\.onnx was altered"):
        choose(Bundle.open(golden_bundle))


# Proofs are kept


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
    golden_bundle: Path, counting: list[str], all_cores: None, change: Callable[[Path], None], again: bool
) -> None:
    def proved() -> Proof:
        bundle = Bundle.open(golden_bundle)
        return prove(bundle, "fp16", "counting", golden_set(bundle))

    first = proved()
    assert counting == ["fp16"]
    change(golden_bundle)
    second = proved()
    assert len(counting) == 1 + again
    assert again or second == first
    proved()
    assert len(counting) == 1 + again


def test_threads_have_a_proof_each(golden_bundle: Path, counting: list[str]) -> None:
    bundle = Bundle.open(golden_bundle)
    said = {prove(bundle, "fp16", "counting", golden_set(bundle), threads=threads).ran_on for threads in (1, 2, 1, 2)}
    assert len(counting) == 2
    assert sorted(text.rpartition(", ")[2] for text in said) == ["1 thread", "2 threads"]


@pytest.mark.parametrize("damage", [flip, lambda data: data[:-20], lambda data: b"", lambda data: b"\xff\xfe"])
def test_a_damaged_proof_is_made_anew(
    golden_bundle: Path, counting: list[str], cache: Path, damage: Callable[[bytes], bytes]
) -> None:
    bundle = Bundle.open(golden_bundle)
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
    golden_bundle: Path, counting: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(golden_bundle)
    choose(bundle, variant="fp16")
    monkeypatch.setitem(LIMITS, "fp16", msgspec.structs.replace(LIMITS["fp16"], min_cosine=2.0))
    with pytest.raises(ParityError, match="a cosine of at least 2"):
        choose(bundle, variant="fp16")
    assert counting == ["fp16"]


def test_a_refusal_is_not_kept(golden_bundle: Path, counting: list[str], cache: Path) -> None:
    bundle = add_variant(golden_bundle, "nan", NAN)
    for _ in range(2):
        with pytest.raises(EngineError):
            choose(bundle, variant="nan")
    assert counting == ["nan", "nan"]
    assert not list((cache / "proofs").iterdir())


# The choice


def proof(variant: str, latency_ms: float, precision: str | None = None, engine: str = "onnxruntime") -> Proof:
    return Proof(
        variant=variant,
        precision=precision or variant,
        engine=engine,
        ran_on=engine,
        parity=GOOD,
        latency_ms=latency_ms,
        machine={},
    )


@pytest.mark.parametrize(
    ("latencies", "expected"),
    [
        ({"fp32": 10.0}, "fp32"),
        ({"fp32": 10.0, "int8": 5.0}, "int8"),
        ({"fp32": 10.0, "int8": 9.4}, "int8"),
        ({"fp32": 10.0, "int8": 9.5}, "int8"),  # exactly 5 % less time
        ({"fp32": 10.0, "int8": 9.6}, "fp32"),
        ({"fp32": 9.0, "int8": 10.0}, "fp32"),
        ({"fp32": 10.0, "fp16": 9.7, "bf16": 9.6, "int8": 9.55}, "fp32"),
        ({"fp32": 10.0, "fp16": 6.0, "int8": 5.8}, "fp16"),
        ({"fp32": 10.0, "bf16": 6.0, "fp16": 6.1}, "fp16"),
        ({"fp32": 10.0, "bf16": 5.0, "fp16": 6.0}, "bf16"),
        ({"fp32": 9.8, "bf16": 9.4, "int8": 9.0}, "fp32"),  # int8 gains too little on bf16, and bf16 on fp32
    ],
)
def test_the_fastest_is_taken_unless_a_more_exact_one_takes_hardly_longer(
    latencies: dict[str, float], expected: str
) -> None:
    good = sorted((proof(name, ms) for name, ms in latencies.items()), key=lambda item: item.latency_ms)
    assert _best(good).variant == expected


def test_the_best_is_the_fastest_that_gains_5_percent_on_all_more_exact_ones() -> None:
    kinds = ("fp32", "fp16", "bf16", "int8")
    chooser = random.Random(0)
    for _ in range(2000):
        count = chooser.randint(1, 6)
        good = [proof(f"v{n}", chooser.uniform(8, 11), chooser.choice(kinds)) for n in range(count)]
        good.sort(key=lambda item: item.latency_ms)
        worth_it = [
            item
            for item in good
            if all(
                item.latency_ms <= 0.95 * other.latency_ms
                for other in good
                if kinds.index(other.precision) < kinds.index(item.precision)
            )
        ]
        assert _best(good) is worth_it[0]


def test_among_engines_for_one_variant_only_speed_counts() -> None:
    assert _best([proof("fp32", 9.9, engine="b"), proof("fp32", 10.0, engine="a")]).engine == "b"


def test_a_choice_names_the_fastest_of_the_proved(
    golden_bundle: Path, counting: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    speed = {"onnxruntime": 10.0, "counting": 4.0}
    monkeypatch.setattr("edgeclip.runtime.proof.proof.timed", lambda engine, _: (speed[engine.name], None))
    said: list[str] = []
    choice = choose(Bundle.open(golden_bundle), progress=said.append)
    assert (choice.variant, choice.engine) == ("fp32", "counting")  # as fast as fp16, and more exact
    assert said == ["proving fp32 on onnxruntime", "proving fp32 on counting", "proving fp16 on counting"]
    assert [proof.latency_ms for proof in choice.proofs] == [4.0, 4.0, 10.0]


@pytest.mark.parametrize(
    ("asked", "tried"),
    [
        ({}, [("fp32", "onnxruntime"), ("fp32", "counting"), ("fp16", "counting")]),
        ({"engine": "onnxruntime"}, [("fp32", "onnxruntime")]),
        ({"engine": "counting"}, [("fp32", "counting"), ("fp16", "counting")]),
        ({"variant": "fp16"}, [("fp16", "counting")]),
        ({"variant": "fp16", "engine": "onnxruntime"}, [("fp16", "onnxruntime")]),
    ],
)
def test_an_engine_that_is_not_meant_for_a_variant_is_tried_only_if_both_are_named(
    golden_bundle: Path, counting: list[str], asked: dict[str, str], tried: list[tuple[str, str]]
) -> None:
    bundle = Bundle.open(golden_bundle)
    assert list(candidates(bundle, **asked)) == tried
    choice = choose(bundle, **asked)
    assert (choice.variant, choice.engine) in tried
    assert {(proof.variant, proof.engine) for proof in choice.proofs} == set(tried)


def test_an_engine_that_is_not_here_is_tried_only_if_it_is_named(
    golden_bundle: Path, counting: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CountingEngine, "available", classmethod(lambda _: False))
    bundle = Bundle.open(golden_bundle)
    assert list(candidates(bundle)) == [("fp32", "onnxruntime")]
    assert list(candidates(bundle, engine="counting")) == [("fp32", "counting"), ("fp16", "counting")]
    with pytest.raises(EngineError, match="no engine installed here is meant for a variant of tiny"):
        choose(bundle, variant="fp16")


@pytest.mark.parametrize("golden", [True, False])
@pytest.mark.parametrize(
    ("asked", "kind", "message"),
    [
        ({"variant": "int4"}, VariantError, "no variant 'int4'"),
        ({"engine": "abacus"}, EngineError, "^expected an engine out of"),
        ({"variant": "fp32", "engine": "abacus"}, EngineError, "^expected an engine out of"),
    ],
)
def test_names_that_do_not_exist_are_refused_at_once(
    golden_bundle: Path, tiny_bundle: Path, golden: bool, asked: dict[str, str], kind: type[Exception], message: str
) -> None:
    said: list[str] = []
    with pytest.raises(kind, match=message):
        choose(Bundle.open(golden_bundle) if golden else without_golden(tiny_bundle), **asked, progress=said.append)
    assert not said


def test_threads_below_one_are_the_callers_mistake(golden_bundle: Path, counting: list[str]) -> None:
    with pytest.raises(InputError, match=r"^expected threads of at least 1, got 0"):
        choose(Bundle.open(golden_bundle), threads=0)


@pytest.mark.parametrize(
    ("asked", "taken"),
    [
        ({}, ("fp32", "onnxruntime")),
        ({"engine": "counting"}, ("fp32", "counting")),
        ({"variant": "again"}, ("again", "onnxruntime")),
    ],
)
def test_without_golden_images_nothing_runs_unless_it_is_asked_for_and_that_is_said(
    tiny_bundle: Path, counting: list[str], asked: dict[str, str], taken: tuple[str, str]
) -> None:
    add_variant(tiny_bundle, "again", lambda graph: None)
    bundle = without_golden(tiny_bundle)
    with pytest.raises(ParityError, match=r"expected golden images in tiny.*edgeclip prove .*tiny.edgeclip --images"):
        choose(bundle, **asked)
    choice = choose(bundle, **asked, unproved=True)
    assert (choice.variant, choice.engine) == taken
    assert choice.why.startswith("not proved: the bundle has no golden images; edgeclip prove ")
    assert (choice.proofs, choice.basis) == ((), None)
    assert not counting


def lacks(bundle: Bundle, variant: str) -> str:
    """What is said of a proof on stand-ins."""
    basis = basis_of(bundle, variant, golden_set(bundle))
    assert str(basis).startswith("provisional: on ")
    return f"{basis}: edgeclip prove {bundle.path} --images FOLDER"


def printed(choice: Choice) -> list[str]:
    console = Console(width=80, no_color=True)
    with console.capture() as capture:
        print_choice(choice, console)
    return capture.get().splitlines()


def test_the_choice_is_explained(golden_bundle: Path, counting: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "edgeclip.runtime.proof.proof.timed", lambda engine, _: (4.0 if engine.path.stem == "fp16" else 10.0, None)
    )
    bundle = add_variant(golden_bundle, "shuffled", WRONG["shuffled"])
    first, *refused = printed(choose(bundle))
    assert first == (
        "fp16 on counting: 4.0 ms an image here, fp32's embeddings to a cosine of 1.0000 and 100% of the labels; "
        "the fastest (fp32 on onnxruntime 10.0 ms, fp32 on counting 10.0 ms); "
        f"{lacks(bundle, 'fp16')}"
    )
    assert len(refused) == 1
    assert refused[0].startswith("not shuffled on counting: a cosine of at least 0.9995, got ")
    (alone,) = printed(choose(bundle, variant="fp16"))
    assert alone.endswith(f"; the only one proved; {lacks(bundle, 'fp16')}")


def test_a_more_exact_choice_is_explained(
    golden_bundle: Path, counting: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "edgeclip.runtime.proof.proof.timed", lambda engine, _: (9.8 if engine.path.stem == "fp16" else 10.0, None)
    )
    bundle = Bundle.open(golden_bundle)
    (line,) = printed(choose(bundle, engine="counting"))
    assert line.startswith("fp32 on counting: 10.0 ms")
    assert line.endswith(f"; as fast as any and more exact (fp16 on counting 9.8 ms); {lacks(bundle, 'fp32')}")


def test_brackets_in_a_reason_are_printed() -> None:
    reason = "tensorrt is needed: pip install 'edgeclip[tensorrt]'"
    choice = Choice("fp32", "onnxruntime", "why [not]", refused=(("fp16", "tensorrt", reason),))
    assert printed(choice) == ["fp32 on onnxruntime: why [not]", f"not fp16 on tensorrt: {reason}"]


# The command line, in this process


def refusal(result: tuple[int, str, str]) -> str:
    """The one sentence with which the command line refused."""
    code, out, err = result
    assert code == 2, result
    assert not out
    assert err.startswith("error: ")
    return err


def test_label_says_on_stderr_what_it_chose_and_stdout_stays_as_it_was(
    golden_bundle: Path, tiny_bundle: Path, photographs_dir: Path, cli: Run
) -> None:
    code, out, err = cli("label", golden_bundle, photographs_dir)
    assert code == 0
    chosen = err.splitlines()[0]
    assert re.match(r"fp(32|16) on [\w-]+: \d+\.\d ms an image here, fp32's embeddings to a cosine of 1\.0000", chosen)
    again = cli("label", golden_bundle, photographs_dir)
    assert again[2].splitlines()[0] == chosen  # from the cache: the same figures
    without_golden(tiny_bundle)
    assert "to prove its variants on, got none: run edgeclip prove" in refusal(
        cli("label", tiny_bundle, photographs_dir)
    )
    _, before, why = cli("label", tiny_bundle, photographs_dir, "--unproved")
    assert why.splitlines()[0] == (
        "fp32 on onnxruntime: not proved: the bundle has no golden images; "
        f"edgeclip prove {tiny_bundle} --images FOLDER proves it"
    )
    assert why.splitlines()[1].startswith("preprocess ")
    numbers = re.compile(r"\d+\.\d+")
    assert numbers.sub("#", out) == numbers.sub("#", before)
    assert out.startswith("5 frames labelled in ")


def test_label_runs_what_it_chose(
    golden_bundle: Path, photographs_dir: Path, cli: Run, counting: list[str], tmp_path: Path
) -> None:
    jsonl = tmp_path / "labels.jsonl"
    code, _, err = cli("label", golden_bundle, photographs_dir, "--engine", "counting", "--jsonl", jsonl)
    assert code == 0
    assert len(jsonl.read_text().splitlines()) == 5
    assert sorted(counting[:2]) == ["fp16", "fp32"]
    assert counting[2:] == [err.partition(" ")[0]]


def test_label_refuses_a_broken_variant_and_writes_nothing(
    golden_bundle: Path, photographs_dir: Path, cli: Run, tmp_path: Path
) -> None:
    add_variant(golden_bundle, "shuffled", WRONG["shuffled"])
    out = tmp_path / "out"
    result = cli(
        "label", golden_bundle, photographs_dir, "--variant", "shuffled", "--engine", "onnxruntime",
        "--jsonl", out / "labels.jsonl", "--overlay", out / "overlay.mp4",
    )  # fmt: skip
    assert "no variant is proved on this machine: shuffled on onnxruntime: a cosine of at least" in refusal(result)
    assert not out.exists()


@pytest.mark.parametrize(
    ("option", "value"), [("--top", 0), ("--limit", 0), ("--threads", -1), ("--overlay", "labels.gif")]
)
def test_label_refuses_bad_options_before_it_proves_anything(
    golden_bundle: Path, photographs_dir: Path, cli: Run, cache: Path, option: str, value: object
) -> None:
    assert "expected" in refusal(cli("label", golden_bundle, photographs_dir, option, value))
    assert not cache.exists()


def test_build_for_openvino_proves_and_the_second_time_finds(golden_bundle: Path, cli: Run) -> None:
    pytest.importorskip("openvino")
    bundle = Bundle.open(golden_bundle)
    prove(bundle, "fp32", "openvino", golden_set(bundle))  # of the graph, which is no proof of the blob
    code, out, _ = cli("build", golden_bundle, "--engine", "openvino")
    lines = out.splitlines()
    assert code == 0
    said = [line.partition(": ")[0] for line in lines]
    assert said == ["fp32 for openvino", "  proved", "fp16 for openvino", "  proved"]
    assert all("; throttled: " in line and "power" in line for line in lines[1::2])  # what the machine was doing
    for line in lines[::2]:
        built = re.fullmatch(r"\w+ for openvino: built in \d+\.\d s, \d+\.\d MB, (.+)", line)
        assert built
        assert Path(built[1]).is_file()
    again = cli("build", golden_bundle, "--engine", "openvino")[1].splitlines()
    assert [line.partition(", ")[0] for line in again[::2]] == [
        "fp32 for openvino: found in the cache",
        "fp16 for openvino: found in the cache",
    ]
    assert again[1::2] == lines[1::2]  # proved once


def test_a_new_plan_is_proved_itself(golden_bundle: Path, cli: Run, cache: Path) -> None:
    pytest.importorskip("openvino")
    bundle = Bundle.open(golden_bundle)
    prove(bundle, "fp32", "openvino", golden_set(bundle))
    (before,) = (cache / "proofs").iterdir()
    assert cli("build", golden_bundle, "--engine", "openvino", "--variant", "fp32")[0] == 0
    (after,) = set((cache / "proofs").iterdir()) - {before}
    assert json.loads(after.read_text())["value"]["variant"] == "fp32"


def test_build_names_the_variant_whose_plan_is_wrong(golden_bundle: Path, cli: Run) -> None:
    pytest.importorskip("openvino")
    add_variant(golden_bundle, "shuffled", WRONG["shuffled"])
    code, out, err = cli("build", golden_bundle, "--engine", "openvino")
    assert code == 2
    assert [line.split()[0] for line in out.splitlines()[1::2]] == ["proved:", "proved:", "wrong:"]
    assert err.startswith("error: openvino disagrees with fp32 on the golden images (shuffled: expected a cosine of ")
    assert "it will not be used" in err


def test_build_without_golden_images_is_asked_for_and_says_that_nothing_is_proved(
    tiny_bundle: Path, cli: Run, cache: Path
) -> None:
    pytest.importorskip("openvino")
    without_golden(tiny_bundle)
    assert "to prove its variants on, got none" in refusal(cli("build", tiny_bundle, "--engine", "openvino"))
    assert not list(cache.rglob("*.bin"))  # refused before anything is built
    code, out, _ = cli("build", tiny_bundle, "--engine", "openvino", "--unproved")
    assert code == 0
    assert "  not proved: the bundle has no golden images; edgeclip prove " in out


def needs_tensorrt_rtx(*, gpu: bool = True) -> None:
    pytest.importorskip("tensorrt_rtx")
    pytest.importorskip("cuda.bindings.runtime")
    from edgeclip.devices.machine.cuda import find_gpu

    if not gpu and find_gpu() is not None:
        pytest.skip("is about a machine without an NVIDIA GPU")


def test_build_for_a_gpu_elsewhere_says_that_it_is_not_proved_here(golden_bundle: Path, cli: Run) -> None:
    needs_tensorrt_rtx()
    arguments = ("build", golden_bundle, "--engine", "tensorrt-rtx", "--variant", "fp32", "--compute-capability", "8.6")
    code, out, _ = cli(*arguments)
    lines = out.splitlines()
    assert code == 0
    assert lines[0].startswith("fp32 for tensorrt-rtx: built in ")
    assert lines[-1] == "  not proved: it is for another machine; build runs the proof there"
    assert cli(*arguments)[1].startswith("fp32 for tensorrt-rtx: found in the cache")


def test_layers_that_cannot_be_read_are_refused_before_a_build(golden_bundle: Path, cli: Run, cache: Path) -> None:
    needs_tensorrt_rtx(gpu=False)
    arguments = ("build", golden_bundle, "--engine", "tensorrt-rtx", "--compute-capability", "8.6", "--layers")
    assert "needed to read the layers of a plan, as --layers asks, but" in refusal(cli(*arguments))
    assert not list(cache.rglob("*.bin"))


def test_build_for_a_gpu_that_is_not_here_is_one_clear_error(golden_bundle: Path, cli: Run) -> None:
    needs_tensorrt_rtx(gpu=False)
    message = refusal(cli("build", golden_bundle, "--engine", "tensorrt-rtx"))
    assert len(message.splitlines()) == 1
    assert "an NVIDIA GPU is needed to build" in message
    assert "`compute_capability`" in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch", "1,2"], "expected --batch MIN,OPT,MAX, such as 1,1,8, got '1,2'"),
        (["--batch", "one,1,8"], "expected --batch MIN,OPT,MAX"),
        (["--batch", "8,1,1"], "expected batches with 1 <= MIN <= OPT <= MAX, got 8,1,1"),
        (["--batch", "0,1,1"], "expected batches with 1 <= MIN"),
        (["--workspace", "0"], "expected a workspace of at least 1 byte"),
        (["--compute-capability", "ampere"], "expected a compute capability such as 8.6"),
        (["--engine", "abacus"], "expected an engine out of"),
        (["--engine", "onnxruntime"], "an engine that is built: openvino, openvino-gpu, tensorrt-rtx, tensorrt, got"),
        (["--engine", "openvino", "--variant", "int4"], "no variant 'int4'"),
        (["--engine", "openvino", "--compute-capability", "8.6"], "compute_capability: expected no options of a Tens"),
        (["--engine", "openvino", "--batch", "1,4,4"], "opt_batch, max_batch: expected no options of a TensorRT plan"),
        (["--engine", "tensorrt", "--compute-capability", "8.6"], "use `engine` tensorrt-rtx"),
    ],
)
def test_build_refuses_what_it_cannot_do(
    golden_bundle: Path, cli: Run, cache: Path, options: list[str], message: str
) -> None:
    assert message in refusal(cli("build", golden_bundle, *options))
    assert not list(cache.rglob("*.bin"))


def test_building_a_variant_that_the_engine_is_not_meant_for_is_refused(tiny_bundle: Path) -> None:
    bundle = add_variant(tiny_bundle, "int8-cpu", lambda graph: None, precision="int8")
    with pytest.raises(VariantError, match="tensorrt-rtx is not meant for int8-cpu: expected one of fp32"):
        build_variant(bundle, "int8-cpu", "tensorrt-rtx", BuildOptions(compute_capability="8.6"))


def test_export_refuses_unknown_variants_before_anything_is_loaded(
    cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*_: object, **__: object) -> None:
        raise AssertionError("loaded")

    for name in ("training.load.load_model", "export.photographs.photographs", "calibration.images.sample_images"):
        monkeypatch.setattr(f"edgeclip.{name}", loaded)
    result = cli("export", "starter", "--variants", "fp16, nonsense", "--output", tmp_path / "x.edgeclip")
    assert "expected different variants out of fp16, bf16, int8, int8-cpu, got fp16, nonsense" in refusal(result)
    assert not (tmp_path / "x.edgeclip").exists()


def test_quantize_needs_golden_images(tiny_bundle: Path, cli: Run) -> None:
    pytest.importorskip("nncf")
    without_golden(tiny_bundle)
    before = bytes_of(tiny_bundle)
    assert "has no golden images to compare on: export the bundle again" in refusal(cli("quantize", tiny_bundle))
    assert bytes_of(tiny_bundle) == before


def test_quantize_refuses_the_shipped_bundle_and_a_tar_at_once(golden_bundle: Path, cli: Run, tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    assert "starter bundle is read-only" in refusal(cli("quantize", "starter"))
    tar = Bundle.open(golden_bundle).to_tar(tmp_path / "tiny.tar")
    assert "got one in a .tar: unpack it first" in refusal(cli("quantize", tar))


# A bundle is extended


def save_again(folder: Path, name: str) -> None:
    """Write a variant's files again, as what makes variants does."""
    import onnx_ir

    from edgeclip.export.onnx import save_graph
    from edgeclip.runtime.proof.basis import Basis

    graph = onnx_ir.load(folder / "image_encoder" / "fp32.onnx")
    graph.metadata_props["edited"] = "yes"
    save_graph(graph, folder / "image_encoder" / f"{name}.onnx")
    basis = Basis(origin="images", photographs=64)
    workstation.write_report(folder, name, GOOD, limits=LIMITS["fp16"], basis=basis)


def variant_named(name: str) -> Any:
    from edgeclip.spec import Variant

    return Variant(name=name, file=f"image_encoder/{name}.onnx", precision="fp16", opset=18)


def test_variants_are_added_and_replaced(golden_bundle: Path) -> None:
    save_again(golden_bundle, "fp16")
    write_manifest(golden_bundle, read_manifest(golden_bundle), scan=True)
    old, before = Bundle.open(golden_bundle), bytes_of(golden_bundle)
    with extended(old, names=["fp16", "more"]) as (folder, made):
        assert not (folder / "image_encoder" / "fp16.onnx").exists()
        assert not (folder / "reports" / "parity-fp16.json").exists()
        for name in ("fp16", "more"):
            shutil.copy(folder / "image_encoder" / "fp32.onnx", folder / "image_encoder" / f"{name}.onnx")
            made.append(variant_named(name))
        shown = {name: digest for name, digest in bytes_of(golden_bundle).items() if not name.startswith(".")}
        assert shown == before  # until the block ends
    new = Bundle.open(golden_bundle)
    assert [variant.name for variant in new.manifest.variants] == ["fp32", "fp16", "more"]
    assert "reports/parity-fp16.json" not in new.manifest.files
    fp32 = new.manifest.files["image_encoder/fp32.onnx"]
    assert new.manifest.files["image_encoder/fp16.onnx"] == new.manifest.files["image_encoder/more.onnx"] == fp32
    assert list(new.verify())
    assert (new.manifest.model, new.manifest.tables) == (old.manifest.model, old.manifest.tables)
    assert new.table().labels == old.table().labels
    assert [path.name for path in golden_bundle.parent.iterdir()] == ["tiny.edgeclip"]


def test_two_that_make_variants_at_once_and_one_that_adds_a_table_all_keep_theirs(golden_bundle: Path) -> None:
    with extended(Bundle.open(golden_bundle), names=["int8"]) as (first, made):
        save_again(first, "int8")
        made.append(variant_named("int8"))
        with extended(Bundle.open(golden_bundle), names=["fp16", "int8-cpu"]) as (second, also):
            save_again(second, "int8-cpu")
            also.append(variant_named("int8-cpu"))
        bundle = Bundle.open(golden_bundle)
        other = make_table(model_id=bundle.manifest.model.id, seed=1)
        bundle.add_table(other, overwrite=True)
    bundle = Bundle.open(golden_bundle)
    assert [variant.name for variant in bundle.manifest.variants] == ["fp32", "int8-cpu", "int8"]
    assert np.array_equal(bundle.table().embeddings, other.embeddings)
    assert {"reports/parity-int8.json", "reports/parity-int8-cpu.json"} <= set(bundle.verify())
    assert not (golden_bundle / "image_encoder" / "fp16.onnx").exists()
    assert list(golden_bundle.rglob(".*")) == []


@pytest.mark.parametrize("error", [ParityError("differs"), KeyboardInterrupt(), RuntimeError("a bug")])
def test_a_failure_leaves_the_bundle_byte_for_byte_as_it_was(golden_bundle: Path, error: BaseException) -> None:
    before = bytes_of(golden_bundle)

    def fail() -> None:
        with extended(Bundle.open(golden_bundle), names=["fp16"]) as (folder, made):
            # The files are the bundle's own under second names: writing any of them again must not write through.
            for name in ("fp16", "fp32"):
                save_again(folder, name)
            GoldenImages.load(folder / FILE).save(folder / FILE)
            write_json(folder / "reports" / "quantization.json", {})
            made.append(variant_named("fp16"))
            raise error

    with pytest.raises(type(error)):
        fail()
    assert bytes_of(golden_bundle) == before
    assert [path.name for path in golden_bundle.parent.iterdir()] == ["tiny.edgeclip"]
    assert list(Bundle.open(golden_bundle).verify())


def test_files_that_stay_are_not_copied_and_a_later_overwrite_does_not_reach_an_old_copy(
    golden_bundle: Path, tmp_path: Path
) -> None:
    with extended(Bundle.open(golden_bundle), names=["fp16"]) as (folder, _):
        assert (folder / FILE).samefile(golden_bundle / FILE)
    old = tmp_path / "old.edgeclip"
    shutil.copytree(golden_bundle, old, copy_function=os.link)
    before = bytes_of(old)
    with extended(Bundle.open(golden_bundle), names=["fp16"]) as (folder, made):
        for name in ("fp16", "fp32"):
            save_again(folder, name)
        made.append(variant_named("fp16"))
    assert bytes_of(golden_bundle) != before
    assert bytes_of(old) == before
    assert list(Bundle.open(old).verify())


def test_an_altered_bundle_is_not_extended(golden_bundle: Path) -> None:
    table = golden_bundle / "prompts" / "things.safetensors"
    table.write_bytes(flip(table.read_bytes()))
    before = bytes_of(golden_bundle)
    with pytest.raises(IntegrityError, match="altered"), extended(Bundle.open(golden_bundle), names=[]):
        pass
    assert bytes_of(golden_bundle) == before


def test_a_bundle_that_cannot_be_written_to_is_not_extended(golden_bundle: Path, tmp_path: Path) -> None:
    tar = Bundle.open(golden_bundle).to_tar(tmp_path / "tiny.tar")
    for bundle in (Bundle.open("starter"), Bundle.open(tar)):
        before = bytes_of(bundle.path)
        with pytest.raises(BundleError), extended(bundle, names=[]):
            pass
        assert bytes_of(bundle.path) == before


# Accuracy on the same images


@pytest.fixture
def labelled(photographs_dir: Path, tmp_path: Path) -> Path:
    root = tmp_path / "labelled"
    for name, files in (
        ("cat", ["chelsea.jpg"]),
        ("cup", ["coffee.jpg", "motorcycle.png"]),
        ("rocket", ["rocket.jpg"]),
    ):
        (root / name).mkdir(parents=True)
        for file in files:
            shutil.copy(photographs_dir / file, root / name)
    (root / "cat" / "damaged.jpg").write_bytes(b"hello")
    return root


@pytest.mark.parametrize("resize_to", [32, 40])
def test_hits_are_those_of_the_evaluation(
    golden_bundle: Path, labelled: Path, monkeypatch: pytest.MonkeyPatch, resize_to: int
) -> None:
    """Also for an encoder that crops after its resize, and with an image that cannot be decoded."""
    manifest = read_manifest(golden_bundle)
    preprocess = msgspec.structs.replace(manifest.encoder.preprocess, resize_to=resize_to)
    encoder = msgspec.structs.replace(manifest.encoder, preprocess=preprocess)
    write_manifest(golden_bundle, msgspec.structs.replace(manifest, encoder=encoder))
    bundle = Bundle.open(golden_bundle)
    files, _ = list_labelled(labelled)
    seen: list[np.ndarray] = []
    original = OrtEngine._infer

    def watched(self: OrtEngine, images: np.ndarray) -> np.ndarray:
        seen.extend(images)
        return original(self, images)

    monkeypatch.setattr(OrtEngine, "_infer", watched)
    for seed in range(4):  # a table each, so that hits differ
        table = make_table(model_id=bundle.manifest.model.id, seed=seed)
        monkeypatch.setattr(
            "edgeclip.evaluation.accuracy.zeroshot.table_for_bundle", lambda *_, table=table, **__: table
        )
        expected = evaluate_folder(bundle, labelled, templates=("{}",))
        found = LabelledImages(files, table, encoder).hits(bundle.variant_path("fp32"))
        assert (len(found), expected.failed) == (4, 1)
        assert found.mean() == expected.top1
    np.testing.assert_array_equal(seen[:4], seen[4:8])


def test_images_of_which_none_can_be_decoded_are_refused(golden_bundle: Path, labelled: Path) -> None:
    bundle = Bundle.open(golden_bundle)
    with pytest.raises(SourceError, match="none of the 1 images can be decoded"):
        LabelledImages([(labelled / "cat" / "damaged.jpg", 0)], bundle.table(), bundle.manifest.encoder)
