"""A new engine is one file and one entry in the list: it is then tried by doctor, built, chosen and proved."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeclip import Bundle, EncoderSpec
from edgeclip.devices.doctor.engines import broken, engines
from edgeclip.devices.doctor.finding import Facts, Finding
from edgeclip.devices.machine import probe
from edgeclip.devices.machine.machine import read_machine
from edgeclip.devices.machine.software import Software, try_libraries
from edgeclip.devices.machine.tree import Tree
from edgeclip.devices.machine.try_library import trials
from edgeclip.engine_list import ENGINES, EngineEntry, built_engines
from edgeclip.errors import EngineError, MissingExtraError
from edgeclip.extras import require
from edgeclip.runtime.engines import plan_cache
from edgeclip.runtime.engines.base import Engine, FloatArray, load_engine
from edgeclip.runtime.engines.build import best_engine, build_variant
from edgeclip.runtime.engines.tensorrt_options import BuildOptions
from edgeclip.runtime.proof.choose import candidates, choose
from edgeclip.runtime.proof.golden import golden_of
from edgeclip.runtime.proof.proof import prove
from edgeclip.spec import Precision


class MyEngine(Engine):
    """ONNX Runtime under another name, for fp32 alone."""

    name = "mine"
    kinds = frozenset({"fp32"})

    def _load(self) -> None:
        self.inner = load_engine("onnxruntime", self.path, self.encoder)

    def _infer(self, images: FloatArray) -> FloatArray:
        return self.inner.infer(images)

    def close(self) -> None:
        super().close()
        self.inner.close()


def compile_variant(
    engine: str, path: Path, encoder: EncoderSpec, precision: Precision, options: BuildOptions, progress: object = None
) -> tuple[Path, bool, tuple[str, ...]]:
    key = plan_cache.PlanKey(
        engine=engine, library_version="1", variant_sha256=plan_cache.graph_sha256(path), device="here"
    )
    return plan_cache.store(key, b"compiled", build_s=0.0), False, ("made by a test",)


@pytest.fixture(autouse=True)
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the engine's library is installed, in version 1.0 of its package; the engine is in the list."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "my_runtime.py").write_text("__version__ = '1.0'\n")
    install(folder, "my-runtime", "1.0")
    install(folder, "my-runtime-kernels", "7")
    monkeypatch.syspath_prepend(folder)
    entry = EngineEntry(
        "mine",
        f"{__name__}:MyEngine",
        module="my_runtime",
        packages=("my-runtime", "my-runtime-kernels"),
        builds=f"{__name__}:compile_variant",
    )
    monkeypatch.setitem(ENGINES, "mine", entry)
    monkeypatch.setenv("EDGECLIP_CACHE", str(tmp_path / "cache"))
    return folder


def install(folder: Path, package: str, version: str) -> None:
    for old in folder.glob(f"{package.replace('-', '_')}-*.dist-info"):
        (old / "METADATA").unlink()
        old.rmdir()
    info = folder / f"{package.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    probe._installed_version.cache_clear()  # a process takes versions to stay as they are


def found_by_doctor(tmp_path: Path) -> list[Finding]:
    mine = [trial for trial in trials() if trial.name == "mine"]
    software = Software("3.12", True, True, True, try_libraries(mine), {}, (), (), None)
    facts = Facts(read_machine(Tree(tmp_path)), software, None)
    return [*engines(facts), *broken(facts)]


def test_doctor_tries_its_library_and_says_how_to_mend_it(site: Path, tmp_path: Path) -> None:
    assert [finding.what for finding in found_by_doctor(tmp_path)] == ["engines load: mine 1.0"]
    (site / "my_runtime.py").write_text("raise RuntimeError('no such device')\n")
    stops, mend = found_by_doctor(tmp_path)
    assert stops.stops
    assert (mend.id, mend.why) == ("mine-broken", "RuntimeError: no such device")
    assert mend.fix == ("pip install --force-reinstall 'my-runtime'",)


def test_an_error_names_the_extra_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = EngineEntry("absent", "nowhere:Engine", module="absent_runtime", packages=("absent",), extra="absent-one")
    monkeypatch.setitem(ENGINES, "absent", absent)
    with pytest.raises(MissingExtraError, match=r"pip install 'edgeclip\[absent-one\]'"):
        require("absent_runtime", purpose="test")


def test_it_is_built_and_is_what_is_built_when_none_is_named(golden_bundle: Path) -> None:
    assert best_engine() == built_engines()[-1] == "mine"
    built = build_variant(Bundle.open(golden_bundle), "fp32", "mine")
    assert (built.path.read_bytes(), built.notes) == (b"compiled", ("made by a test",))
    with pytest.raises(EngineError, match=r"expected an engine that is built: .*, mine, got 'onnxruntime'"):
        build_variant(Bundle.open(golden_bundle), "fp32", "onnxruntime")


def test_it_is_proved_and_chosen(
    golden_bundle: Path, monkeypatch: pytest.MonkeyPatch, engine_list: dict[str, EngineEntry]
) -> None:
    bundle = Bundle.open(golden_bundle)
    assert ("fp32", "mine") in set(candidates(bundle))
    for name in set(engine_list) - {"onnxruntime", "mine"}:
        del engine_list[name]
    speed = {"onnxruntime": 10.0, "mine": 4.0}
    monkeypatch.setattr("edgeclip.runtime.proof.proof.timed", lambda engine, _: (speed[engine.name], None))
    assert choose(bundle).engine == "mine"


@pytest.mark.parametrize(("package", "again"), [("my-runtime", True), ("my-runtime-kernels", True), ("other", False)])
def test_another_version_of_any_of_its_packages_makes_its_proof_stale(
    golden_bundle: Path, site: Path, monkeypatch: pytest.MonkeyPatch, package: str, again: bool
) -> None:
    loads: list[str] = []
    load = MyEngine._load
    monkeypatch.setattr(MyEngine, "_load", lambda self: (loads.append(self.name), load(self)))
    bundle = Bundle.open(golden_bundle)
    golden = golden_of(bundle)
    assert golden is not None
    first = prove(bundle, "fp32", "mine", golden)
    assert prove(bundle, "fp32", "mine", golden) == first
    assert len(loads) == 1
    install(site, package, "9.9")
    second = prove(bundle, "fp32", "mine", golden)
    assert len(loads) == 1 + again
    assert second.machine == first.machine | ({package: "9.9"} if again else {})


def test_every_package_of_every_engine_is_in_a_machines_description(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_installed_version", {"onnxruntime-ep-nv-tensorrt-rtx": "1.2"}.get)
    assert probe.describe_machine()["onnxruntime-ep-nv-tensorrt-rtx"] == "1.2"
