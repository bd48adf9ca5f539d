"""Frames are shown as they are meant to be seen: with square pixels, upright, not mirrored."""

from __future__ import annotations

import io
import logging
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image as PillowImage

from edgeclip.runtime.images import Image, read_image
from edgeclip.runtime.preprocess.preprocess import Preprocessor
from edgeclip.runtime.sources.open import open_source
from edgeclip.spec import PreprocessSpec
from tests.mjpeg_files import avi_of
from tests.servers import answering

SPEC = PreprocessSpec(height=64, width=64, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), resize_to=64)


def film(picture: Image, ratio: Fraction, *, form: str, codec: str = "libx264", frames: int = 3) -> bytes:
    """A video of one picture whose pixels are said to have that ratio of width to height."""
    file = io.BytesIO()
    with av.open(file, "w", format=form) as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width = picture.shape[:2]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.sample_aspect_ratio = ratio
        if codec == "libx264":
            stream.options = {"bf": "2", "crf": "10"}
        for _ in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()


@pytest.fixture(scope="module")
def cat(photographs_dir: Path) -> Image:
    """(240, 360, 3), a photograph."""
    picture = PillowImage.fromarray(read_image(photographs_dir / "chelsea.jpg")).resize((360, 240))
    return np.asarray(picture)


def squeezed(picture: Image, ratio: Fraction) -> Image:
    """The picture as a recorder stores it with pixels of that ratio: in fewer columns, or fewer lines."""
    height, width = picture.shape[:2]
    size = (round(width / ratio), height) if ratio > 1 else (width, round(height * ratio))
    return np.asarray(PillowImage.fromarray(picture).resize(size))


def sizes(path: Path) -> list[tuple[int, ...]]:
    with open_source(str(path)) as source:
        return [frame.rgb().shape[:2] for frame in source]


@pytest.mark.parametrize("backend", ["exact", "fast"])
@pytest.mark.parametrize(
    ("form", "codec"), [("mp4", "libx264"), ("mpegts", "libx264"), ("avi", "mpeg4"), ("avi", "mjpeg")]
)
@pytest.mark.parametrize("ratio", [Fraction(2), Fraction(12, 11), Fraction(1, 2)])
def test_a_squeezed_video_is_encoded_as_the_square_one(
    ratio: Fraction, form: str, codec: str, backend: str, cat: Image, tmp_path: Path
) -> None:
    """Half-D1, 1080N, PAL: the encoder's input is that of the picture itself, not of a squeezed one."""
    path = tmp_path / "squeezed"
    path.write_bytes(film(squeezed(cat, ratio), ratio, form=form, codec=codec))
    preprocess = Preprocessor(SPEC, backend)
    expected = preprocess.resize(cat).astype(int)
    with open_source(str(path)) as source:
        frames = list(source)
    assert [frame.rgb().shape for frame in frames] == [cat.shape] * 3
    for frame in frames:
        assert np.abs(preprocess.resize(frame.pixels) - expected).mean() < 6
    assert np.abs(preprocess.resize(squeezed(cat, Fraction(2))) - expected).mean() > 12


def test_the_ratio_may_change_in_mid_stream(cat: Image, tmp_path: Path) -> None:
    """Each frame has its own, also those that the decoder still held when the next came."""
    path = tmp_path / "changes.ts"
    ratios = [Fraction(2), Fraction(1), Fraction(1, 2)]
    path.write_bytes(b"".join(film(cat, ratio, form="mpegts", frames=8) for ratio in ratios))
    assert sizes(path) == [(240, 720)] * 8 + [(240, 360)] * 8 + [(480, 360)] * 8


@pytest.mark.parametrize(
    ("stated", "expected"),
    [((1, 1), (240, 360)), ((3, 2), (240, 540)), ((0, 1), (240, 720)), ((0, 0), (240, 720)), ((1, 100), (240, 360))],
)
def test_a_container_that_contradicts_its_codec_is_believed(
    stated: tuple[int, int], expected: tuple[int, int], cat: Image, tmp_path: Path
) -> None:
    """As players do it; where it says nothing, the codec is."""
    data = bytearray(film(cat, Fraction(2), form="mp4"))
    at = data.index(b"pasp") + 4
    data[at : at + 8] = b"".join(number.to_bytes(4, "big") for number in stated)
    path = tmp_path / "stated.mp4"
    path.write_bytes(data)
    assert sizes(path) == [expected] * 3


