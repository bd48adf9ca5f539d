"""Real small files and a real small model, made once a session."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import av
import msgspec
import numpy as np
import pytest
from _pytest.logging import LogCaptureHandler
from skimage import data as skimage_data

from edgeclip import Bundle, EncoderSpec, Manifest, ModelIdentity, ModelOrigin, PreprocessSpec, PromptTable, Variant
from edgeclip.bundle import create_bundle
from edgeclip.engine_list import ENGINES, EngineEntry
from edgeclip.manifest import read_manifest, write_manifest
from edgeclip.prompts import make_classes, unit_rows
from edgeclip.runtime.engines.base import load_engine
from edgeclip.runtime.engines.onnxruntime import OrtEngine
from edgeclip.runtime.images import write_image
from edgeclip.runtime.proof.golden import FILE as GOLDEN
from edgeclip.runtime.proof.golden import GoldenImages, decoded_inputs, golden_files
from edgeclip.spec import Precision
from tests import CORES

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"
SIZE, WIDTH = 32, 16


def shared(*parts: str) -> Path:
    """A path below ../shared/data, or skip the test."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs {path}, which is not on this machine")
    return path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with the most slow tests first: handed out last, one would keep a worker busy while the others wait."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


def debian_packages() -> dict[str, str]:
    """Package → the words by which a skipped test names what it has of it."""
    lines = Path(__file__).with_name("debian-packages.txt").read_text(encoding="utf-8").splitlines()
    split = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    return {package: words.strip() for package, words in split}


def not_checked(reasons: Sequence[str], installed: Callable[[str], bool]) -> list[str]:
    """Lines that say what skipped tests wanted: of Debian, with the one command that installs it, and else.

    Args:
        reasons: why each was skipped.
        installed: whether a Debian package is.
    """
    absent = {package: words for package, words in debian_packages().items() if not installed(package)}
    wanted = [reason for reason in reasons if any(words in reason for words in absent.values())]
    packages = [package for package, words in absent.items() if any(words in reason for reason in wanted)]
    if not reasons:
        return []
    lines = [f"{len(reasons)} skipped: what these tests claim was not checked here; the reasons stand below"]
    if packages:
        lines.append(f"{len(wanted)} of them want Debian packages: sudo apt-get install {' '.join(packages)}")
    return lines


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The end of ``make test`` names what it did not check."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = [str(report.longrepr[-1]) for report in skipped if isinstance(report.longrepr, tuple)]
    if lines := not_checked(reasons, _is_installed):
        terminalreporter.section("not checked")
        for line in lines:
            terminalreporter.line(line)


def _is_installed(package: str) -> bool:
    if shutil.which("dpkg-query") is None:
        return False
    query = ["dpkg-query", "--show", "--showformat=${db:Status-Status}", package]
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout == "installed"


@pytest.fixture
def all_cores() -> Iterator[None]:
    """Every core of the run, for a claim about several threads at once; a worker has only its share of them."""
    share = os.sched_getaffinity(0)
    os.sched_setaffinity(0, CORES)
    yield
    os.sched_setaffinity(0, share)


