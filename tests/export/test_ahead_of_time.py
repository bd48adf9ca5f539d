"""NVIDIA's own parser takes every variant of every family, and its builder makes plans for GPUs that are not here."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgeclip.prompts import FloatArray
from edgeclip.runtime.engines.tensorrt_build import build
from edgeclip.runtime.engines.tensorrt_options import BuildOptions
from edgeclip.spec import EncoderSpec, Precision
from tests.conftest import ExportedFamily

pytest.importorskip("torch")
pytest.importorskip("nncf")
pytest.importorskip("tensorrt_rtx")
pytest.importorskip("cuda.bindings.runtime")

from edgeclip.export.half.precision import convert_precision
from edgeclip.export.int8.quantization import DEFAULT_RECIPE, quantize
from edgeclip.export.lint.lint import lint
from edgeclip.export.photographs import photographs
from edgeclip.export.proofs import preprocess

pytestmark = pytest.mark.slow

CAPABILITIES = ("8.0", "8.6", "8.9", "12.0")  # A100; RTX 30; L4 and RTX 40; RTX 50
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8", "bf16")
KERNELS_BYTES = 20 * 2**20  # 15 MiB were seen, for MobileCLIP2-S0 and INT8
FAMILIES = ("ViT-B-32", "ViT-B-16-SigLIP", "MobileCLIP2-S0", "RN50", "starter")
WHOLE = ("starter",)  # small: built in every precision for every GPU
IMAGES = 2  # to measure ranges on: what is legal does not depend on their values


def capabilities(family: str, precision: Precision) -> tuple[str, ...]:
    """The GPUs to build a variant for: all of them, or one, by turns, so that every precision meets every GPU."""
    if family in WHOLE:
        return CAPABILITIES
    turn = FAMILIES.index(family) + PRECISIONS.index(precision)
    return (CAPABILITIES[turn % len(CAPABILITIES)],)


class Family:
    """One family's graphs and plans, made when they are asked for."""

    def __init__(self, name: str, exported: ExportedFamily, folder: Path) -> None:
        self.name = name
        self.encoder: EncoderSpec = exported.encoder
        self._graphs: dict[str, Path] = {"fp32": exported.fp32}
        self._folder = folder

    def graph(self, precision: Precision) -> Path:
        """The graph of a precision."""
        if precision not in self._graphs:
            path, images = self._folder / f"{precision}.onnx", self._images()
            if precision == "int8":
                quantize(self._graphs["fp32"], path, images, DEFAULT_RECIPE)
            else:
                convert_precision(self._graphs["fp32"], path, precision, images)
            self._graphs[precision] = path
        return self._graphs[precision]

    def check(self, precision: Precision) -> None:
        """The linter finds no error, NVIDIA's parser takes the graph, and its builder gives whole plans."""
        graph = self.graph(precision)
        assert [item for item in lint(graph) if item.severity == "error"] == []
        sizes = [self.plan_bytes(precision, capability) for capability in capabilities(self.name, precision)]
        weights = graph.stat().st_size
        # The weights are in the plan in their precision, and the source of the kernels that the device will compile.
        assert 0.9 * weights < min(sizes) <= max(sizes) < 1.1 * weights + KERNELS_BYTES

    def plan_bytes(self, precision: Precision, capability: str) -> int:
        """The size of a plan for GPUs of a compute capability; the plan itself stays in the cache."""
        options = BuildOptions(compute_capability=capability)
        result = build("tensorrt-rtx", self.graph(precision), self.encoder, precision, options)
        assert result.key.device == f"sm{capability.replace('.', '')}"
        return result.path.stat().st_size

    def _images(self) -> FloatArray:
        return preprocess(photographs()[:IMAGES], self.encoder)


@pytest.fixture(scope="module")
def family(
    request: pytest.FixtureRequest,
    exported: Callable[[str], ExportedFamily],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Family]:
    """The family called ``request.param``; what was made of it is deleted when the next one comes."""
    folder = tmp_path_factory.mktemp("ahead")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGECLIP_CACHE", str(folder / "cache"))
        yield Family(request.param, exported(request.param), folder)
    shutil.rmtree(folder)


def test_every_precision_meets_every_gpu_and_every_family_one_a_precision() -> None:
    large, precisions = [family for family in FAMILIES if family not in WHOLE], PRECISIONS[:3]
    for precision in precisions:
        assert {gpu for family in large for gpu in capabilities(family, precision)} == set(CAPABILITIES)
    for family in large:
        assert len({gpu for precision in precisions for gpu in capabilities(family, precision)}) == len(precisions)


@pytest.mark.parametrize("precision", PRECISIONS[:3])
@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_every_variant_is_legal_and_builds(family: Family, precision: Precision) -> None:
    family.check(precision)


@pytest.mark.parametrize("family", ["ViT-B-32", "starter"], indirect=True)
def test_bf16_is_legal_and_builds_too(family: Family) -> None:
    family.check("bf16")


@pytest.mark.parametrize("family", FAMILIES[:1], indirect=True)
def test_a_transformers_plan_shrinks_with_its_precision(family: Family) -> None:
    fp32, fp16, int8 = (family.plan_bytes(each, capabilities(family.name, each)[0]) for each in PRECISIONS[:3])
    assert fp16 < 0.6 * fp32
    assert int8 < 0.5 * fp32