@pytest.mark.parametrize("ratio", [Fraction(50), Fraction(1, 50)])
def test_an_absurd_ratio_is_told_and_not_taken(
    ratio: Fraction, cat: Image, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "absurd.ts"
    path.write_bytes(film(cat, ratio, form="mpegts"))
    with caplog.at_level(logging.WARNING):
        assert sizes(path) == [(240, 360)] * 3
    assert caplog.text.count("which is taken for a mistake") == 1


def test_a_video_of_unknown_or_nearly_square_pixels_is_left_alone(cat: Image, tmp_path: Path) -> None:
    for ratio in (Fraction(0), Fraction(1), Fraction(200, 199)):
        path = tmp_path / "square.ts"
        path.write_bytes(film(cat, ratio, form="mpegts"))
        assert sizes(path) == [(240, 360)] * 3


def test_a_live_stream_is_brought_to_square_pixels_too(cat: Image) -> None:
    stream = film(squeezed(cat, Fraction(2)), Fraction(2), form="mpegts", frames=30)
    with answering(stream) as server, open_source(server.url) as source:
        assert source.live
        assert next(iter(source)).rgb().shape == cat.shape


def four_corners() -> Image:
    """(32, 64, 3): red, green / blue, white."""
    picture = np.zeros((32, 64, 3), np.uint8)
    picture[:16, :32], picture[:16, 32:] = (255, 0, 0), (0, 255, 0)
    picture[16:, :32], picture[16:, 32:] = (0, 0, 255), (255, 255, 255)
    return picture


def laid_out(picture: Image, a: int, b: int, c: int, d: int) -> Image:
    """Each pixel put where the matrix sends it: (x, y) to (a x + c y, b x + d y), moved back to begin at 0."""
    rows, columns = np.indices(picture.shape[:2])
    to_x, to_y = a * columns + c * rows, b * columns + d * rows
    to_x, to_y = to_x - to_x.min(), to_y - to_y.min()
    out = np.zeros((to_y.max() + 1, to_x.max() + 1, 3), np.uint8)
    out[to_y, to_x] = picture
    return out


MATRICES = [(a, 0, 0, d) for a in (1, -1) for d in (1, -1)] + [(0, b, c, 0) for b in (1, -1) for c in (1, -1)]


@pytest.mark.parametrize("matrix", MATRICES)
def test_a_display_matrix_turns_and_mirrors(matrix: tuple[int, int, int, int], tmp_path: Path) -> None:
    data = film(four_corners(), Fraction(1), form="mov")
    one = 0x10000

    def header(a: int, b: int, c: int, d: int) -> bytes:
        numbers = (a * one, b * one, 0, c * one, d * one, 0, 0, 0, 0x40000000)
        return b"".join(number.to_bytes(4, "big", signed=True) for number in numbers)

    at = data.index(header(1, 0, 0, 1), data.index(b"tkhd"))
    path = tmp_path / "turned.mov"
    path.write_bytes(data[:at] + header(*matrix) + data[at + 36 :])
    with open_source(str(path)) as source:
        shown = next(iter(source)).rgb()
    expected = laid_out(four_corners(), *matrix)
    assert shown.shape == expected.shape
    assert np.abs(shown.astype(int) - expected).mean() < 12


def jpeg(orientation: int) -> bytes:
    """The four corners, to be shown in that orientation."""
    file = io.BytesIO()
    exif = PillowImage.Exif()
    exif[0x0112] = orientation
    PillowImage.fromarray(four_corners()).save(file, "jpeg", exif=exif, quality=95, subsampling=0)
    return file.getvalue()


def corners(image: Image) -> npt.NDArray[np.int64]:
    return image[[4, 4, -4, -4], [4, -4, 4, -4]].astype(int)


def test_the_exif_of_mjpeg_frames_is_applied(tmp_path: Path) -> None:
    """In a file and from a camera, as for a photograph: each of the eight ways."""
    pictures = [jpeg(orientation) for orientation in range(1, 9)]
    path = tmp_path / "turned.avi"
    path.write_bytes(avi_of(pictures, height=32, width=64, pixel_format="yuvj444p"))
    with open_source(str(path)) as source:
        shown = [frame.rgb() for frame in source]
    assert len(shown) == 8
    for orientation, image in enumerate(shown, start=1):
        (tmp_path / "one.jpg").write_bytes(pictures[orientation - 1])
        expected = read_image(tmp_path / "one.jpg")
        assert image.shape == expected.shape
        assert np.abs(corners(image) - corners(expected)).max() < 20, orientation
    with answering(b"--x\r\n\r\n" + pictures[4], hang_up=False) as server, open_source(server.url) as source:
        live = next(iter(source)).rgb()
    assert np.abs(corners(live) - corners(shown[4])).max() < 20
