"""Images, folders, videos and cameras become frames; what cannot be read is refused or counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage

from edgeclip.errors import InputError, SourceError
from edgeclip.runtime.images import read_image
from edgeclip.runtime.source import limited, open_source
from tests.conftest import shared


def test_an_image_is_one_frame(photographs_dir: Path) -> None:
    with open_source(str(photographs_dir / "chelsea.jpg")) as source:
        frames = list(source)
    assert len(frames) == source.total == 1
    assert frames[0].rgb().shape == (300, 451, 3)


def test_a_folder_gives_its_images_by_name(photographs_dir: Path) -> None:
    with open_source(str(photographs_dir)) as source:
        assert [frame.file for frame in source] == sorted(path.name for path in photographs_dir.iterdir())


def test_a_video_gives_every_frame_with_its_time(video: Path) -> None:
    with open_source(str(video)) as source:
        frames = [(frame.index, frame.time_s, frame.rgb().shape) for frame in source]
    assert len(frames) == 40
    assert frames[7] == (7, 0.35, (240, 320, 3))
    assert source.fps == 20


def test_real_videos_have_the_frames_they_should() -> None:
    with open_source(str(shared("videos", "bottle-detection.mp4"))) as source:
        assert sum(1 for _ in source) == 1189
    assert source.failed == 0


def test_a_rotated_video_is_turned_upright(video: Path, tmp_path: Path) -> None:
    import av

    rotated = tmp_path / "rotated.mov"
    with av.open(str(video)) as original, av.open(str(rotated), "w") as container:
        stream = container.add_stream_from_template(original.streams.video[0])
        for packet in original.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                container.mux(packet)
    # The display matrix lies in the track header: a quarter turn, as a phone held upright writes it.
    data = rotated.read_bytes()
    upright = b"".join(value.to_bytes(4, "big") for value in (0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000))
    turned = b"".join(
        value.to_bytes(4, "big", signed=True) for value in (0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000)
    )
    header = data.index(b"tkhd")
    at = data.index(upright, header)
    rotated.write_bytes(data[:at] + turned + data[at + len(turned) :])
    with open_source(str(video)) as plain, open_source(str(rotated)) as source:
        expected = np.rot90(next(iter(plain)).rgb(), -1)
        np.testing.assert_array_equal(next(iter(source)).rgb(), expected)


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_a_truncated_video_gives_what_it_has_or_is_refused(video: Path, tmp_path: Path, kept: float) -> None:
    data = video.read_bytes()
    path = tmp_path / "cut.mp4"
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(SourceError, match=r"cut\.mp4"), open_source(str(path)) as source:
        list(source)


def test_a_damaged_video_counts_what_does_not_decode(video: Path, tmp_path: Path) -> None:
    data = bytearray(video.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 200] = bytes(200)
    path = tmp_path / "damaged.mp4"
    path.write_bytes(data)
    with open_source(str(path)) as source:
        frames = sum(1 for _ in source)
    assert 1 <= frames <= 40


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "absent.mp4", "no such file"),
        (lambda folder: _write(folder / "text.mp4", b"hello"), "expected an image or a video"),
        (lambda folder: _write(folder / "empty.mp4", b""), "expected an image or a video"),
        (lambda folder: _write(folder / "text.png", b"hello"), "expected an image"),
        (lambda folder: _write(folder / "empty.jpg", b""), "expected an image"),
        (lambda folder: folder, "expected images in"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path: Path, make, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        open_source(str(make(tmp_path)))


def _write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_a_sound_file_is_no_video(tmp_path: Path) -> None:
    import wave

    path = tmp_path / "sound.wav"
    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(16000))
    with pytest.raises(SourceError, match="no video stream"):
        open_source(str(path))


def test_a_camera_that_is_not_there_is_refused() -> None:
    with pytest.raises(SourceError, match="camera 97 cannot be opened"):
        open_source("97")


def test_a_truncated_jpeg_is_refused_alone_and_counted_in_a_folder(photographs_dir: Path, tmp_path: Path) -> None:
    data = (photographs_dir / "coffee.jpg").read_bytes()
    cut = _write(tmp_path / "cut.jpg", data[: len(data) // 2])
    with pytest.raises(SourceError, match=r"cut\.jpg"):
        open_source(str(cut))
    _write(tmp_path / "whole.jpg", data)
    with open_source(str(tmp_path)) as source:
        assert [frame.file for frame in source] == ["whole.jpg"]
    assert source.failed == 1
    (tmp_path / "whole.jpg").unlink()
    with pytest.raises(SourceError, match="none of the 1 images"), open_source(str(tmp_path)) as source:
        list(source)


ODD_IMAGES = {
    "grey.png": PillowImage.new("L", (20, 10), 128),
    "grey16.png": PillowImage.fromarray(np.full((10, 20), 0x8080, np.uint16)),
    "alpha.png": PillowImage.new("RGBA", (20, 10), (128, 128, 128, 0)),
    "palette.png": PillowImage.new("RGB", (20, 10), (128, 128, 128)).quantize(4),
    "cmyk.jpg": PillowImage.new("CMYK", (20, 10), (0, 0, 0, 127)),
    "one.png": PillowImage.new("RGB", (1, 1), (128, 128, 128)),
}


@pytest.mark.parametrize("name", ODD_IMAGES)
def test_odd_images_become_eight_bit_rgb(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    ODD_IMAGES[name].save(path)
    image = read_image(path)
    assert (image.dtype, image.ndim, image.shape[2]) == (np.uint8, 3, 3)
    np.testing.assert_allclose(image, 128, atol=2)


def test_the_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = PillowImage.new("RGB", (20, 10))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").shape == (20, 10, 3)


def test_the_limit_is_kept_and_checked(video: Path) -> None:
    with open_source(str(video)) as source:
        assert len(list(limited(source, 5))) == 5
    with open_source(str(video)) as source, pytest.raises(InputError, match="--limit"):
        list(limited(source, 0))
