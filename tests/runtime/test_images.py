"""Image files as people have them: every kind, every way up, cut, enormous, oddly named; whole or refused."""

from __future__ import annotations

import io
import logging
import os
import shutil
import struct
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image as PillowImage
from PIL import ImageOps, features

from edgeclip import Bundle
from edgeclip.errors import MissingExtraError, SourceError
from edgeclip.runtime.images import (
    IMAGE_SUFFIXES,
    Image,
    as_image,
    decode_image,
    images_below,
    list_images,
    list_labelled,
    opencv,
    read_image,
)
from edgeclip.runtime.regions import Region
from edgeclip.runtime.sources.open import open_source
from edgeclip.runtime.sources.stills import ImageSource, ImagesSource
from edgeclip.runtime.sources.video import open_container, video_stream
from edgeclip.runtime.stream import Stream, StreamOptions
from tests.servers import file_server

INPUTS = Path(__file__).parents[1] / "inputs"
COLOURS = {"red": (255, 0, 0), "green": (0, 128, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}
NOT_UTF_8 = os.fsdecode(b"caf\xe9.jpg")


def quadrants(width: int = 160, height: int = 96) -> PillowImage.Image:
    """Red and green over blue and white: no two ways of laying it look alike."""
    image = PillowImage.new("RGB", (width, height))
    for place, colour in enumerate(COLOURS.values()):
        half = (width // 2, height // 2)
        image.paste(colour, (place % 2 * half[0], place // 2 * half[1], width, height))
    return image


def smooth(width: int = 120, height: int = 170) -> npt.NDArray[np.uint8]:
    """A picture without edges, the one in ``inputs/grid_turned.*`` before it was turned."""
    dots = np.random.default_rng(3).integers(0, 256, (6, 4, 3)).astype(np.uint8)
    whole = PillowImage.fromarray(dots).resize((128, 192), PillowImage.Resampling.BICUBIC)
    return np.asarray(whole)[:height, :width]


def encoded(image: PillowImage.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def assert_like(image: Image, expected: PillowImage.Image | npt.NDArray[Any], most: float = 4.0) -> None:
    wanted = np.asarray(expected)
    assert image.shape == wanted.shape
    assert np.abs(image.astype(int) - wanted).mean() < most


def corners(image: Image) -> list[str]:
    """The nearest of the four colours in the middle of each quarter, row by row."""
    height, width = image.shape[:2]
    found = []
    for y, x in ((1, 1), (1, 3), (3, 1), (3, 3)):
        pixel = image[height * y // 4, width * x // 4].astype(int)
        found.append(min(COLOURS, key=lambda name: int(np.abs(pixel - COLOURS[name]).sum())))
    return found


# Which way up ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_kind_is_turned_upright(form: str, orientation: int) -> None:
    image = quadrants()
    exif = PillowImage.Exif()
    exif[0x0112] = orientation
    data = encoded(image, form, exif=exif.tobytes() if form != "TIFF" else exif, quality=95)
    assert_like(decode_image(data, name="x"), ImageOps.exif_transpose(PillowImage.open(io.BytesIO(data))))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("orient2.avif", ["green", "red", "white", "blue"]),
        ("orient5.avif", ["red", "blue", "green", "white"]),
    ],
)
def test_an_avif_is_turned_and_mirrored_as_it_says(name: str, expected: list[str]) -> None:
    image = read_image(INPUTS / name)
    assert (corners(image), image.shape) == (expected, (160, 320, 3) if name == "orient2.avif" else (320, 160, 3))


def test_a_damaged_orientation_turns_nothing() -> None:
    for value in (0, 9, 60000):
        exif = PillowImage.Exif()
        exif[0x0112] = value
        assert decode_image(encoded(quadrants(), "JPEG", exif=exif.tobytes()), name="x").shape == (96, 160, 3)
    data = encoded(quadrants(), "WEBP", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert decode_image(data, name="x").shape == (96, 160, 3)


# HEIF -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["grid_turned.heic", "grid_turned.avif"])
def test_a_picture_in_tiles_is_put_together_cropped_and_turned(name: str) -> None:
    """Six tiles of 64 pixels a side; a quarter turn counter-clockwise, then left and right change places."""
    assert_like(read_image(INPUTS / name), np.fliplr(np.rot90(smooth())))


def test_tiles_that_do_not_fill_their_picture_are_refused() -> None:
    data = (INPUTS / "grid_turned.avif").read_bytes()
    grid, tiles = data.index(b"idat") + 4, data.index(b"dimg") + 4
    assert data[grid + 2 : grid + 4] == bytes((2, 1))  # rows and columns, less one
    for rows, columns in ((0, 5), (5, 0)):  # as many, laid otherwise: they do not fill it
        laid = data[: grid + 2] + bytes((rows, columns)) + data[grid + 4 :]
        with pytest.raises(SourceError, match="do not fill it"):
            decode_image(laid, name="x")
    with pytest.raises(SourceError, match="truncated or damaged"):
        decode_image(data[: grid + 2] + b"\xff\xff" + data[grid + 4 :], name="x")
    same = data[: tiles + 4] + data[tiles + 4 : tiles + 6] * 6 + data[tiles + 16 :]
    assert decode_image(same, name="x").shape == (120, 170, 3)


def test_the_first_tile_never_passes_for_the_picture(tmp_path: Path) -> None:
    data = (INPUTS / "grid_turned.heic").read_bytes()
    at = data.index(b"dimg")
    one_missing = data[: at + 8] + struct.pack(">H", 99) + data[at + 10 :]  # a tile that is not in the file
    with pytest.raises(SourceError, match="truncated or damaged HEIF"):
        decode_image(one_missing, name="x")
    with pytest.raises(SourceError, match="truncated or damaged HEIF"):
        decode_image(data[:-10], name="x")
    for name in ("photo", "photo.mp4", "photo.bin"):  # whatever it is called
        (tmp_path / name).write_bytes(data)
        with open_source(str(tmp_path / name)) as source:
            assert isinstance(source, ImageSource)
            assert [frame.rgb().shape for frame in source] == [(120, 170, 3)]


def test_a_picture_in_tiles_over_http_is_refused() -> None:
    with file_server(INPUTS) as address, pytest.raises(SourceError):  # a server without ranges
        open_source(f"{address}/grid_turned.heic")
    refused = pytest.raises(SourceError, match="HEIF picture in 6 parts: save it as a file")
    with open_container(str(INPUTS / "grid_turned.heic")) as container, refused:  # what FFmpeg finds where it can seek
        video_stream(container, "x")


def test_a_heif_of_odd_sides_is_cropped_to_them() -> None:
    """Stored as 334 × 202 with a clean aperture of 333 × 201."""
    image = read_image(INPUTS / "odd_sides.heic")
    assert (image.shape, corners(image)) == ((201, 333, 3), list(COLOURS))


# Whole or cut ---------------------------------------------------------------------------------------------------------


def jpeg_with_thumbnail() -> bytes:
    """A JPEG whose EXIF holds another, with an end marker of its own."""
    thumbnail = encoded(quadrants(32, 32), "JPEG")
    whole = encoded(PillowImage.fromarray(smooth()), "JPEG", quality=95)
    block = b"Exif\0\0" + b"II*\0\x08\0\0\0\0\0" + b"\0\0\0\0" + thumbnail
    return whole[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + whole[2:]


def test_a_cut_jpeg_is_cut_though_its_thumbnail_is_whole() -> None:
    data = jpeg_with_thumbnail()
    assert decode_image(data, name="x").shape == (170, 120, 3)
    for kept in (0.3, 0.5, 0.9, 0.999):
        with pytest.raises(SourceError, match=r"x is a truncated or damaged JPEG .*copy it again"):
            decode_image(data[: int(len(data) * kept)], name="x")
    with pytest.raises(SourceError, match="truncated"):  # as a download that was given its size before its bytes
        decode_image(data[: len(data) // 2] + bytes(len(data) // 2), name="x")


@pytest.mark.parametrize(
    "trailer",
    [b"", bytes(1 << 17), b"\xff" * 70_000, b"\0\0\0\x18ftypmp42" + b"film" * 50_000, jpeg_with_thumbnail()],
    ids=["nothing", "padding", "padding of ones", "a motion photo's film", "a second picture"],
)
@pytest.mark.parametrize("progressive", [False, True])
def test_what_follows_a_jpegs_end_is_nobodys_business(progressive: bool, trailer: bytes) -> None:
    image = PillowImage.fromarray(smooth())
    data = encoded(image, "JPEG", quality=95, progressive=progressive)
    assert_like(decode_image(data + trailer, name="x"), image)


def grainy() -> PillowImage.Image:
    """A picture of which every part takes bytes."""
    grain = np.random.default_rng(5).integers(0, 60, (170, 120, 3))
    return PillowImage.fromarray((smooth() // 2 + grain).astype(np.uint8))


def jpegs_with_an_end_but_not_whole() -> dict[str, bytes]:
    end = b"\xff\xd9"
    plain, tuned = encoded(grainy(), "JPEG"), encoded(grainy(), "JPEG", optimize=True)
    progressive, marked = encoded(grainy(), "JPEG", progressive=True), encoded(grainy(), "JPEG", restart_marker_rows=1)
    scans = [at for at in range(len(progressive)) if progressive[at : at + 2] == b"\xff\xda"]
    half = len(plain) // 2
    return {
        "half": plain[:half] + end,
        "all but the last tenth": plain[: len(plain) * 9 // 10] + end,
        "half, tables of its own": tuned[: len(tuned) // 2] + end,
        "half, with restarts": marked[: len(marked) // 2] + end,
        "half, then a whole one": plain[:half] + plain,
        "half, then zeros": plain[:half] + bytes(half) + end,
        "half, then zeros that say little": tuned[: len(tuned) // 2] + bytes(len(tuned) // 2) + end,
        "one scan of many": progressive[: scans[1]] + end,
        "all scans but the last": progressive[: scans[-1]] + end,
        "half of the last scan": progressive[: (scans[-1] + len(progressive)) // 2] + end,
    }


@pytest.mark.parametrize(
    ("kind", "data"), jpegs_with_an_end_but_not_whole().items(), ids=jpegs_with_an_end_but_not_whole()
)
def test_a_jpeg_is_cut_though_it_has_its_end(kind: str, data: bytes) -> None:
    with pytest.raises(SourceError, match=r"x is a truncated or damaged JPEG .*copy it again"):
        decode_image(data, name="x")


def one_scan_a_component() -> bytes:
    """A baseline JPEG whose three components follow one another."""
    parts = [encoded(PillowImage.fromarray(smooth()[..., each]), "JPEG") for each in range(3)]
    frame, scan = parts[0].index(b"\xff\xc0"), parts[0].index(b"\xff\xda")
    head = struct.pack(">HHBHHB", 0xFFC0, 17, 8, 170, 120, 3) + b"\1\x11\0\2\x11\0\3\x11\0"
    joined = parts[0][:frame] + head + parts[0][frame + 13 : scan]  # 13: of the frame of a single component
    for number, part in enumerate(parts, start=1):
        scan = part.index(b"\xff\xda")
        joined += struct.pack(">HHB", 0xFFDA, 8, 1) + bytes((number, 0, 0, 63, 0)) + part[scan + 10 : -2]
    return joined + b"\xff\xd9"


def whole_jpegs() -> dict[str, bytes]:
    # Its codes for "as before" are of zeros only, so that it ends in a long row of them.
    flat = encoded(PillowImage.new("RGB", (2000, 2000), (10, 200, 30)), "JPEG", optimize=True)
    assert flat.endswith(bytes(300) + b"\xff\xd9")
    return {
        "one colour": flat,
        "one colour, progressive": encoded(
            PillowImage.new("L", (640, 480), 9), "JPEG", optimize=True, progressive=True
        ),
        "zeros before its end, as padding": encoded(grainy(), "JPEG")[:-2] + bytes(64) + b"\xff\xd9",
        "one scan a component": one_scan_a_component(),
        "four colours": encoded(grainy().convert("CMYK"), "JPEG"),
        "four colours, subsampled": encoded(grainy().convert("CMYK"), "JPEG", subsampling=2),
        "grey": encoded(grainy().convert("L"), "JPEG"),
        "one pixel": encoded(PillowImage.new("RGB", (1, 1)), "JPEG"),
        "a restart after each block": encoded(grainy(), "JPEG", restart_marker_blocks=1),
    }


@pytest.mark.parametrize(("kind", "data"), whole_jpegs().items(), ids=whole_jpegs())
def test_a_whole_jpeg_is_whole_however_it_is_coded(kind: str, data: bytes) -> None:
    with PillowImage.open(io.BytesIO(data)) as expected:
        assert decode_image(data, name="x").shape[1::-1] == expected.size


def kinds_of_image() -> dict[str, bytes]:
    image = PillowImage.fromarray(smooth())
    forms = ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM"] + ["JPEG2000"] * bool(features.check("jpg_2000"))
    made = {form: encoded(image, form) for form in forms}
    made["TIFF LZW"] = encoded(image, "TIFF", compression="tiff_lzw")
    return made | {path.suffix: path.read_bytes() for path in INPUTS.glob("grid_turned.*")}


@pytest.mark.parametrize(("kind", "data"), kinds_of_image().items(), ids=kinds_of_image())
def test_a_cut_image_is_refused_whatever_its_kind(kind: str, data: bytes) -> None:
    assert decode_image(data, name="x").shape in ((170, 120, 3), (120, 170, 3))
    for kept in (0.05, 0.5, 0.9):
        with pytest.raises(SourceError):
            decode_image(data[: int(len(data) * kept)], name="x")


def test_what_is_no_image_is_refused_with_those_that_are() -> None:
    for data in (b"", b"hello", bytes(100), b"%PDF-1.7", b"\0\0\0\x18ftypmp42\0\0\0\0"):
        with pytest.raises(SourceError, match=r"expected an image, got x .*JPEG.*HEIF"):
            decode_image(data, name="x")


def test_damage_ends_in_a_sentence() -> None:
    random = np.random.default_rng(0)
    files = list(kinds_of_image().values())
    for round_ in range(300):
        data = bytearray(files[round_ % len(files)])
        for at in random.integers(0, min(len(data), 400), 3):
            data[at] = random.choice([0, 1, 127, 128, 255])
        try:
            image = decode_image(bytes(data), name="x")
        except SourceError as error:
            assert str(error)  # noqa: PT017 - most are refused, some still show something
        else:
            assert image.size


def test_a_damaged_image_is_told_once_by_us(tmp_path: Path) -> None:
    """OpenCV has its say on standard error unless it is told not to, when it is loaded."""
    for form in ["BMP", "TIFF", "PPM", *["JPEG2000"] * bool(features.check("jpg_2000"))]:
        data = encoded(grainy(), form)
        (tmp_path / form).write_bytes(data[: len(data) * 9 // 10])
    plain = encoded(grainy(), "JPEG")
    (tmp_path / "JPEG").write_bytes(plain[: len(plain) // 2] + b"\xff\xd9")
    code = (
        "import sys; from pathlib import Path; from edgeclip.runtime.images import read_image\n"
        "for path in Path(sys.argv[1]).iterdir():\n"
        "    try: read_image(path)\n"
        "    except Exception as error: print(path.name, type(error).__name__)\n"
    )
    plain_environment = {name: value for name, value in os.environ.items() if name != "OPENCV_LOG_LEVEL"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=plain_environment, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert sorted(done.stdout.split()) == sorted(
        word for path in tmp_path.iterdir() for word in (path.name, "SourceError")
    )


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("libavcodec.so.59: failed to map segment from shared object", "no memory to load it"),
        ("libx.so: cannot open shared object file: Cannot allocate memory", "no memory to load it"),
        ("libx.so: failed to map segment from shared object: Operation not permitted", "does not load"),
        ("libgomp.so.1: cannot allocate memory in static TLS block", "does not load"),
        ("libGL.so.1: cannot open shared object file: No such file or directory", "mend what is named there"),
        ("numpy.core.multiarray failed to import", "was built for NumPy 1"),
    ],
)
def test_why_opencv_does_not_load_is_told(
    said: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cv2.py").write_text(f"raise ImportError({said!r})")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cv2", raising=False)
    with pytest.raises(MissingExtraError, match=expected) as caught:
        opencv()
    assert said in str(caught.value)
    assert ("numpy<2" in str(caught.value)) == ("numpy" in said)


# Too large ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "data"), kinds_of_image().items(), ids=kinds_of_image())
def test_pixels_are_counted_before_they_are_decoded(kind: str, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGECLIP_MAX_IMAGE_PIXELS", "20399")
    with pytest.raises(SourceError, match=r"at most 20,399 pixels.*got 20,400 in x.*EDGECLIP_MAX_IMAGE_PIXELS"):
        decode_image(data, name="x")
    monkeypatch.setenv("EDGECLIP_MAX_IMAGE_PIXELS", "20400")
    assert decode_image(data, name="x").size == 3 * 20400


BOMBS = {
    "PNG": b"\x89PNG\r\n\x1a\n"
    + struct.pack(">I4sIIBBBBBI", 13, b"IHDR", 20000, 20000, 8, 2, 0, 0, 0, 0)
    + struct.pack(">I4sI", 0, b"IEND", 0),
    "BMP": b"BM" + bytes(12) + struct.pack("<IiiHH", 40, 20000, -20000, 1, 24) + bytes(100),
    "BMP of OS/2": b"BM" + bytes(12) + struct.pack("<IHHHH", 12, 20000, 20000, 1, 24) + bytes(100),
    "PPM": b"P6 # a comment\n#another\n20000\t20000\n255\n",
    "PBM": b"P4\n20000 20000\n",
    "PAM": b"P7\nWIDTH 20000\nHEIGHT 20000\nDEPTH 3\nMAXVAL 255\nENDHDR\n",
    "TIFF": b"II*\0\x08\0\0\0" + struct.pack("<HHHIIHHII", 2, 256, 4, 1, 20000, 257, 4, 1, 20000),
    "TIFF big-endian": b"MM\0*\0\0\0\x08" + struct.pack(">HHHIHHHHIHH", 2, 256, 3, 1, 20000, 0, 257, 3, 1, 20000, 0),
    "BigTIFF": b"II+\0\x08\0\0\0" + struct.pack("<QQHHQQHHQQ", 16, 2, 256, 4, 1, 20000, 257, 4, 1, 20000),
    "WebP": b"RIFF"
    + struct.pack("<I", 22)
    + b"WEBPVP8X"
    + struct.pack("<II", 10, 0)
    + (19999).to_bytes(3, "little") * 2,
    "GIF": b"GIF89a" + struct.pack("<HHBBB", 20000, 20000, 0, 0, 0) + b"\x2c" + bytes(9) + b"\x02\0;",
    "JPEG": b"\xff\xd8\xff\xc0" + struct.pack(">HBHHB", 8, 8, 20000, 20000, 0) + b"\xff\xd9",
    "JPEG 2000": b"\xff\x4f\xff\x51" + struct.pack(">HHIIIIII", 41, 0, 20000, 20000, 0, 0, 20000, 20000),
}


@pytest.mark.parametrize(("kind", "data"), BOMBS.items(), ids=BOMBS)
def test_a_small_file_of_very_many_pixels_is_refused(kind: str, data: bytes) -> None:
    with pytest.raises(SourceError, match="got 400,000,000 in x"):
        decode_image(data, name="x")


def test_a_stream_with_more_pixels_than_its_header_says_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = (INPUTS / "odd_sides.heic").read_bytes()
    at = data.index(b"ispe") + 8
    monkeypatch.setenv("EDGECLIP_MAX_IMAGE_PIXELS", "30000")
    with pytest.raises(SourceError, match="cannot be decoded"):
        decode_image(data[:at] + struct.pack(">II", 20, 20) + data[at + 8 :], name="x")


def test_a_file_and_a_pillow_image_have_the_same_bound(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGECLIP_MAX_IMAGE_PIXELS", "100")
    with pytest.raises(SourceError, match="in the Pillow image"):
        as_image(quadrants())
    monkeypatch.setenv("EDGECLIP_MAX_IMAGE_BYTES", "100")
    quadrants().save(tmp_path / "a.bmp")
    with pytest.raises(SourceError, match="at most 100 bytes"):
        read_image(tmp_path / "a.bmp")


# Folders --------------------------------------------------------------------------------------------------------------


def test_every_kind_of_image_in_a_folder_is_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = quadrants()
    for suffix, form in {
        "jpg": "JPEG",
        "jfif": "JPEG",
        "JPE": "JPEG",
        "gif": "GIF",
        "bmp": "BMP",
        "ppm": "PPM",
    }.items():
        (tmp_path / f"a.{suffix}").write_bytes(encoded(image, form))
    for suffix in ("avif", "heic"):
        shutil.copy(INPUTS / f"grid_turned.{suffix}", tmp_path / f"phone.{suffix}")
    assert {
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".avif",
        ".heic",
        ".heif",
        ".gif",
        ".jp2",
        ".tif",
        ".webp",
    } <= IMAGE_SUFFIXES
    for name in ("notes.txt", "film.mp4", "film2.MP4", "README", ".hidden.jpg", ".DS_Store"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "more").mkdir()
    with caplog.at_level(logging.WARNING), open_source(str(tmp_path)) as source:
        frames = list(source)
    assert (len(frames), source.total, source.failed) == (8, 8, 0)
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith(f"{tmp_path}: passed over")
    assert all(part in said for part in ("2 .mp4", "1 .txt", "1 without a suffix", "1 folder"))
    caplog.clear()
    with open_source(str(tmp_path / "*.[jm]*")) as source:
        assert source.total == 2
    assert "1 .mp4" in caplog.text


def test_a_pipe_is_no_image_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "link.png").symlink_to("pipe.jpg")
    (tmp_path / "null.gif").symlink_to("/dev/null")
    for name in ("pipe.jpg", "link.png", "null.gif"):
        with pytest.raises(SourceError, match=rf"{name}, got a pipe or device: save what it gives as a file"):
            open_source(str(tmp_path / name))
        with pytest.raises(SourceError, match="got a pipe or device"):
            as_image(tmp_path / name)


def test_what_is_no_regular_file_is_told_as_that(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    quadrants().save(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_bytes(b"x")
    os.mkfifo(tmp_path / "pipe.jpg")
    for name, target in (("dead.jpg", "nowhere"), ("dead2.png", "nowhere"), ("round.jpg", "round.jpg")):
        (tmp_path / name).symlink_to(target)
    assert list_images(tmp_path) == [tmp_path / "a.png"]
    (tmp_path / "notes.txt").unlink()
    assert list_images(tmp_path) == [tmp_path / "a.png"]
    odd = "what is no regular file (3 links to nothing, 1 pipe or device)"
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: passed over what is no image by its name (1 .txt) and {odd}",
        f"{tmp_path}: passed over {odd}",
    ]


def test_folders_that_are_not_searched_are_counted_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    site = tmp_path / "site"
    for folder in (site / "own", tmp_path / "elsewhere", site / "shut", site / ".thumbnails"):
        folder.mkdir(parents=True)
        quadrants().save(folder / "a.png")
    (site / "linked").symlink_to(tmp_path / "elsewhere")
    (site / "own" / "round").symlink_to(site)
    (site / "b.png").symlink_to(tmp_path / "elsewhere" / "a.png")  # of a file it is followed
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: "shut" not in str(path) and access(path, mode))
    assert [str(path.relative_to(site)) for path in images_below(site)] == ["b.png", "own/a.png", "shut/a.png"]
    told = "2 links to folders, 1 folder that may not be read"
    assert [record.getMessage() for record in caplog.records] == [
        f"{site}: passed over what is no regular file ({told})"
    ]


def test_a_moving_gif_alone_is_a_film_and_in_a_folder_its_first_frame(tmp_path: Path) -> None:
    frames = [PillowImage.new("RGB", (64, 48), (grey, grey, grey)) for grey in (40, 120, 200)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    with open_source(str(tmp_path / "moving.gif")) as source:
        assert len(list(source)) == 3
    with open_source(str(tmp_path)) as source:
        (frame,) = source
        np.testing.assert_allclose(frame.rgb(), 40, atol=2)


def test_a_bad_image_is_named_and_the_rest_goes_on(
    tiny_bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("a.png", "d.png"):
        quadrants().save(folder / name)
    for name in ("b.png", "b2.png"):
        PillowImage.new("RGB", (1, 1)).save(folder / name)
    (folder / "c.jpg").write_bytes(jpeg_with_thumbnail()[:-100])
    cut = len(jpeg_with_thumbnail()) - 100
    bundle = Bundle.open(tiny_bundle)
    for gate in (None, 14.0):  # what was too small is nothing to compare the next one with
        stream = Stream(bundle, [open_source(str(folder))], [bundle.table()], StreamOptions(gate=gate))
        assert [frame.file for frame in stream] == ["a.png", "d.png"]
        (count,) = stream.account.sources.values()
        assert (count.read, count.failed) == (2, 3)
        assert {failed.name: failed.reason for failed in count.failures} == {
            "b.png": "expected at least 8x8 pixels, got 1x1 pixels: too small to be labelled",
            "b2.png": "expected at least 8x8 pixels, got 1x1 pixels: too small to be labelled",
            "c.jpg": f"{folder / 'c.jpg'} is a truncated or damaged JPEG ({cut:,} bytes): copy it again",
        }
    assert "b.png is passed over" in caplog.text


@pytest.mark.parametrize("kind", ["one", "folder", "pattern"])
def test_where_no_image_can_be_labelled_the_reason_is_told(tiny_bundle: Path, tmp_path: Path, kind: str) -> None:
    for name in ("a.png", "b.png"):
        PillowImage.new("RGB", (1, 1)).save(tmp_path / name)
    text = str({"one": tmp_path / "a.png", "folder": tmp_path, "pattern": tmp_path / "*.png"}[kind])
    bundle = Bundle.open(tiny_bundle)
    with pytest.raises(SourceError, match="got 1x1 pixels: too small"):
        Stream(bundle, [open_source(text)], [bundle.table()]).run()


def test_an_image_smaller_than_a_region_is_counted(tiny_bundle: Path, tmp_path: Path) -> None:
    quadrants(400, 400).save(tmp_path / "a.png")
    quadrants(40, 40).save(tmp_path / "b.png")
    door = Region("door", ((0.0, 0.0), (0.1, 0.0), (0.1, 0.1), (0.0, 0.1)))
    bundle = Bundle.open(tiny_bundle)
    stream = Stream(bundle, [open_source(str(tmp_path))], [bundle.table()], StreamOptions(regions=(door,)))
    assert [frame.file for frame in stream] == ["a.png"]
    (failed,) = next(iter(stream.account.sources.values())).failures
    assert failed.name == "b.png"
    assert failed.reason.startswith("region 'door' is 4x4 pixels of this 40x40 frame")


# Names ----------------------------------------------------------------------------------------------------------------


def test_names_that_are_no_utf_8_are_written_out(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"b\xe4der")
    folder.mkdir()
    quadrants().save(folder / NOT_UTF_8, "JPEG")
    with open_source(str(folder)) as source:
        assert (source.name, [frame.file for frame in source]) == ("b\\xe4der", ["caf\\xe9.jpg"])
    with open_source(str(folder / NOT_UTF_8)) as source:
        assert source.name == "caf\\xe9.jpg"
    with open_source(str(folder / "*.jpg")) as source:
        assert all(frame.file and frame.file.isascii() for frame in source)
    assert read_image(folder / "caf\\xe9.jpg").shape == (96, 160, 3)  # as records and tables spell it
    (folder / NOT_UTF_8).write_bytes(b"x")
    with pytest.raises(SourceError, match=r"caf\\xe9\.jpg"):
        read_image(folder / NOT_UTF_8)
    assert list_labelled(tmp_path)[1] == ["b\\xe4der"]


@pytest.mark.parametrize(
    "name", ["rtsp:cam.png", "cam ! left.png", "gst:a.png", "http:b.png", "csi:0.png", "[cam].png"]
)
def test_what_is_there_is_a_file_before_it_is_an_address(
    name: str, tmp_path: Path, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    quadrants().save(name)
    with open_source(name) as source:
        assert isinstance(source, ImageSource)
    film = Path(name).with_suffix(".mp4")
    shutil.copy(video, film)
    with open_source(str(film)) as source:
        assert len(list(source)) == 40
    Path(f"{name} folder").mkdir()
    quadrants().save(f"{name} folder/a.png")
    for text in (f"{name} folder", f"{name.replace('[cam]', '?cam?')} fold*/*.png"):
        with open_source(text) as source:
            assert isinstance(source, ImagesSource)


def test_a_text_that_is_too_long_for_a_name_is_no_file() -> None:
    for text in ("a" * 5000, "a\0b"):
        with pytest.raises(SourceError, match="no such file"):
            open_source(text)


def test_accents_are_the_same_however_they_are_written(tmp_path: Path) -> None:
    composed, apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    (tmp_path / apart).mkdir()
    quadrants().save(tmp_path / apart / f"{apart}.png")
    assert read_image(tmp_path / composed / f"{composed}.png").shape == (96, 160, 3)
    assert read_image(tmp_path / apart / f"{composed}.png").shape == (96, 160, 3)
    assert list_labelled(tmp_path)[1] == [composed]
    assert list_images(tmp_path / apart)
    with pytest.raises(SourceError, match="No such file"):
        read_image(tmp_path / composed / "other.png")
    (tmp_path / composed).mkdir()
    quadrants().save(tmp_path / composed / "b.png")
    with pytest.raises(SourceError, match="both called café"):
        list_labelled(tmp_path)
