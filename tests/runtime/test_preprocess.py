"""Preprocessing agrees with Pillow's antialiased resize on real photographs, and takes any shape of frame."""

from __future__ import annotations

from pathlib import Path

import av
import msgspec
import numpy as np
import pytest
from PIL import Image as PillowImage

from edgeclip import Bundle, PreprocessSpec
from edgeclip.errors import InputError
from edgeclip.manifest import read_manifest, write_manifest
from edgeclip.runtime.encoder import ImageEncoder
from edgeclip.runtime.engines.base import normalise
from edgeclip.runtime.images import Image, read_image
from edgeclip.runtime.preprocess.choose import choose_backend, synthetic_frames
from edgeclip.runtime.preprocess.exact import window
from edgeclip.runtime.preprocess.preprocess import BACKENDS, Preprocessor, resized_size
from tests.conftest import shared, without_golden

CLIP = PreprocessSpec(
    height=224,
    width=224,
    resize_to=224,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
)
PILLOW_FILTER = {"bicubic": PillowImage.Resampling.BICUBIC, "bilinear": PillowImage.Resampling.BILINEAR}


def by_pillow(image: Image, spec: PreprocessSpec) -> Image:
    """The reference: Pillow's resize, then torchvision's centre crop."""
    height, width = resized_size(spec, *image.shape[:2])
    resized = PillowImage.fromarray(image).resize((width, height), PILLOW_FILTER[spec.interpolation])
    left, top = round((width - spec.width) / 2), round((height - spec.height) / 2)
    return np.asarray(resized.crop((left, top, left + spec.width, top + spec.height)))


def variant(**changes: object) -> PreprocessSpec:
    return msgspec.structs.replace(CLIP, **changes)


SPECS = {
    "clip": CLIP,
    "crop of 7/8": variant(resize_to=256),
    "bilinear": variant(interpolation="bilinear", resize_to=256),
    "siglip squash": variant(resize="squash", resize_to=384, height=384, width=384),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SPECS)
def test_agrees_with_pillow_on_photographs(name: str, backend: str, photographs_dir: Path) -> None:
    spec = SPECS[name]
    preprocess = Preprocessor(spec, backend)
    for path in sorted(photographs_dir.iterdir()):
        image = read_image(path)
        difference = np.abs(preprocess.resize(image).astype(float) - by_pillow(image, spec))
        assert difference.mean() <= 1.0, f"{path.name}: {difference.mean():.3f} / 255"


def test_agrees_with_pillow_on_many_photographs() -> None:
    paths = sorted(shared("coco-captions", "images").glob("*.jpg"))[:60]
    paths += sorted(shared("caltech101").glob("*/*.jpg"))[::25]
    preprocess = Preprocessor(CLIP)
    differences = [
        np.abs(preprocess.resize(image).astype(float) - by_pillow(image, CLIP)).mean()
        for image in map(read_image, paths)
    ]
    assert max(differences) <= 1.0
    assert float(np.mean(differences)) <= 0.4


def test_opencv_cubic_would_fail_the_same_check(photographs_dir: Path) -> None:
    """The bound means something: OpenCV's cubic resize, which does not antialias, is beyond it."""
    import cv2

    image = read_image(photographs_dir / "motorcycle.png")
    height, width = resized_size(CLIP, *image.shape[:2])
    resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
    left, top = round((width - 224) / 2), round((height - 224) / 2)
    cropped = resized[top : top + 224, left : left + 224].astype(float)
    assert np.abs(cropped - by_pillow(image, CLIP)).mean() > 1.0


def exact_rgb(frame: av.VideoFrame, red: float, blue: float) -> Image:
    """YUV 4:2:0, limited range, to RGB in floating point, given the matrix's red and blue weights."""
    import cv2

    planes = frame.to_ndarray().astype(np.float32)
    height, width = frame.height, frame.width
    luma = (planes[:height] - 16) * 255 / 219
    chroma = planes[height:].reshape(2, height // 2, width // 2)
    u, v = (cv2.resize((plane - 128) * 255 / 224, (width, height)) for plane in chroma)
    r, b = luma + 2 * (1 - red) * v, luma + 2 * (1 - blue) * u
    g = (luma - red * r - blue * b) / (1 - red - blue)
    rgb: Image = np.clip(np.rint(np.stack([r, g, b], axis=-1)), 0, 255).astype(np.uint8)
    return rgb


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["bottle-detection.mp4", "one-by-one-person-detection.mp4"])
def test_a_video_frame_goes_straight_from_yuv_and_still_agrees(name: str, backend: str) -> None:
    preprocess = Preprocessor(CLIP, backend)
    with av.open(str(shared("videos", name))) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index % 200:
                continue
            expected = by_pillow(exact_rgb(frame, 0.299, 0.114), CLIP)
            difference = np.abs(preprocess.resize(frame).astype(float) - expected).mean()
            assert difference <= 1.0, f"frame {index}: {difference:.3f} / 255"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize(("matrix", "red", "blue"), [("ITU709", 0.2126, 0.0722), ("ITU601", 0.299, 0.114)])