@pytest.fixture(autouse=True)
def _logging_is_on() -> None:
    """Libraries of an earlier test may have left logging off, and a claim about a warning would fail for that."""
    logging.disable(logging.NOTSET)
    logging.getLogger().setLevel(logging.WARNING)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, LogCaptureHandler):  # one for the whole run
            handler.setLevel(logging.NOTSET)
    logger = logging.getLogger("edgeclip")
    logger.disabled, logger.propagate = False, True
    logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_reaches_programs() -> None:
    """A shell starts what it runs in the background with SIGINT ignored, and programs under test would inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests compute and keep goes to a folder of this run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGECLIP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def photographs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five real photographs as JPEG and PNG files."""
    folder = tmp_path_factory.mktemp("photographs")
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        write_image(folder / f"{name}.jpg", getattr(skimage_data, name)())
    write_image(folder / "motorcycle.png", skimage_data.stereo_motorcycle()[0])
    return folder


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 40-frame H.264 video, 320×240 at 20 frames/s, that pans over a photograph."""
    path = tmp_path_factory.mktemp("video") / "pan.mp4"
    photograph = skimage_data.astronaut()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=20)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for index in range(40):
            image = np.ascontiguousarray(photograph[100 + index : 340 + index, 60 + index : 380 + index])
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 20)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@dataclass(frozen=True)
class ExportedFamily:
    """A model family's FP32 graph, and what it takes and returns."""

    fp32: Path
    encoder: EncoderSpec


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], ExportedFamily]]:
    """Exports a family of ``tests.families``, transformers two blocks deep, once a session; or the starter."""
    pytest.importorskip("torch")
    pytest.importorskip("open_clip")
    pytest.importorskip("transformers")
    from edgeclip.export.bundle import onnx_metadata
    from edgeclip.export.onnx import export_onnx
    from tests.families import FAMILIES, as_if_trained, shortened

    folder = tmp_path_factory.mktemp("families")
    made: dict[str, ExportedFamily] = {}

    def export(name: str) -> ExportedFamily:
        if name == "starter":
            bundle = Bundle.open("starter")
            return ExportedFamily(bundle.variant_path("fp32"), bundle.manifest.encoder)
        if name not in made:
            own = folder / name.replace("/", "-")
            model = as_if_trained(shortened(FAMILIES[name](own / "model")))
            metadata = onnx_metadata(model.name, model.identity.id, "fp32")
            fp32, *_ = export_onnx(model.exportable(), model.encoder, own / "fp32.onnx", metadata=metadata)
            made[name] = ExportedFamily(fp32, model.encoder)
            del model
            gc.collect()  # torch modules of this size hold each other in cycles
        return made[name]

    yield export
    shutil.rmtree(folder)


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """The command line: arguments in, exit code, stdout and stderr out."""
    from edgeclip.cli import main

    before = signal.getsignal(signal.SIGTERM)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["edgeclip", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code
        assert code is None or isinstance(code, int)
        return code or 0, *capsys.readouterr()

    yield run
    signal.signal(signal.SIGTERM, before)


def make_table(name: str = "things", *, model_id: str, width: int = WIDTH, seed: int = 0) -> PromptTable:
    """A table of three classes with random unit rows."""
    rows = np.random.default_rng(seed).standard_normal((3, width)).astype(np.float32)
    return PromptTable(
        name, make_classes(["cat", "rocket", "cup | mug"]), unit_rows(rows), ("a photo of a {}.",), model_id
    )


def identity(seed: int = 0) -> ModelIdentity:
    """The identity of the tiny model."""
    origin = ModelOrigin(loader="open_clip", name="ViT-B-32", seed=seed)
    return ModelIdentity(name="tiny", origin=origin, image_sha256=f"{seed:x}" * 64, text_sha256="b" * 64)


@pytest.fixture(scope="session")
def _tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((8, 3, 4, 4)).astype(np.float32)
    projection = rng.standard_normal((8, WIDTH)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "kernel"], ["maps"], strides=[4, 4]),
            helper.make_node("Relu", ["maps"], ["active"]),
            helper.make_node("ReduceMean", ["active", "axes"], ["pooled"], keepdims=0),
            helper.make_node("MatMul", ["pooled", "projection"], ["embedding"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", WIDTH])],
        [
            numpy_helper.from_array(kernel, "kernel"),
            numpy_helper.from_array(projection, "projection"),
            numpy_helper.from_array(np.array([2, 3]), "axes"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    preprocess = PreprocessSpec(height=SIZE, width=SIZE, resize_to=SIZE, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    path = tmp_path_factory.mktemp("bundles") / "tiny.edgeclip"
    with create_bundle(path) as folder:
        onnx.save(model, str(folder / "image_encoder" / "fp32.onnx"))
        write_manifest(
            folder,
            Manifest(
                model=identity(),
                encoder=EncoderSpec(preprocess=preprocess, embedding_dim=WIDTH, logit_scale=50.0),
                variants=(Variant(name="fp32", file="image_encoder/fp32.onnx", precision="fp32", opset=18),),
            ),
            scan=True,
        )
    bundle = Bundle.open(path)
    bundle.add_table(make_table(model_id=bundle.manifest.model.id))
    add_golden(path, [getattr(skimage_data, name)() for name in ("astronaut", "chelsea", "coffee", "rocket")])
    return path


def add_golden(bundle: Path, images: Sequence[np.ndarray]) -> None:
    """Give a bundle golden images, without the workstation's libraries."""
    opened = Bundle.open(bundle)
    encoder = opened.manifest.encoder
    files = golden_files(images, encoder.preprocess)
    with load_engine("onnxruntime", opened.variant_path("fp32"), encoder) as engine:
        embeddings = engine.infer(decoded_inputs(files, encoder.preprocess))
    names, digests = (tuple(f"{kind}{n}" for n in range(len(files))) for kind in ("photograph ", "0" * 63))
    golden = GoldenImages(names, files, embeddings, opened.table().embeddings, digests, "stand-ins")
    golden.save(bundle / GOLDEN)
    write_manifest(bundle, read_manifest(bundle), scan=True)


def without_golden(bundle: Path) -> Bundle:
    """The bundle with its golden images taken away."""
    (bundle / GOLDEN).unlink()
    write_manifest(bundle, read_manifest(bundle), scan=True)
    return Bundle.open(bundle)


@pytest.fixture
def tiny_bundle(_tiny_bundle: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy, free to be damaged, of a real bundle around a real (tiny, random) encoder: one table, 4 golden images."""
    copy = tmp_path / "tiny.edgeclip"
    shutil.copytree(_tiny_bundle, copy)
    return copy


def write_two_colours(folder: Path, colours: dict[str, tuple[int, int, int]]) -> None:
    """Six images of each class, of about its colour, which a random encoder tells apart."""
    chooser = np.random.default_rng(0)
    for name, colour in colours.items():
        (folder / name).mkdir(parents=True)
        for index in range(6):
            image = np.clip(np.array(colour) + chooser.integers(-20, 20, (40, 40, 3)), 0, 255).astype(np.uint8)
            write_image(folder / name / f"{index}.png", image)


def add_variant(
    bundle: Path, name: str, edit: Callable[[Any], None], *, precision: Precision = "fp16", start: str = "fp32"
) -> Bundle:
    """Put a variant into a bundle: the ONNX graph of another one, edited."""
    import onnx

    graph = onnx.load(str(bundle / "image_encoder" / f"{start}.onnx"))
    edit(graph.graph)
    onnx.save(graph, str(bundle / "image_encoder" / f"{name}.onnx"))
    manifest = read_manifest(bundle)
    kept = tuple(variant for variant in manifest.variants if variant.name != name)
    added = Variant(name=name, file=f"image_encoder/{name}.onnx", precision=precision, opset=18)
    write_manifest(bundle, msgspec.structs.replace(manifest, variants=(*kept, added)), scan=True)
    return Bundle.open(bundle)


def edit_weight(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Any], None]:
    """An edit of a graph: one weight replaced by what ``change`` makes of it."""
    from onnx import numpy_helper

    def edit(graph: Any) -> None:
        (weight,) = (item for item in graph.initializer if item.name == name)
        weight.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(weight).copy()), name))

    return edit


@pytest.fixture(scope="session")
def _golden_bundle(_tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")
    from edgeclip.export.photographs import photographs
    from edgeclip.export.proofs import make_golden

    path = tmp_path_factory.mktemp("golden") / "tiny.edgeclip"
    shutil.copytree(_tiny_bundle, path)
    bundle = Bundle.open(path)
    golden = make_golden(bundle.variant_path("fp32"), bundle.manifest.encoder, photographs(), bundle.table().embeddings)
    golden.save(path / GOLDEN)
    add_variant(path, "fp16", edit_weight("projection", lambda weight: weight.astype(np.float16).astype(np.float32)))
    return path


@pytest.fixture
def golden_bundle(_golden_bundle: Path, tmp_path: Path) -> Path:
    """``tiny_bundle`` with golden images of real photographs, and a variant ``fp16`` that agrees with fp32."""
    copy = tmp_path / "golden" / "tiny.edgeclip"
    shutil.copytree(_golden_bundle, copy)
    return copy


@pytest.fixture
def engine_list() -> Iterator[dict[str, EngineEntry]]:
    """The engines, to be changed by a test; afterwards as they were, in their order, which counts."""
    kept = dict(ENGINES)
    yield ENGINES
    ENGINES.clear()
    ENGINES.update(kept)


@pytest.fixture
def fp16_bundle(tiny_bundle: Path) -> Path:
    """``tiny_bundle`` with a variant ``fp16`` that agrees with fp32: what proofs are tried on in little time."""
    add_variant(tiny_bundle, "fp16", edit_weight("projection", lambda weight: weight.astype(np.float16).astype("f4")))
    return tiny_bundle


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, and timings of engines too short to be good."""
    monkeypatch.setenv("EDGECLIP_CACHE", str(tmp_path / "cache"))
    for name in ("_WARM_UP_S", "_MEASURE_S"):
        monkeypatch.setattr(f"edgeclip.runtime.proof.proof.{name}", 0.01)
    return tmp_path / "cache"


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
