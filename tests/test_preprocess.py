"""Preprocessing agrees with Pillow's antialiased resize on real photographs, and takes any shape of frame."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image as PillowImage

from edgeclip import PreprocessSpec
from edgeclip.errors import InputError
from edgeclip.runtime.images import Image, read_image
from edgeclip.runtime.preprocess import Preprocessor, resized_size
from tests.conftest import shared

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
    import msgspec

    return msgspec.structs.replace(CLIP, **changes)


SPECS = {
    "clip": CLIP,
    "crop of 7/8": variant(resize_to=256),
    "bilinear": variant(interpolation="bilinear", resize_to=256),
    "siglip squash": variant(resize="squash", resize_to=384, height=384, width=384),
}


@pytest.mark.parametrize("name", SPECS)
def test_agrees_with_pillow_on_photographs(name: str, photographs_dir: Path) -> None:
    spec = SPECS[name]
    preprocess = Preprocessor(spec)
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
    return np.clip(np.rint(np.stack([r, g, b], axis=-1)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", ["bottle-detection.mp4", "one-by-one-person-detection.mp4"])
def test_a_video_frame_goes_straight_from_yuv_and_still_agrees(name: str) -> None:
    preprocess = Preprocessor(CLIP)
    with av.open(str(shared("videos", name))) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index % 200:
                continue
            expected = by_pillow(exact_rgb(frame, 0.299, 0.114), CLIP)
            difference = np.abs(preprocess.resize(frame).astype(float) - expected).mean()
            assert difference <= 1.0, f"frame {index}: {difference:.3f} / 255"


@pytest.mark.parametrize(("matrix", "red", "blue"), [("ITU709", 0.2126, 0.0722), ("ITU601", 0.299, 0.114)])
def test_the_colour_matrix_of_a_video_is_heeded(matrix: str, red: float, blue: float, photographs_dir: Path) -> None:
    image = read_image(photographs_dir / "coffee.jpg")
    frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p", dst_colorspace=matrix)
    preprocess = Preprocessor(CLIP)
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


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (3, 2), (223, 225), (20000, 2), (480, 641)])
def test_any_shape_of_frame_is_taken(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    assert Preprocessor(CLIP).resize(image).shape == (224, 224, 3)


def test_frames_of_changing_size_are_taken(photographs_dir: Path) -> None:
    preprocess = Preprocessor(CLIP)
    images = [read_image(path) for path in sorted(photographs_dir.iterdir())]
    fresh = [Preprocessor(CLIP).resize(image) for image in images]
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