def test_the_colour_matrix_of_a_video_is_heeded(
    matrix: str, red: float, blue: float, times: int, backend: str, photographs_dir: Path
) -> None:
    image = np.tile(read_image(photographs_dir / "coffee.jpg"), (times, times, 1))
    frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p", dst_colorspace=matrix)
    preprocess = Preprocessor(CLIP, backend)
    difference = preprocess.resize(frame).astype(float) - by_pillow(exact_rgb(frame, red, blue), CLIP)
    assert np.abs(difference).mean() <= 1.0


def test_normalises_to_planar_float(photographs_dir: Path) -> None:
    image = read_image(photographs_dir / "coffee.jpg")
    preprocess = Preprocessor(CLIP)
    values = preprocess(image)
    assert values.shape == (3, 224, 224)
    assert values.dtype == np.float32
    expected = (preprocess.resize(image) / 255.0 - np.array(CLIP.mean)) / np.array(CLIP.std)
    np.testing.assert_allclose(values, expected.transpose(2, 0, 1), atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (3, 2), (223, 225), (20000, 2), (480, 641)])
def test_any_shape_of_frame_is_taken(shape: tuple[int, int], backend: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    assert Preprocessor(CLIP, backend).resize(image).shape == (224, 224, 3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_frames_of_changing_size_are_taken(backend: str, photographs_dir: Path) -> None:
    preprocess = Preprocessor(CLIP, backend)
    images = [read_image(path) for path in sorted(photographs_dir.iterdir())]
    fresh = [Preprocessor(CLIP, backend).resize(image) for image in images]
    for image, expected in zip(images * 2, fresh * 2, strict=True):
        np.testing.assert_array_equal(preprocess.resize(image), expected)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_what_is_no_rgb_image_is_refused(image: Image) -> None:
    with pytest.raises(InputError, match=r"expected an \(H, W, 3\) uint8"):
        Preprocessor(CLIP)(image)


def wall(photographs_dir: Path, height: int, width: int) -> Image:
    """Photographs side by side at their own size: all the detail that a frame of this size can have."""
    images = [read_image(path)[:300, :450] for path in sorted(photographs_dir.iterdir())]
    row = np.concatenate([image[:300] for image in images if image.shape[0] >= 300], axis=1)
    tiled = np.tile(row, (-(-height // 300), -(-width // row.shape[1]), 1))
    return np.ascontiguousarray(tiled[:height, :width])


GEOMETRIES = [(1080, 1920), (2160, 3840), (1920, 1080), (720, 1280), (360, 640), (432, 768), (1000, 1000), (1082, 1918)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("resize", ["shortest", "squash"])
@pytest.mark.parametrize(("height", "width"), GEOMETRIES)
def test_both_agree_with_pillow_at_camera_sizes(
    height: int, width: int, resize: str, backend: str, photographs_dir: Path
) -> None:
    spec = variant(resize=resize)
    preprocess = Preprocessor(spec, backend)
    image = wall(photographs_dir, height, width)
    frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p", dst_colorspace="ITU601")
    for pixels, rgb in ((image, image), (frame, exact_rgb(frame, 0.299, 0.114))):
        difference = np.abs(preprocess.resize(pixels).astype(float) - by_pillow(rgb, spec)).mean()
        assert difference <= 1.0, f"{type(pixels).__name__}: {difference:.3f} / 255"


@pytest.mark.parametrize(
    "pixel_format", ["yuvj420p", "nv12", "yuv422p", "yuv444p", "yuv420p10le", "rgb24", "bgr24", "gray"]
)
def test_fast_takes_other_pixel_formats(pixel_format: str, photographs_dir: Path) -> None:
    image = wall(photographs_dir, 1080, 1920)
    frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pixel_format)
    exact, fast = (Preprocessor(CLIP, backend).resize(frame).astype(float) for backend in ("exact", "fast"))
    assert np.abs(exact - fast).mean() <= 1.0


@pytest.mark.parametrize("backend", BACKENDS)
def test_views_of_an_array_are_as_good_as_copies(backend: str, photographs_dir: Path) -> None:
    image = wall(photographs_dir, 1080, 1920)
    for view in (image[11:1000, 33:1777], image[::-1], image[:, ::-1], image[5:200, 5:220]):
        whole = Preprocessor(CLIP, backend).resize(np.ascontiguousarray(view))
        np.testing.assert_array_equal(Preprocessor(CLIP, backend).resize(view), whole)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_returned_stays_as_it_was_while_later_frames_come(backend: str, photographs_dir: Path) -> None:
    preprocess = Preprocessor(CLIP, backend)
    image = wall(photographs_dir, 1080, 1920)
    frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")
    frame.pts = 5
    small = preprocess.resize(frame)
    kept = small.copy()
    for _ in range(5):
        preprocess.resize(av.VideoFrame.from_ndarray(255 - image, format="rgb24").reformat(format="yuv420p"))
    np.testing.assert_array_equal(small, kept)
    np.testing.assert_array_equal(preprocess.resize(frame), kept)
    assert frame.pts == 5


def test_a_window_keeps_the_phase() -> None:
    for source, scaled in ((1920, 398), (1280, 398), (640, 398), (3840, 398), (1921, 399), (5000, 225)):
        for step in (1, 2, 4, 8):
            cut = window(source, scaled, 224, step)
            ratio = source / scaled
            first = round((scaled - 224) / 2) - cut.crop
            assert abs(cut.start / ratio - first) <= 0.05
            assert abs(cut.stop / ratio - (first + cut.scaled)) <= 0.05
            assert cut.start % step == 0
            assert cut.crop + 224 <= cut.scaled
    assert window(1920, 398, 224, 4).stop - window(1920, 398, 224, 4).start < 1920  # it does cut


def test_normalising_a_batch_is_what_the_spec_says(photographs_dir: Path) -> None:
    preprocess = Preprocessor(CLIP)
    small = np.stack([preprocess.resize(read_image(path)) for path in sorted(photographs_dir.iterdir())])
    batch = preprocess.normalise_batch(small)
    np.testing.assert_array_equal(batch[1], preprocess.normalise(small[1]))
    np.testing.assert_allclose(batch, normalise(CLIP, small), atol=2e-6)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_normalisation_in_the_graph_differs_by_rounding_only(engine: str, photographs_dir: Path) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino")
    with ImageEncoder(Bundle.open("starter"), "fp32", engine=engine) as encoder:
        small = np.stack([encoder.preprocess.resize(read_image(path)) for path in sorted(photographs_dir.iterdir())])
        outside = encoder.encode_preprocessed(encoder.preprocess.normalise_batch(small))
        inside, _ = encoder.start(small).result()
    np.testing.assert_allclose(inside, outside, atol=1e-4)


def test_the_gate_lets_fast_be_used_where_it_is_near_enough(tiny_bundle: Path) -> None:
    manifest = read_manifest(tiny_bundle)
    preprocess = msgspec.structs.replace(manifest.encoder.preprocess, resize_to=224)  # as much detail as others see
    encoder_spec = msgspec.structs.replace(manifest.encoder, preprocess=preprocess)
    write_manifest(tiny_bundle, msgspec.structs.replace(manifest, encoder=encoder_spec), scan=True)
    with ImageEncoder(without_golden(tiny_bundle)) as encoder:  # so that the frames are those that are made
        choice = choose_backend(encoder)
        assert choice.backend == "fast", str(choice)
        exact, fast = (Preprocessor(preprocess, backend) for backend in ("exact", "fast"))
        off = [np.abs(exact.resize(one).astype(float) - fast.resize(one)).mean() for one in synthetic_frames()]
        assert choice.difference == pytest.approx(max(off), abs=1e-4)
        assert str(choice).startswith("preprocess fast: ")
        assert choose_backend(encoder, "fast") == choice
        assert choose_backend(encoder, "exact").backend == "exact"
        with pytest.raises(InputError, match="expected a preprocessing backend"):
            choose_backend(encoder, "fastest")


def test_the_gate_keeps_what_it_measured_and_measures_again_what_is_damaged(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGECLIP_CACHE", str(tmp_path / "cache"))
    with ImageEncoder(Bundle.open(tiny_bundle)) as encoder:
        first = choose_backend(encoder)
        (kept,) = (tmp_path / "cache" / "preprocess").iterdir()
        written = kept.stat().st_mtime_ns
        assert choose_backend(encoder) == first
        assert kept.stat().st_mtime_ns == written
        kept.write_bytes(b"{")
        assert choose_backend(encoder) == first
        assert kept.read_bytes() != b"{"


def test_the_gate_refuses_fast_to_an_encoder_that_it_would_change() -> None:
    """The starter is so small that it tells the two apart on its golden photographs."""
    with ImageEncoder(Bundle.open("starter"), "fp32") as encoder:
        choice = choose_backend(encoder)
        assert choice.backend == "exact"
        assert choice.cosine is not None
        assert choice.cosine < 0.999
        with pytest.raises(InputError, match="beyond the limits"):
            choose_backend(encoder, "fast")


def test_synthetic_frames_are_always_the_same() -> None:
    for one, other in zip(synthetic_frames(), synthetic_frames(), strict=True):
        left, right = (p.to_ndarray() if isinstance(p, av.VideoFrame) else p for p in (one, other))
        np.testing.assert_array_equal(left, right)


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(InputError, match="expected a preprocessing backend of exact, fast"):
        Preprocessor(CLIP, "quick")
