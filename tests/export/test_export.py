"""Exported graphs equal the models they come from on real photographs; a wrong one is refused; nothing half-written."""

from __future__ import annotations

import copy
import gc
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgeclip.bundle import Bundle
from edgeclip.errors import InputError, ModelError, ParityError
from edgeclip.export.photographs import Photograph, photographs
from edgeclip.export.proofs import check_parity, preprocess, run_onnx
from edgeclip.runtime.encoder import ImageEncoder
from edgeclip.runtime.engines.base import load_engine
from edgeclip.runtime.proof.basis import Basis, basis_of
from edgeclip.runtime.proof.golden import COUNT, golden_of
from edgeclip.runtime.proof.parity import ParityLimits, compare_embeddings

torch = pytest.importorskip("torch")
open_clip = pytest.importorskip("open_clip")
pytest.importorskip("transformers")
onnx = pytest.importorskip("onnx")

from edgeclip.export.bundle import VariantOptions, export, export_bundle, onnx_metadata  # noqa: E402
from edgeclip.export.images import image_report  # noqa: E402
from edgeclip.export.onnx import (  # noqa: E402
    OPSET,
    export_onnx,
    simplify,
)
from edgeclip.export.variants import VARIANTS, Made, Materials  # noqa: E402
from edgeclip.training.model import ContrastiveModel  # noqa: E402
from edgeclip.training.towers.open_clip import OpenClipModel  # noqa: E402
from tests.families import FAMILIES, TINY, as_if_trained, shortened  # noqa: E402

FEW = 5  # photographs


@dataclass
class Exported:
    """A model and its bundle."""

    model: ContrastiveModel
    bundle: Bundle

    @property
    def fp32(self) -> Path:
        return self.bundle.variant_path("fp32")


@pytest.fixture(scope="module")
def photos() -> list[Photograph]:
    return photographs()


def tiny_model() -> OpenClipModel:
    """A model whose activations are as large as a trained one's: near 0 every GELU is a line."""
    model = as_if_trained(OpenClipModel(TINY))
    with torch.no_grad():
        for module in model.image_modules()[0].modules():
            if hasattr(module, "act"):
                module.fc1.weight.mul_(20)
    return model


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, photos: list[Photograph]) -> Exported:
    model = tiny_model()
    return Exported(model, export_bundle(model, tmp_path_factory.mktemp("small") / "b.edgeclip", photos=photos))


@pytest.fixture(scope="module")
def family(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, photos: list[Photograph]
) -> Iterator[Exported]:
    """A family of real width on a few photographs, without the golden set of 64: ``small`` has the whole of both.

    Of the transformers one is of real depth, too; the others differ from it in what each block does.
    """
    folder = tmp_path_factory.mktemp("family")
    model = FAMILIES[request.param](folder / "model")
    as_if_trained(model if request.param == "ViT-B-32" else shortened(model))
    with pytest.MonkeyPatch.context() as patch:
        _few_golden_images(patch)
        exported = Exported(model, export_bundle(model, folder / "b.edgeclip", photos=photos[:FEW]))
    yield exported
    shutil.rmtree(folder)
    gc.collect()


# The families at real width


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_every_family_exports_and_agrees_with_its_own_library(family: Exported) -> None:
    parity = json.loads((family.bundle.path / "reports" / "parity-fp32.json").read_text())["parity"]
    assert parity["images"] == FEW
    assert parity["batch_sizes"] == [1, FEW]
    assert parity["min_cosine"] > 0.999999
    assert parity["min_centred_cosine"] > 0.99999
    assert parity["max_relative_error"] < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("family", list(FAMILIES)[:2], indirect=True)  # RN50's random embeddings are nearly parallel
