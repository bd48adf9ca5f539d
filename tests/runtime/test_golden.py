"""Golden images come back as they were kept, and what is no such set is refused."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from edgeclip import Bundle, EncoderSpec, PreprocessSpec
from edgeclip.errors import IntegrityError
from edgeclip.manifest import read_manifest, write_manifest
from edgeclip.prompts import unit_rows
from edgeclip.runtime.engines.base import Engine, FloatArray, load_engine
from edgeclip.runtime.proof.basis import Origin
from edgeclip.runtime.proof.choose import choose
from edgeclip.runtime.proof.golden import (
    FILE,
    GoldenImages,
    crop_name,
    decoded_images,
    decoded_inputs,
    golden_files,
    golden_of,
)
from tests.conftest import without_golden

SPEC = PreprocessSpec(height=32, width=32, resize_to=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def golden_set(bundle: Bundle) -> GoldenImages:
    golden = golden_of(bundle)
    assert golden is not None
    return golden


def test_a_golden_set_comes_back_as_it_was_saved(fp16_bundle: Path, tmp_path: Path) -> None:
    golden = golden_set(Bundle.open(fp16_bundle))
    for kept in (golden, replace(golden, classes=golden.classes[:0])):
        kept.save(tmp_path / "again.safetensors")
        again = GoldenImages.load(tmp_path / "again.safetensors")
        assert (again.names, again.files) == (kept.names, kept.files)
        np.testing.assert_array_equal(again.embeddings, kept.embeddings)
        np.testing.assert_array_equal(again.classes, kept.classes)


def test_fp32_agrees_with_the_golden_embeddings_because_both_saw_the_same_pixels(fp16_bundle: Path) -> None:
    bundle = Bundle.open(fp16_bundle)
    with load_engine("onnxruntime", bundle.variant_path("fp32"), bundle.manifest.encoder) as engine:
        report = golden_set(bundle).compare(engine)
    assert report.images == 4
    assert report.batch_sizes == (1, 4)
    assert report.min_cosine == pytest.approx(1, abs=1e-6)
    assert report.min_centred_cosine == pytest.approx(1, abs=1e-6)
    assert report.agreement == 1
    assert report.p95_margin_loss == pytest.approx(0, abs=1e-3)


def test_golden_images_are_not_cropped_twice(fp16_bundle: Path) -> None:
    """An encoder that crops after its resize gets the golden image itself: it was cropped when it was made."""
    bundle = Bundle.open(fp16_bundle)
    golden, spec = golden_set(bundle), bundle.manifest.encoder.preprocess
    crops = msgspec.structs.replace(spec, resize_to=spec.height + 8)
    np.testing.assert_array_equal(golden.inputs(crops), golden.inputs(spec))


def flip(data: bytes) -> bytes:
    return data[:-100] + bytes([data[-100] ^ 1]) + data[-99:]


@pytest.mark.parametrize("damage", [flip, lambda data: data[:-1], lambda data: b""])
def test_a_golden_set_is_under_the_manifests_hash(fp16_bundle: Path, damage: Callable[[bytes], bytes]) -> None:
    path = fp16_bundle / FILE
    path.write_bytes(damage(path.read_bytes()))
    bundle = Bundle.open(fp16_bundle)
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
    save_file(content, str(tmp_path / "x.safetensors"), metadata)
    with pytest.raises(IntegrityError, match="holds no golden images"):
        GoldenImages.load(tmp_path / "x.safetensors")


@pytest.mark.parametrize("cut", [10, 1000, -10])
def test_a_truncated_file_is_refused(fp16_bundle: Path, tmp_path: Path, cut: int) -> None:
    (tmp_path / "x.safetensors").write_bytes((fp16_bundle / FILE).read_bytes()[:cut])
    with pytest.raises(IntegrityError, match="holds no golden images"):
        GoldenImages.load(tmp_path / "x.safetensors")


def test_images_that_are_no_jpeg_of_the_encoders_size_are_refused(fp16_bundle: Path) -> None:
    bundle = Bundle.open(fp16_bundle)
    spec, files = bundle.manifest.encoder.preprocess, golden_set(bundle).files
    larger = msgspec.structs.replace(spec, height=40, width=40, resize_to=40)
    for given, expected in (((b"hello",), spec), ((b"",), spec), (files, larger)):
        with pytest.raises(IntegrityError, match="is no JPEG of"):
            decoded_inputs(given, expected)


def views(count: int) -> GoldenImages:
    """A set of pictures of noise, two views of each, whose embeddings are whatever they are."""
    chance = np.random.default_rng(0)
    pictures = [chance.integers(0, 256, (32, 32, 3), np.uint8) for _ in range(count)]
    rows = chance.standard_normal((count, 16)).astype(np.float32)
    digests = tuple(f"{number // 2:064x}" for number in range(count))
    names = tuple(f"p{number}" for number in range(count))
    return GoldenImages(names, golden_files(pictures, SPEC), rows, unit_rows(rows[:3]), digests, "site")


@pytest.mark.parametrize("origin", ["images", "site", "stand-ins", "unknown"])
def test_all_of_a_golden_set_is_kept(tmp_path: Path, origin: Origin) -> None:
    whole = replace(views(4), origin=origin)
    whole.save(tmp_path / "x.safetensors")
    again = GoldenImages.load(tmp_path / "x.safetensors")
    assert (again.names, again.files, again.digests, again.origin) == (
        whole.names,
        whole.files,
        whole.digests,
        origin,
    )
    assert (again.sha256, again.photographs) == (whole.sha256, 2)
    assert again.embeddings.dtype == again.classes.dtype == np.float32
    tensors = load_file(tmp_path / "x.safetensors")
    assert tensors["ends"].tolist() == np.cumsum([len(file) for file in whole.files]).tolist()
    assert tensors["jpeg"].tobytes() == b"".join(whole.files)


def test_whose_photographs_they_are_is_stand_ins_unless_it_is_said() -> None:
    given = views(2)
    assert GoldenImages(given.names, given.files, given.embeddings, given.classes).origin == "stand-ins"


@pytest.mark.parametrize(
    "change",
    [
        lambda golden: replace(golden, names=("other", *golden.names[1:])),
        lambda golden: replace(golden, files=golden.files[::-1]),
        lambda golden: replace(golden, embeddings=golden.embeddings[::-1]),
        lambda golden: replace(golden, classes=golden.classes[::-1]),
        lambda golden: replace(golden, classes=golden.classes[:2], embeddings=golden.embeddings),
        lambda golden: replace(golden, digests=golden.digests[::-1]),
        lambda golden: replace(golden, origin="images"),
        # The same numbers in all, of which one more belongs to the classes.
        lambda golden: replace(
            golden,
            embeddings=golden.embeddings[:-1],
            classes=np.concatenate([golden.embeddings[-1:], golden.classes]),
        ),
    ],
)
def test_a_digest_is_of_all_that_a_golden_set_holds(
    change: Callable[[GoldenImages], GoldenImages], tmp_path: Path
) -> None:
    golden = views(4)
    assert golden.sha256 == views(4).sha256
    assert change(golden).sha256 != golden.sha256
    assert re.fullmatch("[0-9a-f]{64}", golden.sha256)


@pytest.mark.parametrize("what", ["embeddings", "classes", "jpeg"])
def test_a_set_in_which_anything_was_altered_is_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / "x.safetensors"
    views(4).save(path)
    stored = load_file(path)
    with safe_open(path, "np") as opened:
        about = opened.metadata()
    stored[what].reshape(-1)[-1] += 1
    save_file(stored, path, about)
    with pytest.raises(IntegrityError, match="holds other golden images than were written to it"):
        GoldenImages.load(path)


@pytest.mark.parametrize(
    ("ends", "size"),
    [([2, 4], 4), ([1, 4], 4)],
)
def test_photographs_lie_one_after_another(tmp_path: Path, ends: list[int], size: int) -> None:
    save_file(tensors(ends=np.array(ends), jpeg=np.arange(size, dtype=np.uint8)), tmp_path / "x.safetensors", NAMED)
    golden = GoldenImages.load(tmp_path / "x.safetensors")
    assert golden.files == (bytes(range(ends[0])), bytes(range(ends[0], ends[1])))


@pytest.mark.parametrize(
    ("ends", "size"),
    [([2, 5], 4), ([2, 3], 4), ([4, 4], 4), ([0, 4], 4), ([3, 2], 2), ([5, 4], 4), ([-1, 4], 4), ([4], 4)],
)
def test_photographs_that_do_not_are_refused(tmp_path: Path, ends: list[int], size: int) -> None:
    content = tensors(ends=np.array(ends), jpeg=np.zeros(size, np.uint8))
    save_file(content, tmp_path / "x.safetensors", NAMED)
    with pytest.raises(IntegrityError, match=r"holds no golden images .*: copy the bundle again"):
        GoldenImages.load(tmp_path / "x.safetensors")


def test_a_set_of_no_images_is_none(tmp_path: Path) -> None:
    nothing = tensors(jpeg=np.zeros(0, np.uint8), ends=np.zeros(0, np.int64), embeddings=np.ones((0, 3), np.float32))
    save_file(nothing, tmp_path / "x.safetensors", {"names": "[]"})
    with pytest.raises(IntegrityError, match="holds no golden images"):
        GoldenImages.load(tmp_path / "x.safetensors")


def test_views_of_one_photograph_have_one_digest_where_only_names_tell(tmp_path: Path) -> None:
    whole = views(5)
    names = ("a", "b, crop 1", crop_name("a", 1), "crop 3", crop_name("a", 12))
    save_file(
        {
            "jpeg": np.frombuffer(b"".join(whole.files), np.uint8),
            "ends": np.cumsum([len(file) for file in whole.files]),
            "embeddings": whole.embeddings,
            "classes": whole.classes,
        },
        tmp_path / "x.safetensors",
        {"names": json.dumps(names)},
    )
    old = GoldenImages.load(tmp_path / "x.safetensors")
    first = [hashlib.sha256(file).hexdigest() for file in whole.files]
    assert old.digests == (first[0], first[1], first[0], first[3], first[0])
    assert (old.photographs, old.origin) == (3, "unknown")
    assert crop_name("a", 12) == "a, crop 12"


def test_a_bundle_without_golden_images_has_none_and_one_with_those_of_another_model_is_refused(
    tiny_bundle: Path,
) -> None:
    path = tiny_bundle / FILE
    own = GoldenImages.load(path)
    replace(own, embeddings=own.embeddings[:, :-1], classes=own.classes[:, :-1]).save(path)
    write_manifest(tiny_bundle, read_manifest(tiny_bundle), scan=True)
    with pytest.raises(IntegrityError, match=r"expected golden embeddings of width 16 in tiny\.edgeclip, got 15"):
        golden_of(Bundle.open(tiny_bundle))
    assert golden_of(without_golden(tiny_bundle)) is None


class Encoder(Engine):
    """Mean colours of the corners of an image, and what ``spoil`` makes of them, given the images and the call."""

    name = "corners"

    def _load(self) -> None:
        self.sizes: list[int] = []
        self.spoil: Callable[[FloatArray, int], FloatArray] = lambda rows, _: rows

    def _infer(self, images: FloatArray) -> FloatArray:
        self.sizes.append(len(images))
        rows = images[:, :, ::16, ::16].reshape(len(images), -1)[:, : self.encoder.embedding_dim]
        return self.spoil(np.ascontiguousarray(rows), len(self.sizes))


@pytest.fixture
def compared() -> tuple[GoldenImages, Encoder]:
    """Twelve images, and an engine that gives their embeddings."""
    encoder = EncoderSpec(preprocess=SPEC, embedding_dim=12, logit_scale=50.0)
    engine = Encoder(Path("x.onnx"), encoder)
    golden = views(12)
    rows = engine.infer(golden.inputs(SPEC))
    engine.sizes.clear()
    return replace(golden, embeddings=rows, classes=unit_rows(rows[:5])), engine


def test_an_engine_is_compared_with_one_image_at_a_time_and_with_eight_in_a_batch(
    compared: tuple[GoldenImages, Encoder],
) -> None:
    golden, engine = compared
    report = golden.compare(engine)
    assert engine.sizes == [1] * 12 + [8]
    assert (report.images, report.batch_sizes, report.classes, report.agreement) == (12, (1, 8), 5, 1.0)
    assert report.min_cosine == pytest.approx(1, abs=1e-6)
    engine.sizes.clear()
    assert golden.compare(engine, dynamic_batch=False).batch_sizes == (1,)
    assert engine.sizes == [1] * 12
    engine.sizes.clear()
    for count in (1, 2):
        few = replace(
            golden, names=golden.names[:count], files=golden.files[:count], embeddings=golden.embeddings[:count]
        )
        assert few.compare(engine).batch_sizes == ((1,) if count == 1 else (1, 2))
    assert engine.sizes == [1, 1, 1, 2]


@pytest.mark.parametrize(
    ("spoilt", "call"),
    [(lambda rows, call: rows if call != 4 else -rows, 4), (lambda rows, _: rows if len(rows) == 1 else -rows, 13)],
    ids=["one image alone", "images in a batch"],
)
def test_what_is_wrong_in_either_way_is_found_and_named(
    compared: tuple[GoldenImages, Encoder], spoilt: Callable[[FloatArray, int], FloatArray], call: int
) -> None:
    golden, engine = compared
    engine.spoil = spoilt
    report = golden.compare(engine)
    assert report.min_cosine == pytest.approx(-1, abs=1e-6)
    assert report.agreement is not None
    assert report.agreement < 1
    assert set(report.worst) & ({"p3"} if call == 4 else {f"p{number}" for number in range(8)})


def test_a_golden_image_is_a_jpeg_of_the_encoders_size_at_quality_90() -> None:
    red = np.zeros((64, 96, 3), np.uint8)
    red[..., 0] = 200
    (file,) = golden_files([red], SPEC)
    assert file[:3] == b"\xff\xd8\xff"
    table = file.index(b"\xff\xdb") + 5  # of quantization; the standard one begins with 16, and 90 takes a fifth of it
    assert file[table] == 3
    (image,) = decoded_images([file], SPEC)
    assert image.shape == (32, 32, 3)
    np.testing.assert_allclose(image.reshape(-1, 3).mean(axis=0), (200, 0, 0), atol=2)
    np.testing.assert_allclose(decoded_inputs([file], SPEC)[0, :, 5, 5], (200 / 127.5 - 1, -1, -1), atol=0.03)


@pytest.mark.parametrize("sides", [{"height": 40}, {"width": 40}, {"height": 40, "width": 40}])
def test_a_golden_image_of_another_size_is_refused(sides: dict[str, int]) -> None:
    expected = msgspec.structs.replace(SPEC, resize_to=40, **sides)
    with pytest.raises(IntegrityError, match=f"is no JPEG of {expected.height}x{expected.width}: copy"):
        decoded_images(views(2).files, expected)


def test_which_image_cannot_be_decoded_is_said() -> None:
    with pytest.raises(IntegrityError, match="golden image 2"):
        decoded_images([views(1).files[0], b"hello"], SPEC)


def test_arrays_that_are_parts_of_others_are_kept_as_they_are(tmp_path: Path) -> None:
    whole = views(4)
    part = replace(whole, embeddings=whole.embeddings[::-1, ::2], classes=whole.classes[:, 1::2])
    part.save(tmp_path / "x.safetensors")
    again = GoldenImages.load(tmp_path / "x.safetensors")
    np.testing.assert_array_equal(again.embeddings, whole.embeddings[::-1, ::2])
    np.testing.assert_array_equal(again.classes, whole.classes[:, 1::2])
