"""A bundle is proved again where it works, on photographs of the place; and a proof belongs to what ran."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import msgspec
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from skimage import data as skimage_data

import edgeclip
from edgeclip import Bundle
from edgeclip.devices.machine import probe
from edgeclip.devices.machine.probe import describe_machine
from edgeclip.engine_list import ENGINES, EngineEntry
from edgeclip.errors import EngineError, InputError, ParityError, SourceError, VariantError
from edgeclip.files import cache_dir
from edgeclip.manifest import read_manifest, write_manifest
from edgeclip.runtime.encoder import ImageEncoder
from edgeclip.runtime.engines.base import Engine, FloatArray, load_engine, module_stamp
from edgeclip.runtime.engines.onnxruntime import OrtEngine, OrtTensorRtRtxEngine
from edgeclip.runtime.images import read_image, write_image
from edgeclip.runtime.proof.basis import FEWEST, CalibratedOn, basis_of
from edgeclip.runtime.proof.choose import choose, lacking
from edgeclip.runtime.proof.distinct import pixels_digest
from edgeclip.runtime.proof.golden import GoldenImages, golden_of
from edgeclip.runtime.proof.in_the_loop import prove_in_the_loop
from edgeclip.runtime.proof.proof import Proof, prove
from edgeclip.runtime.proof.site import choose_images, golden_here
from edgeclip.runtime.proof.what_runs import what_runs
from edgeclip.spec import PreprocessSpec
from tests.conftest import add_variant, edit_weight, without_golden

SPEC = PreprocessSpec(height=32, width=32, resize_to=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


class OwnEngine(Engine):
    """ONNX Runtime behind a library of another name, on a device that is not the CPU."""

    name = "own"
    kinds = frozenset({"fp32"})
    loads: ClassVar[list[str]] = []

    def _load(self) -> None:
        self.loads.append(self.path.stem)
        self.inner = load_engine("onnxruntime", self.path, self.encoder)

    def _infer(self, images: FloatArray) -> FloatArray:
        return self.inner.infer(images)

    def close(self) -> None:
        super().close()
        self.inner.close()


class OwnCpuEngine(OwnEngine):
    """The same on the CPU."""

    name = "own-cpu"
    on_cpu = True


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGECLIP_CACHE", str(tmp_path / "cache"))
    for name in ("_WARM_UP_S", "_MEASURE_S"):
        monkeypatch.setattr(f"edgeclip.runtime.proof.proof.{name}", 0.01)


@pytest.fixture(autouse=True)
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine_list: dict[str, EngineEntry]) -> Path:
    """Where the own engines' library is installed; they and ONNX Runtime are the only engines."""
    folder = tmp_path / "packages"
    folder.mkdir()
    install(folder, "own-runtime", "1.0")
    monkeypatch.syspath_prepend(folder)
    for name in set(engine_list) - {"onnxruntime"}:
        del engine_list[name]
    for engine in (OwnEngine, OwnCpuEngine):
        where = f"{__name__}:{engine.__name__}"
        entry = EngineEntry(engine.name, where, module="own_runtime", packages=("own-runtime", "own-kernels"))
        engine_list[engine.name] = entry
    OwnEngine.loads.clear()
    return folder


def install(folder: Path, package: str, version: str) -> None:
    for old in folder.glob(f"{package.replace('-', '_')}-*.dist-info"):
        shutil.rmtree(old)
    info = folder / f"{package.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    probe._installed_version.cache_clear()  # a process takes versions to stay as they are


def own_golden(bundle: Bundle) -> GoldenImages:
    golden = golden_of(bundle)
    assert golden is not None
    return golden


# What a proof belongs to


def another_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files as NVIDIA's driver writes them."""
    place = tmp_path / "tree" / "proc/driver/nvidia"
    (place / "gpus/0000:01:00.0").mkdir(parents=True)
    (place / "gpus/0000:01:00.0/information").write_text("Model: \t\t NVIDIA H100 80GB HBM3\n")
    text = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build\n"
    (place / "version").write_text(text)
    here, there = describe_machine(), describe_machine(tmp_path / "tree")
    shown = here | {key: there[key] for key in ("gpu", "nvidia_driver")}
    monkeypatch.setattr("edgeclip.runtime.proof.what_runs.describe_machine", lambda: shown)