def test_a_shuffled_weight_is_refused(family: Exported, photos: list[Photograph], tmp_path: Path) -> None:
    graph = onnx.load(str(family.fp32))
    weights = [item for item in graph.graph.initializer if len(item.dims) in {2, 4} and min(item.dims[:2]) > 64]
    middle = weights[len(weights) // 2]
    values = onnx.numpy_helper.to_array(middle)
    order = np.random.default_rng(0).permutation(len(values))
    middle.CopyFrom(onnx.numpy_helper.from_array(values[order], middle.name))
    onnx.save(graph, str(tmp_path / "shuffled.onnx"))
    with pytest.raises(ParityError, match=r"shuffled\.onnx differs from"):
        check_parity(family.model, tmp_path / "shuffled.onnx", photos[:FEW])


def test_gelu_in_place_of_quick_gelu_is_refused(small: Exported, photos: list[Photograph]) -> None:
    quick = tiny_model()
    blocks = [module for module in quick.image_modules()[0].modules() if hasattr(module, "act")]
    assert quick.identity.image_sha256 == small.model.identity.image_sha256  # the same weights
    for block in blocks:
        block.act = open_clip.transformer.QuickGELU()
    assert blocks
    with pytest.raises(ParityError, match=r"fp32\.onnx differs from"):
        check_parity(quick, small.fp32, photos)


@pytest.mark.slow
def test_merging_branches_without_the_identity_branch_is_refused(photos: list[Photograph], tmp_path: Path) -> None:
    from edgeclip.training.towers.open_clip import OpenClipImageTower, merge_branches

    model = as_if_trained(OpenClipModel("MobileCLIP2-S0"))
    branchy = model.image_modules()[0]
    damaged = copy.deepcopy(branchy)
    normalisation = torch.nn.BatchNorm2d
    block = next(part for part in damaged.modules() if isinstance(getattr(part, "identity", None), normalisation))
    block.identity = None
    merged = OpenClipImageTower(merge_branches(damaged)).eval()
    export_onnx(merged, model.encoder, tmp_path / "merged.onnx", metadata={})
    with pytest.raises(ParityError):
        check_parity(model, tmp_path / "merged.onnx", photos[:FEW])


@pytest.mark.slow
def test_branches_are_merged_in_a_copy(photos: list[Photograph]) -> None:
    model = as_if_trained(OpenClipModel("MobileCLIP2-S0"))
    images = torch.from_numpy(preprocess(photos[:2], model.encoder))
    before, digest = model.encode_image(images), model.identity.image_sha256
    merged = model.exportable()
    assert len(list(merged.modules())) < 0.7 * len(list(model.image_modules()[0].modules()))
    assert torch.equal(model.encode_image(images), before)
    from edgeclip.training.model import weights_digest

    assert weights_digest(model.image_modules()) == digest
    torch.testing.assert_close(merged(images), before, rtol=1e-4, atol=1e-5)


# The graph


def test_the_graph_is_what_the_bundle_contract_says(small: Exported) -> None:
    graph = onnx.load(str(small.fp32))
    onnx.checker.check_model(graph)
    image, embedding = graph.graph.input[0], graph.graph.output[0]
    assert (image.name, embedding.name) == ("image", "embedding")
    sizes = [dim.dim_param or dim.dim_value for dim in image.type.tensor_type.shape.dim]
    assert sizes[1:] == [3, 96, 96]
    assert isinstance(sizes[0], str)
    assert [entry.version for entry in graph.opset_import if entry.domain == ""] == [OPSET]
    assert {item.key: item.value for item in graph.metadata_props} == onnx_metadata(
        small.model.name, small.model.identity.id, "fp32"
    )
    assert not any(node.metadata_props or node.doc_string for node in graph.graph.node)  # no paths of this machine


def test_the_graph_is_simplified(small: Exported) -> None:
    import onnx_ir

    graph = onnx_ir.load(small.fp32)
    nodes = [node.op_type for node in graph.graph]
    assert not {"Identity", "Dropout"} & set(nodes)
    assert len(list(simplify(graph).graph)) == len(nodes)  # nothing is left to fold


def test_any_batch_size_gives_the_same_rows(small: Exported, photos: list[Photograph]) -> None:
    images = preprocess(photos[:7], small.model.encoder)
    with load_engine("onnxruntime", small.fp32, small.model.encoder) as engine:
        whole = engine.infer(images)
        for size in (1, 2, 5):
            np.testing.assert_allclose(engine.infer(images[:size]), whole[:size], rtol=1e-4, atol=1e-5)


def test_a_module_that_cannot_be_exported_is_one_error_and_no_file(small: Exported, tmp_path: Path) -> None:
    class ByValue(torch.nn.Module):
        def forward(self, image: object) -> object:
            return image.mean((2, 3)) if image.sum().item() > 0 else image.amax((2, 3))  # type: ignore[attr-defined]

    with pytest.raises(ModelError, match="cannot export"):
        export_onnx(ByValue(), small.model.encoder, tmp_path / "x.onnx", metadata={})
    assert not list(tmp_path.iterdir())


def test_a_module_of_another_width_is_refused(small: Exported, tmp_path: Path) -> None:
    class Narrow(torch.nn.Module):
        def forward(self, image: object) -> object:
            return image.mean((2, 3))  # type: ignore[attr-defined]

    with pytest.raises(ModelError, match="expected a graph of opset 18"):
        export_onnx(Narrow(), small.model.encoder, tmp_path / "x.onnx", metadata={})
    assert not list(tmp_path.iterdir())


def test_weights_beyond_protobufs_limit_go_to_one_file_beside_the_graph(
    small: Exported, photos: list[Photograph], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeclip.export.onnx._PROTOBUF_LIMIT_BYTES", 1_000_000)
    _few_golden_images(monkeypatch)
    bundle = export_bundle(small.model, tmp_path / "big.edgeclip", photos=photos[:2])
    assert bundle.variant("fp32").data_files == ("image_encoder/fp32.onnx.data",)
    assert sorted(path.name for path in (bundle.path / "image_encoder").iterdir()) == ["fp32.onnx", "fp32.onnx.data"]
    assert (bundle.path / "image_encoder" / "fp32.onnx").stat().st_size < 1_000_000
    assert check_parity(small.model, bundle.variant_path("fp32"), photos[:2]).min_cosine > 0.999999


def test_exporting_prints_nothing(small: Exported, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    export_onnx(patches(small.model.encoder.embedding_dim), small.model.encoder, tmp_path / "x.onnx", metadata={})
    assert capfd.readouterr() == ("", "")


def test_an_inner_value_may_have_the_name_of_an_output(small: Exported, tmp_path: Path) -> None:
    class Looked(torch.nn.Module):
        """The exporter calls the result of a look-up ``embedding``."""

        def __init__(self, width: int) -> None:
            super().__init__()
            self.patches, self.positions = patches(width), torch.nn.Embedding(1, width)
            self.register_buffer("zero", torch.zeros(1, dtype=torch.long))

        def forward(self, image: object) -> object:
            return self.patches(image) + self.positions(self.zero)

    encoder = small.model.encoder
    looked = Looked(encoder.embedding_dim).eval()
    export_onnx(looked, encoder, tmp_path / "x.onnx", metadata={})
    images = torch.randn(2, 3, encoder.preprocess.height, encoder.preprocess.width)
    with torch.inference_mode():
        expected = looked(images).numpy()
    for _, got in run_onnx(tmp_path / "x.onnx", images.numpy(), encoder):
        np.testing.assert_allclose(got, expected, atol=1e-5)
    onnx.checker.check_model(str(tmp_path / "x.onnx"), full_check=True)


def patches(width: int) -> object:
    """A module of the right form and no worth."""
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, width, 32, stride=32), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    )


# The comparison


def rows(seed: int = 0, shape: tuple[int, int] = (4, 8)) -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


NAMES = ("a", "b", "c", "d")


def limits(*, min_cosine: float = -1, min_centred_cosine: float = -1) -> ParityLimits:
    """Limits that every number reaches, but for those given."""
    return ParityLimits(
        min_cosine=min_cosine,
        min_centred_cosine=min_centred_cosine,
        mean_centred_cosine=-1,
        agreement=0,
        margin_loss=np.inf,
    )


def test_equal_embeddings_agree_whatever_their_length() -> None:
    report = compare_embeddings(rows(), rows(), NAMES, batch_size=4)
    assert report.min_cosine == pytest.approx(1)
    assert report.min_centred_cosine == pytest.approx(1)
    assert report.max_abs_difference == 0
    msgspec.json.decode(msgspec.json.encode(report), type=type(report))


def test_the_worst_image_is_named_with_expected_and_got() -> None:
    candidate = rows()
    candidate[2] *= -1
    report = compare_embeddings(rows(), candidate, NAMES, batch_size=1)
    assert report.worst[0] == "c"
    with pytest.raises(ParityError, match=r"int8: expected a cosine of at least 0\.99, got -1\.0.*of 4 images: c,"):
        report.require(limits(min_cosine=0.99), what="int8")


def test_nearly_parallel_embeddings_do_not_hide_a_wrong_graph() -> None:
    common = 1000 * rows(1, (1, 8))
    report = compare_embeddings(common + rows(2), common + rows(3), NAMES, batch_size=1)
    assert report.min_cosine > 0.9999
    report.require(limits(min_cosine=0.9999), what="the plain cosine alone")
    with pytest.raises(ParityError, match="expected a mean-centred cosine of"):
        report.require(limits(min_cosine=0.9999, min_centred_cosine=0.9999), what="both")


def test_one_image_has_no_centred_cosine_and_still_counts() -> None:
    report = compare_embeddings(rows()[:1], -rows()[:1], ("a",), batch_size=1)
    assert report.min_centred_cosine is None
    with pytest.raises(ParityError):
        report.require(limits(min_cosine=0.9, min_centred_cosine=0.9), what="one image")


def test_a_value_that_is_not_a_number_is_below_every_limit() -> None:
    candidate = rows()
    candidate[1, 1] = np.nan
    with pytest.raises(ParityError):
        compare_embeddings(rows(), candidate, NAMES, batch_size=1).require(limits(), what="nan")


@pytest.mark.parametrize(("reference", "candidate", "names"), [(4, 3, NAMES), (3, 3, NAMES), (0, 0, ())])
def test_rows_that_do_not_match_are_refused(reference: int, candidate: int, names: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="rows of embeddings"):
        compare_embeddings(rows()[:reference], rows()[:candidate], names, batch_size=1)


# The bundle


def test_a_bundle_opens_verifies_and_encodes_as_the_model_does(small: Exported, photos: list[Photograph]) -> None:
    bundle = Bundle.open(small.bundle.path)
    assert set(bundle.verify()) == {
        "golden/golden.safetensors",
        "image_encoder/fp32.onnx",
        "reports/cost.json",
        "reports/parity-fp32.json",
    }
    assert bundle.manifest.model == small.model.identity
    assert {"edgeclip", "torch", "onnx", "onnxruntime", "open_clip_torch"} <= bundle.manifest.tools.keys()
    report = json.loads(bundle.file("reports/parity-fp32.json").read_text())
    assert report["machine"]["cores_usable"] >= 1
    expected = small.model.encode_image(torch.from_numpy(preprocess(photos[:2], small.model.encoder)))
    with ImageEncoder(bundle) as encoder:
        got = encoder.encode([pixels for _, pixels in photos[:2]])
    np.testing.assert_allclose(got, torch.nn.functional.normalize(expected).numpy(), atol=1e-5)


def test_a_failed_export_leaves_nothing_and_keeps_what_was_there(
    small: Exported, photos: list[Photograph], tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bad(folder: Path, materials: Materials) -> Made:
        (folder / "image_encoder" / "int8.onnx").write_bytes(b"half a graph")
        raise ParityError("int8 differs")

    monkeypatch.setitem(VARIANTS, "int8", bad)
    worse = VariantOptions(names=("int8",))
    with pytest.raises(ParityError):
        export_bundle(small.model, tmp_path / "b.edgeclip", photos=photos[:2], variants=worse)
    assert not list(tmp_path.iterdir())

    path = export_bundle(small.model, tmp_path / "b.edgeclip", photos=photos[:2]).path
    with pytest.raises(InputError, match="exists already"):
        export_bundle(small.model, path, photos=photos[:2])
    with pytest.raises(ParityError):
        export_bundle(small.model, path, photos=photos[:2], variants=worse, overwrite=True)
    assert [item.name for item in tmp_path.iterdir()] == ["b.edgeclip"]
    assert list(Bundle.open(path).verify())


def test_further_variants_are_made_from_the_proved_graph_and_listed_with_their_proof(
    small: Exported, photos: list[Photograph], tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def same_again(folder: Path, materials: Materials) -> Made:
        (folder / "image_encoder" / "again.onnx").write_bytes(materials.fp32.read_bytes())
        return Made((folder / "image_encoder" / "again.onnx",), "fp32", {"copied": True})

    monkeypatch.setitem(VARIANTS, "again", same_again)
    said: list[str] = []
    variants = VariantOptions(names=("again",))
    bundle = export_bundle(
        small.model, tmp_path / "b.edgeclip", photos=photos[:2], variants=variants, progress=said.append
    )
    assert [variant.name for variant in bundle.manifest.variants] == ["fp32", "again"]
    assert bundle.variant_path("again").is_file()
    report = json.loads(bundle.file("reports/parity-again.json").read_text())
    assert report["made"]["copied"] is True
    assert report["parity"]["images"] == 3
    assert report["parity"]["min_cosine"] == pytest.approx(1)
    assert [sentence.split()[0] for sentence in said] == ["exporting", "comparing", "encoding", "making", "comparing"]


def test_ones_own_images_are_split_and_the_bundle_says_what_its_proofs_are_taken_on(
    small: Exported, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def same_again(folder: Path, materials: Materials) -> Made:
        (folder / "image_encoder" / "int8.onnx").write_bytes(materials.fp32.read_bytes())
        return Made((folder / "image_encoder" / "int8.onnx",), "int8", {"images": len(materials.images)})

    monkeypatch.setitem(VARIANTS, "int8", same_again)
    monkeypatch.setattr("edgeclip.export.proofs.COUNT", 64)
    patches = np.random.default_rng(0).integers(0, 256, (30, 4, 5, 3), dtype=np.uint8)
    images = [patch.repeat(8, 0).repeat(8, 1) for patch in patches]
    images += [images[0], np.zeros((9, 9, 3), np.uint8)]
    bundle = export(small.model, tmp_path / "own.edgeclip", variants=["int8"], images=images)
    golden, report = golden_of(bundle), json.loads(bundle.file("reports/parity-int8.json").read_text())
    assert golden is not None
    assert (len(golden.files), golden.photographs, golden.origin) == (20, 20, "images")
    assert (report["made"]["images"], report["made"]["calibration"]["photographs"]) == (10, 10)
    assert not set(golden.digests) & set(report["made"]["calibration"]["digests"])
    basis = basis_of(bundle, "int8", golden)
    assert basis == Basis(origin="images", photographs=20, calibrated_on=0, ranges_from="images")
    assert report["basis"] == msgspec.structs.asdict(basis) | {"provisional": False}
    status = {check["figure"]: check["status"] for check in report["checks"]}
    assert (status["cosine"], status["mean-centred cosine"]) == ("checked", "checked")
    assert status["top-1 agreement"] == status["margin loss"] == "could not be checked"  # there is no table of classes
    said = image_report(bundle)
    assert said is not None
    assert said.line() == "images: 20 to prove on, 10 to calibrate on, no photograph in two of them"
    assert [sentence.split(":")[0] for sentence in said.told] == [
        *("1 of 32 is of one colour", "1 of 32 is the same as another"),
        *("photographs to prove on", "photographs to calibrate on"),
    ]

    calibrated = export(small.model, tmp_path / "c.edgeclip", variants=["int8"], images=images, calibration=images[5:9])
    golden = golden_of(calibrated)
    assert golden is not None
    assert golden.photographs == 26
    assert basis_of(calibrated, "int8", golden).calibrated_on == 0

    stand_ins = export(small.model, tmp_path / "s.edgeclip", variants=["int8"])
    golden = golden_of(stand_ins)
    assert golden is not None
    assert image_report(stand_ins) is None
    said_of = {name: str(basis_of(stand_ins, name, golden)) for name in ("fp32", "int8")}
    assert said_of == {
        "fp32": "provisional: on 9 stand-in photographs",
        "int8": "provisional: on 9 stand-in photographs, 9 of them calibrated on",
    }
    with pytest.raises(InputError, match="expected images to calibrate on, got none"):
        export(small.model, tmp_path / "n.edgeclip", variants=["int8"], images=images, calibration=[])


@pytest.mark.parametrize("names", [("int8", "int8"), ("int4",)])
def test_variants_that_cannot_be_made_are_refused_before_the_export(
    small: Exported, photos: list[Photograph], tmp_path: Path, names: tuple[str, ...]
) -> None:
    said: list[str] = []
    with pytest.raises(InputError, match="expected different variants out of fp16, bf16, int8, int8-cpu"):
        export_bundle(
            small.model, tmp_path / "c", photos=photos, variants=VariantOptions(names=names), progress=said.append
        )
    assert not said
    assert not list(tmp_path.iterdir())


@pytest.fixture
def quick(small: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """One export and a small golden set without classes serve every test: they are not the point there."""
    monkeypatch.setattr("edgeclip.export.bundle.export_onnx", _copy_of(small.fp32))
    _few_golden_images(monkeypatch)


def _few_golden_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeclip.export.bundle.class_rows", lambda _, width: np.zeros((0, width), np.float32))
    monkeypatch.setattr("edgeclip.export.proofs.COUNT", 3)


def test_a_bundle_holds_golden_images_of_the_photographs_and_the_starters_classes(
    small: Exported, photos: list[Photograph]
) -> None:
    golden = golden_of(small.bundle)
    assert golden is not None
    assert len(golden.files) == len(set(golden.names)) == COUNT
    assert list(golden.names[: len(photos)]) == [name for name, _ in photos]
    assert golden.embeddings.shape == (COUNT, small.model.encoder.embedding_dim)
    assert len(golden.classes) == len(Bundle.open("starter").table("objects").classes)
    np.testing.assert_allclose(np.linalg.norm(golden.classes, axis=1), 1, atol=1e-5)


def _copy_of(source: Path) -> Callable[..., tuple[Path, ...]]:
    def export(module: object, encoder: object, path: Path, **_: object) -> tuple[Path, ...]:
        path.write_bytes(source.read_bytes())
        return (path,)

    return export


# The photographs


def test_photographs_are_real_colour_images_and_need_no_download(photos: list[Photograph]) -> None:
    assert len(photos) >= 5
    for name, pixels in photos:
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 3
        assert pixels.shape[2] == 3
        assert np.ptp(pixels.astype(int).mean((0, 1))) > 1, name  # not grey
