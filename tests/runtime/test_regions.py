"""Tiles, boxes and polygons are read, checked, cut out and masked as they were drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from skimage import data as skimage_data

from edgeclip.errors import InputError
from edgeclip.runtime.regions import Region, crop, load_regions, mask, parse_tiles, whole

TRIANGLE = Region("triangle", ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)))


def written(folder: Path, content: Any) -> Path:
    path = folder / "regions.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_tiles_cover_the_frame_once() -> None:
    tiles = parse_tiles("3x2")
    assert [tile.name for tile in tiles] == ["tile 1,1", "tile 2,1", "tile 3,1", "tile 1,2", "tile 2,2", "tile 3,2"]
    covered = np.zeros((101, 203), int)
    for tile in tiles:
        covered_here = np.zeros((101, 203, 3), np.uint8)
        view = crop(covered_here, tile)
        assert isinstance(view, np.ndarray)
        view[:] = 1
        covered += covered_here[..., 0]
    assert (covered == 1).all()


@pytest.mark.parametrize("text", ["", "3", "0x2", "3x", "3x2x1", "-1x2", "a x b"])
def test_tiles_of_another_form_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="columns x rows"):
        parse_tiles(text)


def test_too_many_tiles_are_refused() -> None:
    with pytest.raises(InputError, match="at most 256"):
        parse_tiles("100x100")


def test_boxes_and_polygons_are_read(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        [
            {"name": "door", "box": [0.1, 0.2, 0.5, 0.9]},
            {"name": "way", "polygon": [[0, 0], [960, 0], [480, 540]], "width": 1920, "height": 1080},
        ],
    )
    door, way = load_regions(path)
    assert (door.name, door.box, door.is_box) == ("door", (0.1, 0.2, 0.5, 0.9), True)
    assert (way.box, way.is_box) == ((0.0, 0.0, 0.5, 0.5), False)
    for_all = {"width": 100, "height": 50, "regions": [{"name": "a", "box": [0, 0, 100, 50]}]}
    assert load_regions(written(tmp_path, for_all))[0].box == whole().box


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "no list of regions"),
        ({"a": 1}, "no list of regions"),
        ([{"name": "a", "bbox": [0, 0, 1, 1]}], "no list of regions"),
        ([{"name": "a", "box": [0, 0, 1]}], "no list of regions"),
        ([{"box": [0, 0, 1, 1]}], "no list of regions"),
        ([], "1 to 256 regions"),
        ([{"name": " ", "box": [0, 0, 1, 1]}], "expected a name"),
        ([{"name": "a"}], "neither"),
        ([{"name": "a", "box": [0, 0, 1, 1], "polygon": [[0, 0], [1, 0], [0, 1]]}], "both"),
        ([{"name": "a", "box": [0.5, 0, 0.5, 1]}], "x0 < x1"),
        ([{"name": "a", "box": [0, 0, 640, 480]}], "for pixels give width and height"),
        ([{"name": "a", "box": [0, 0, 641, 480], "width": 640, "height": 480}], "inside of 640x480"),
        ([{"name": "a", "box": [0, 0, 1, 1], "width": 640}], "width and height"),
        ([{"name": "a", "box": [0, 0, 1, 1], "width": 0, "height": 0}], "above 0, got 0.0 and 0.0"),
        ([{"name": "a", "polygon": [[0, 0], [1, 1]]}], "at least 3 corners"),
        ([{"name": "a", "polygon": [[0, 0], [0.5, 0.5], [1, 1]]}], "some area"),
        ([{"name": "a", "box": [0, 0, 1, 1]}] * 2, "twice"),
    ],
)
def test_mistakes_in_a_file_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_regions(written(tmp_path, content))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        load_regions(tmp_path / "absent.json")


def test_a_crop_of_an_array_is_a_view() -> None:
    image = skimage_data.astronaut()
    cut = crop(image, Region("r", ((0.25, 0.5), (0.75, 0.5), (0.75, 1.0), (0.25, 1.0))))
    assert isinstance(cut, np.ndarray)
    assert np.shares_memory(cut, image)
    np.testing.assert_array_equal(cut, image[256:, 128:384])


@pytest.mark.parametrize("kind", ["yuv420p", "yuvj420p", "yuv422p", "yuv444p", "nv12", "gray", "yuv420p10le", "bgr24"])
@pytest.mark.parametrize("size", [(512, 512), (328, 248)])
def test_a_crop_of_a_video_frame_shows_what_a_crop_of_the_picture_does(kind: str, size: tuple[int, int]) -> None:
    width, height = size
    picture = np.ascontiguousarray(skimage_data.astronaut()[:height, :width])
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=kind)
    region = Region("r", ((0.25, 0.25), (0.75, 0.25), (0.75, 0.75), (0.25, 0.75)))
    cut = crop(frame, region)
    shown = cut.to_ndarray(format="rgb24") if isinstance(cut, av.VideoFrame) else cut
    even = ~1 if isinstance(cut, av.VideoFrame) else ~0  # so that chroma samples stay whole
    left, top = round(width / 4) & even, round(height / 4) & even
    whole_frame = frame.to_ndarray(format="rgb24")
    expected = whole_frame[top : top + shown.shape[0], left : left + shown.shape[1]]
    assert abs(shown.shape[0] - height / 2) <= 2
    assert abs(shown.shape[1] - width / 2) <= 2
    inner = (slice(2, -2), slice(2, -2))  # at the border the chroma of what was cut off no longer counts
    assert np.abs(shown[inner].astype(int) - expected[inner]).mean() < 1.0


def test_the_whole_of_a_video_frame_is_the_frame() -> None:
    frame = av.VideoFrame(64, 48, "yuv420p")
    assert crop(frame, whole()) is frame


def test_a_crop_that_is_too_small_names_its_region() -> None:
    tiny = Region("keyhole", ((0.0, 0.0), (0.01, 0.0), (0.01, 0.01), (0.0, 0.01)))
    with pytest.raises(InputError, match="'keyhole' is 5x5"):
        crop(skimage_data.astronaut(), tiny)


def test_what_lies_outside_of_a_polygon_is_filled() -> None:
    small = np.full((32, 32, 3), 10, np.uint8)
    masked = mask(small, TRIANGLE, (1, 2, 3))
    assert masked[2, 2].tolist() == [10, 10, 10]
    assert masked[30, 30].tolist() == [1, 2, 3]
    assert 0.45 < (masked[..., 0] == 10).mean() < 0.55
    assert (small == 10).all()
    assert mask(small, whole()) is small