def another_kernel(_: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = describe_machine() | {"kernel": "9.9"}
    monkeypatch.setattr("edgeclip.runtime.proof.what_runs.describe_machine", lambda: shown)


def installed(package: str, version: str) -> Callable[[Path, pytest.MonkeyPatch], None]:
    return lambda tmp_path, _: install(tmp_path / "packages", package, version)


def variable(name: str) -> Callable[[Path, pytest.MonkeyPatch], None]:
    return lambda _, monkeypatch: monkeypatch.setenv(name, "1")


CHANGES = {
    "nothing": (lambda *_: None, []),
    "its package": (installed("own-runtime", "2.0"), ["own", "own-cpu"]),
    "another of its packages": (installed("own-kernels", "7"), ["own", "own-cpu"]),
    "a package of another engine": (installed("onnxruntime-gpu", "9"), ["onnxruntime"]),
    "a package of no engine": (installed("torch", "9"), []),
    "an option of the environment": (variable("OMP_NUM_THREADS"), ["own", "own-cpu", "onnxruntime"]),
    "a variable that no library reads": (variable("EDITOR"), []),
    "the driver": (another_driver, ["own"]),
    "the kernel": (another_kernel, ["own", "own-cpu", "onnxruntime"]),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_proof_is_stale_when_what_ran_has_changed_and_only_then(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    change, stale = CHANGES[what]
    bundle, engines = Bundle.open(tiny_bundle), ("own", "own-cpu", "onnxruntime")
    before = {engine: what_runs(bundle, "fp32", engine, threads=None).digest() for engine in engines}
    change(tmp_path, monkeypatch)
    after = {engine: what_runs(bundle, "fp32", engine, threads=None).digest() for engine in engines}
    assert [engine for engine in engines if before[engine] != after[engine]] == stale


@pytest.mark.parametrize("again", [True, False])
def test_both_proofs_are_taken_anew_with_another_version_and_kept_with_the_same(
    tiny_bundle: Path, packages: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    bundle, encoded = Bundle.open(tiny_bundle), list[int]()
    infer = OwnEngine._infer

    def counted(self: OwnEngine, images: FloatArray) -> FloatArray:
        encoded.append(len(images))
        return infer(self, images)

    monkeypatch.setattr(OwnEngine, "_infer", counted)

    def proved() -> tuple[Proof, int]:
        proof = prove(bundle, "fp32", "own", own_golden(bundle))
        encoded.clear()
        with ImageEncoder(bundle, engine="own") as encoder:
            prove_in_the_loop(encoder, golden=own_golden(bundle), rows=8, parallel=1)
        return proof, sum(encoded)

    first, all_images = proved()
    install(packages, "own-runtime" if again else "unrelated", "2.0")
    second, images = proved()
    assert (first.versions["own-runtime"], all_images) == ("1.0", 4)
    assert (second.versions["own-runtime"], images) == (("2.0", 4) if again else ("1.0", 2))


def test_a_proof_that_was_altered_is_taken_anew(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    taken = prove(bundle, "fp32", "own", own_golden(bundle))
    (kept,) = cache_dir("proofs").iterdir()
    altered = re.sub(rb'"latency_ms":[\d.e-]+', b'"latency_ms":0.001', kept.read_bytes())
    assert altered != kept.read_bytes()
    kept.write_bytes(altered)  # as well formed as it was
    assert prove(bundle, "fp32", "own", own_golden(bundle)).latency_ms != 0.001
    assert len(OwnEngine.loads) == 2
    assert taken.parity == prove(bundle, "fp32", "own", own_golden(bundle)).parity


def test_a_latency_that_was_taken_beside_other_work_says_so(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    taken = prove(bundle, "fp32", "own", own_golden(bundle))
    assert taken.conditions is not None

    def loaded(whole: float, own: float, seconds: float = 1.0) -> Proof:
        found = {"cpu": whole, "process": own}
        readings = tuple(
            msgspec.structs.replace(reading, mean=found[reading.part]) if reading.kind == "load" else reading
            for reading in taken.conditions.readings
        )
        conditions = msgspec.structs.replace(taken.conditions, readings=readings, seconds=seconds)
        return msgspec.structs.replace(taken, conditions=conditions)

    assert not loaded(1.0, 0.95).slowed_by
    assert not loaded(0.9, 0.2, seconds=0.02).slowed_by
    assert not msgspec.structs.replace(taken, conditions=None).slowed_by
    assert loaded(0.9, 0.2).slowed_by == "timed while other processes took 70% of the CPU"
    basis = basis_of(bundle, "fp32", own_golden(bundle))
    assert [said for said in lacking(bundle, loaded(0.9, 0.2), basis) if "timed" in said] == [
        f"timed while other processes took 70% of the CPU: edgeclip prove {bundle.path} times it again"
    ]


def test_of_a_choice_that_is_kept_only_the_engine_that_runs_is_asked_what_it_is(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, asked, build = Bundle.open(tiny_bundle), list[str](), ["1"]

    def versions(cls: type[OwnEngine]) -> dict[str, str]:
        asked.append(cls.name)
        if not build:
            raise EngineError("the library does not load")
        return {"own-runtime": "1.0", "own as loaded": build[-1]}

    monkeypatch.setattr(OwnEngine, "versions", classmethod(versions))
    took = {"own": 1.0, "own-cpu": 5.0, "onnxruntime": 9.0}
    monkeypatch.setattr("edgeclip.runtime.proof.proof.timed", lambda engine, _: (took[engine.name], None))
    assert (choose(bundle).engine, set(asked), len(OwnEngine.loads)) == ("own", {"own", "own-cpu"}, 2)
    asked.clear()
    again = choose(bundle)
    assert (again.engine, set(asked), len(OwnEngine.loads)) == ("own", {"own"}, 2)
    assert [proof.engine for proof in again.proofs] == ["own", "own-cpu", "onnxruntime"]
    build.append("2")  # under the package, which is the same
    changed = choose(bundle)
    assert [proof.versions.get("own as loaded") for proof in changed.proofs] == ["2", "2", None]
    assert len(OwnEngine.loads) == 4
    build.clear()
    left = choose(bundle)
    assert (left.engine, [name for _, name, _ in left.refused]) == ("onnxruntime", ["own", "own-cpu"])


def test_threads_and_other_golden_images_have_proofs_of_their_own(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    golden = own_golden(bundle)
    for _ in range(2):
        for threads in (1, 2):
            prove(bundle, "fp32", "own", golden, threads=threads)
    assert len(OwnEngine.loads) == 2
    fewer = GoldenImages(golden.names[:3], golden.files[:3], golden.embeddings[:3], golden.classes, golden.digests[:3])
    assert prove(bundle, "fp32", "own", fewer, threads=1).parity.images == 3


def test_a_library_without_a_package_is_told_apart_by_its_file(packages: Path) -> None:
    for entry in (ENGINES["own"], ENGINES["own-cpu"]):
        for old in packages.glob("*.dist-info"):
            shutil.rmtree(old)
        probe._installed_version.cache_clear()
        module = packages / "own_runtime.py"
        module.write_text("x = 1\n")
        first = load_versions(entry)
        os.utime(module, ns=(1, 1))
        assert first != load_versions(entry)
        assert list(first) == ["own_runtime"]
    assert module_stamp("no_such_module") == module_stamp("no.such.module") == {}


def load_versions(entry: EngineEntry) -> dict[str, str]:
    return {"own": OwnEngine, "own-cpu": OwnCpuEngine}[entry.name].versions()


def test_engines_name_the_libraries_that_are_loaded_and_their_plug_ins(
    packages: Path, monkeypatch: pytest.MonkeyPatch, engine_list: dict[str, EngineEntry]
) -> None:
    import onnxruntime

    assert OrtEngine.versions()["onnxruntime as loaded"] == onnxruntime.__version__
    monkeypatch.setattr(onnxruntime, "__version__", "9.9")
    assert OrtEngine.versions()["onnxruntime as loaded"] == "9.9"
    where = "edgeclip.runtime.engines.onnxruntime:OrtTensorRtRtxEngine"
    name, plugin = OrtTensorRtRtxEngine.name, "onnxruntime-ep-nv-tensorrt-rtx"
    engine_list[name] = EngineEntry(name, where, module="onnxruntime", packages=(plugin, "onnxruntime"))
    install(packages, plugin, "1.2")
    assert OrtTensorRtRtxEngine.versions()[plugin] == "1.2"


def test_the_next_start_finds_the_proofs_of_the_one_before(tiny_bundle: Path) -> None:
    """Libraries set variables of the environment as they are loaded, and more of them are by the end of a start."""
    program = (
        "import sys; from edgeclip.runtime.proof import proof; measured = []; timed = proof.timed; "
        "proof.timed = lambda *given: measured.append(1) or timed(*given); "
        "from edgeclip.runtime.proof.choose import choose; from edgeclip import Bundle; "
        "choose(Bundle.open(sys.argv[1])); print(len(measured))"
    )
    command = [sys.executable, "-c", program, str(tiny_bundle)]
    first, second = (int(subprocess.check_output(command, text=True)) for _ in range(2))
    assert first >= 1
    assert second == 0


def test_openvino_names_its_build_and_its_plug_ins() -> None:
    openvino = pytest.importorskip("openvino")
    from edgeclip.runtime.engines.openvino import OpenVinoEngine

    ENGINES["openvino"] = EngineEntry("openvino", "x:Y", module="openvino", packages=("openvino",))
    versions = OpenVinoEngine.versions()
    assert versions["openvino as loaded"] == openvino.get_version()
    assert versions["CPU plug-in"]


def test_what_is_not_a_number_is_not_kept_as_what_was_not_taken(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JSON has no NaN: the second start would find no figure where the first found a wrong one."""
    compare = GoldenImages.compare

    def wrong(self: GoldenImages, engine: Engine, *, dynamic_batch: bool = True) -> object:
        report = compare(self, engine, dynamic_batch=dynamic_batch)
        return msgspec.structs.replace(report, p95_margin_loss=float("nan"), agreement=float("nan"))

    monkeypatch.setattr(GoldenImages, "compare", wrong)
    bundle = Bundle.open(tiny_bundle)
    for _ in range(2):
        with pytest.raises(ParityError, match=r"top-1 agreement .*got nan.*margin loss .*got nan"):
            choose(bundle)


# Photographs of a site


@pytest.fixture(scope="session")
def _views(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As many different pictures as a proof takes: parts of photographs."""
    folder = tmp_path_factory.mktemp("views")
    names = ("astronaut", "chelsea", "coffee", "rocket", "retina", "immunohistochemistry", "hubble_deep_field")
    pictures = {name: getattr(skimage_data, name)() for name in names} | {"left": skimage_data.stereo_motorcycle()[0]}
    for name, image in pictures.items():
        height, width = image.shape[0] // 2, image.shape[1] // 2
        for number, (y, x) in enumerate(((0, 0), (0, width), (height, 0), (height, width))):
            write_image(folder / f"{name}-{number}.png", image[y : y + height, x : x + width])
    return folder


@pytest.fixture
def site(_views: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(_views, tmp_path / "site"))


def test_of_what_shows_the_same_one_is_taken_and_what_proves_nothing_is_left_out(site: Path) -> None:
    first, *others = sorted(site.iterdir())
    for other in others[2:]:
        other.unlink()
    pixels = read_image(first)
    (site / "deeper").mkdir()
    (site / ".hidden").mkdir()
    shutil.copy(first, site / ".hidden")
    write_image(site / "deeper" / "copy.bmp", pixels)  # in another container
    write_image(site / "next.jpg", pixels)  # the next frame of a still scene: hardly anything has changed
    write_image(site / "black.png", np.zeros((40, 60, 3), np.uint8))
    write_image(site / "lens.png", np.random.default_rng(0).integers(0, 4, (400, 600, 3), np.uint8))
    (site / "torn.jpg").write_bytes((site / "next.jpg").read_bytes()[:-900])
    (site / "empty.png").write_bytes(b"")
    calibrated = pixels_digest(read_image(others[1]))
    found = choose_images(site, SPEC, count=64, calibrated={calibrated})
    assert found.found == 9
    assert sum(found.left_out.values()) == 7
    assert found.left_out["of one colour"] == 2
    assert found.left_out["cannot be decoded"] == 2
    assert found.left_out["calibrated on"] == 1
    assert found.left_out["the same as another"] + found.left_out["nearly the same as another"] == 2
    assert {name.partition(":")[0] for name in found.undecodable} == {"torn.jpg", "empty.png"}
    assert len(set(found.digests)) == len(found.files) == 2
    assert str(found).startswith("2 of 9 images used, ")


def test_no_more_images_are_looked_at_than_are_enough_and_always_the_same(site: Path) -> None:
    found = choose_images(site, SPEC, count=5)
    assert (len(found.names), found.found) == (5, 32)
    assert found == choose_images(site, SPEC, count=5)
    assert str(found) == "5 of 32 images used, 27 not needed"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: folder.rmdir(), "got no such folder"),
        (lambda folder: None, "got none"),
        (lambda folder: (folder / "note.txt").write_text("x"), "got none"),
        (
            lambda folder: (folder / "a.jpg").write_bytes(b"x"),
            r"1 images, none of which .*: 1 cannot be decoded \(a.jpg",
        ),
        (lambda folder: write_image(folder / "a.png", np.zeros((9, 9, 3), np.uint8)), "1 of one colour"),
    ],
)
def test_a_folder_that_can_prove_nothing_is_refused(
    tiny_bundle: Path, tmp_path: Path, make: Callable[[Path], object], said: str
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    make(folder)
    with pytest.raises(SourceError, match=said):
        edgeclip.prove(tiny_bundle, folder)
    assert golden_here(Bundle.open(tiny_bundle)).origin == "stand-ins"


def test_a_site_proof_holds_every_variant_and_engine_and_is_what_counts_from_then_on(
    tiny_bundle: Path, site: Path
) -> None:
    add_variant(tiny_bundle, "shuffled", edit_weight("projection", lambda weight: weight[::-1]))
    bundle = Bundle.open(tiny_bundle)
    assert "provisional: on 4 stand-in photographs: edgeclip prove " in choose(bundle).why
    renewal = edgeclip.prove(bundle, site)
    assert {(held.variant, held.engine) for held in renewal.held} == {
        (variant, engine) for variant, engine in [("fp32", "onnxruntime"), ("fp32", "own"), ("fp32", "own-cpu")]
    }
    assert all(held.passed and not held.basis.provisional for held in renewal.held)
    assert str(renewal.held[0].basis) == "on 32 photographs of this site"
    assert (renewal.told, renewal.failed) == ((), ())
    choice = choose(bundle)
    assert choice.basis == renewal.held[0].basis
    assert "provisional" not in choice.why
    assert choice.proofs[0].parity.images == 32
    golden = golden_here(bundle)
    with ImageEncoder(bundle) as encoder:
        expected = np.concatenate([encoder.engine.infer(image[None]) for image in golden.inputs(SPEC)])
    np.testing.assert_array_equal(golden.embeddings, expected)
    np.testing.assert_array_equal(golden.classes, bundle.table().embeddings)
    wrong = edgeclip.prove(bundle, variant="shuffled", engine="onnxruntime")  # on the images given before
    assert wrong.held[0].proof.parity.images == 32
    assert wrong.failed[0].startswith("shuffled on onnxruntime disagrees with fp32: expected a cosine of at least")
    edgeclip.prove(bundle, stored=True)
    assert choose(bundle).basis.origin == "stand-ins"


def test_a_damaged_set_of_a_site_is_told_and_the_bundles_own_counts(
    tiny_bundle: Path, site: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = Bundle.open(tiny_bundle)
    edgeclip.prove(bundle, site, engine="onnxruntime")
    (kept,) = (tmp_path / "cache" / "site").iterdir()
    kept.write_bytes(kept.read_bytes()[:-100])
    assert choose(bundle).basis.origin == "stand-ins"
    assert "the images of this site are lost" in caplog.text


def test_a_site_set_is_of_one_fp32_graph(tiny_bundle: Path, site: Path, tmp_path: Path) -> None:
    edgeclip.prove(tiny_bundle, site, engine="onnxruntime")
    other = Path(shutil.copytree(tiny_bundle, tmp_path / "other.edgeclip"))
    add_variant(other, "fp32", edit_weight("projection", lambda weight: weight * 2), precision="fp32")
    assert golden_here(Bundle.open(other)).origin == "stand-ins"


def test_few_images_are_provisional_and_told(tiny_bundle: Path, site: Path) -> None:
    for path in sorted(site.iterdir())[FEWEST - 1 :]:
        path.unlink()
    renewal = edgeclip.prove(tiny_bundle, site, engine="onnxruntime")
    assert renewal.held[0].basis.provisional
    (told,) = renewal.told
    assert told.startswith(f"expected at least {FEWEST} different photographs for a proof, got {FEWEST - 1}")
    asked = edgeclip.prove(tiny_bundle, site, engine="onnxruntime", count=3)
    assert asked.held[0].basis.photographs == 3
    assert asked.held[0].basis.provisional


def test_one_image_and_no_table_leave_limits_that_are_named_and_not_passed(tiny_bundle: Path, site: Path) -> None:
    manifest = read_manifest(tiny_bundle)
    write_manifest(tiny_bundle, msgspec.structs.replace(manifest, tables=()))
    bundle = without_golden(tiny_bundle)
    (held,) = edgeclip.prove(bundle, site, engine="onnxruntime", count=1).held
    status = {check.figure: check.status for check in held.proof.checks}
    assert status["cosine"] == "checked"
    assert status["mean-centred cosine"] == status["top-1 agreement"] == "could not be checked"
    why = choose(bundle, engine="onnxruntime").why
    assert "could not be checked: mean-centred cosine" in why
    assert "top-1 agreement and " in why
    assert "margin loss" in why


def test_fp32_that_is_not_what_it_was_is_no_reference(tiny_bundle: Path, site: Path) -> None:
    add_variant(tiny_bundle, "fp32", edit_weight("projection", lambda weight: weight[::-1]), precision="fp32")
    with pytest.raises(ParityError, match="fp32 on onnxruntime cannot be the reference here: expected a cosine"):
        edgeclip.prove(tiny_bundle, site)
    assert golden_here(Bundle.open(tiny_bundle)).origin == "stand-ins"


def test_where_fp32_does_not_run_the_way_out_is_told(
    tiny_bundle: Path, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: OrtEngine) -> None:
        raise EngineError("no memory")

    monkeypatch.setattr(OrtEngine, "_load", broken)
    with pytest.raises(EngineError, match="no memory; where FP32 cannot run, prove on the `stored` embeddings"):
        edgeclip.prove(tiny_bundle, site)


def test_without_fp32_the_stored_embeddings_are_what_counts_and_that_is_told(tiny_bundle: Path, site: Path) -> None:
    add_variant(tiny_bundle, "alone", lambda graph: None)
    manifest = read_manifest(tiny_bundle)
    alone = tuple(variant for variant in manifest.variants if variant.name == "alone")
    (tiny_bundle / "image_encoder" / "fp32.onnx").unlink()
    write_manifest(tiny_bundle, msgspec.structs.replace(manifest, variants=alone), scan=True)
    renewal = edgeclip.prove(tiny_bundle, site, engine="onnxruntime", variant="alone")
    assert renewal.images is None
    assert renewal.told[0].startswith("the images could not be used: the bundle has no fp32 to encode them")
    assert (renewal.held[0].basis.origin, renewal.failed) == ("stand-ins", ())
    with pytest.raises(ParityError, match="give photographs of the site as `images`"):
        edgeclip.prove(without_golden(tiny_bundle), engine="onnxruntime", variant="alone")


def test_a_bundle_without_golden_images_is_proved_on_those_of_the_site(tiny_bundle: Path, site: Path) -> None:
    bundle = without_golden(tiny_bundle)
    edgeclip.prove(bundle, site, engine="onnxruntime")
    with edgeclip.open(bundle, engine="onnxruntime") as labeller:
        assert str(labeller.choice.basis) == "on 32 photographs of this site"
        assert len(list(labeller.stream(site))) == 32


@pytest.mark.parametrize(
    ("asked", "kind", "said"),
    [
        ({"variant": "int4"}, VariantError, "no variant 'int4'"),
        ({"engine": ["onnxruntime", "abacus"]}, EngineError, "expected an engine out of"),
        ({"count": 0}, InputError, "expected count of at least 1"),
        ({"threads": 0}, InputError, "expected threads of at least 1"),
        ({"stored": True}, InputError, "got both"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_before_an_image_is_read(
    tiny_bundle: Path, tmp_path: Path, asked: dict[str, object], kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=said):
        edgeclip.prove(tiny_bundle, tmp_path / "absent", **asked)


def test_what_was_asked_for_and_did_not_run_is_a_failure(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: OwnEngine) -> None:
        raise EngineError("no such device")

    monkeypatch.setattr(OwnCpuEngine, "_load", broken)
    assert edgeclip.prove(tiny_bundle).failed == ()  # of all that are here, others are proved
    assert edgeclip.prove(tiny_bundle, engine=["own-cpu", "own"]).failed == ("own-cpu could not run: no such device",)


def test_the_command_is_not_named_where_it_would_mend_nothing(tiny_bundle: Path, site: Path) -> None:
    bundle = add_variant(tiny_bundle, "old", lambda graph: None)  # as made before its calibration images were noted
    assert choose(bundle, variant="old", engine="onnxruntime").why.partition("; timed")[0].endswith(" --images FOLDER")
    edgeclip.prove(bundle, site, variant="old", engine="onnxruntime")
    why = choose(bundle, variant="old", engine="onnxruntime").why
    assert "not known whether calibrated on: export the variant again, which notes it" in why


def test_images_that_a_variant_was_calibrated_on_are_no_proof_of_it(tiny_bundle: Path, site: Path) -> None:
    some = sorted(site.iterdir())[:5]
    digests = tuple(pixels_digest(read_image(path)) for path in some)
    add_variant(tiny_bundle, "int8", lambda graph: None, precision="int8")
    known = CalibratedOn(origin="images", photographs=5, digests=digests)
    report = tiny_bundle / "reports" / "parity-int8.json"
    report.parent.mkdir(exist_ok=True)
    report.write_bytes(msgspec.json.encode({"made": {"calibration": known}}))
    write_manifest(tiny_bundle, read_manifest(tiny_bundle), scan=True)
    renewal = edgeclip.prove(tiny_bundle, site, variant="int8", engine="onnxruntime")
    assert renewal.images.left_out == {"calibrated on": 5}
    bundle = Bundle.open(tiny_bundle)
    assert str(basis_of(bundle, "int8", golden_here(bundle))) == "on 27 photographs of this site"


# A set that lies in the cache ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["embeddings", "jpeg", "classes"])
def test_a_set_of_a_site_that_was_altered_does_not_count(
    tiny_bundle: Path, site: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    edgeclip.prove(tiny_bundle, site, engine="onnxruntime")
    (kept,) = (cache_dir("site")).glob("*.safetensors")
    with safe_open(kept, "np") as stored:
        tensors, about = {name: stored.get_tensor(name).copy() for name in stored.keys()}, stored.metadata()  # noqa: SIM118
    tensors[what].reshape(-1)[-1] += 1
    save_file(tensors, kept, about)
    assert golden_here(Bundle.open(tiny_bundle)).origin == "stand-ins"
    assert "the images of this site are lost" in caplog.text


def test_a_table_that_came_later_is_decided_on(tiny_bundle: Path, site: Path) -> None:
    manifest = read_manifest(tiny_bundle)
    write_manifest(tiny_bundle, msgspec.structs.replace(manifest, tables=()))
    edgeclip.prove(without_golden(tiny_bundle), site, engine="onnxruntime")
    assert len(golden_here(Bundle.open(tiny_bundle)).classes) == 0
    write_manifest(tiny_bundle, manifest, scan=True)
    assert len(golden_here(Bundle.open(tiny_bundle)).classes) == 3


def test_where_nothing_runs_the_set_before_stays(tiny_bundle: Path, site: Path) -> None:
    edgeclip.prove(tiny_bundle, site, engine="onnxruntime")
    before = len(golden_here(Bundle.open(tiny_bundle)).files)
    add_variant(tiny_bundle, "spoilt", lambda graph: setattr(graph.node[0], "op_type", "Nonsense"))
    assert edgeclip.prove(tiny_bundle, site, engine="onnxruntime", variant="spoilt", count=1).failed
    assert len(golden_here(Bundle.open(tiny_bundle)).files) == before > 1


def test_a_cache_that_cannot_keep_a_site_is_refused(
    tiny_bundle: Path, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("EDGECLIP_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(InputError, match="expected a cache that can be written to, to keep the site's images in"):
        edgeclip.prove(tiny_bundle, site, engine="onnxruntime")
