"""Which pictures differ, which are there twice or nearly so, and which show nothing."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from edgeclip.prompts import FloatArray
from edgeclip.runtime.images import Image
from edgeclip.runtime.proof.distinct import Different, Look, look_at, pixels_digest


def noise(height: int = 48, width: int = 64, *, seed: int = 0) -> Image:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_a_digest_is_of_the_pixels_and_of_their_shape() -> None:
    pixels = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    assert pixels_digest(pixels) == hashlib.sha256(b"(2, 3, 3)" + bytes(range(18))).hexdigest()
    assert pixels_digest(pixels.reshape(3, 2, 3)) != pixels_digest(pixels)
    turned = np.asfortranarray(pixels)
    assert pixels_digest(turned) == pixels_digest(pixels)
    assert look_at(pixels).digest == pixels_digest(pixels)


def test_a_direction_is_of_the_mean_colours_of_16_by_16_cells_less_their_mean() -> None:
    pixels = noise(32, 64)
    cells = pixels.astype(np.float64).reshape(16, 2, 16, 4, 3).mean(axis=(1, 3)).ravel()
    expected = (cells - cells.mean()) / np.linalg.norm(cells - cells.mean())
    direction = look_at(pixels).direction
    assert direction is not None
    assert (direction.shape, direction.dtype) == ((768,), np.float32)
    np.testing.assert_allclose(direction, expected, atol=2e-3)  # cells are rounded to whole grey levels


def test_another_brightness_changes_no_direction() -> None:
    pixels = noise() // 2
    assert look_at(pixels).direction == pytest.approx(look_at(pixels + 100).direction, abs=1e-5)


def halves(low: int, high: int) -> Image:
    """The left half of one grey, the right half of another."""
    pixels = np.full((32, 32, 3), low, np.uint8)
    pixels[:, 16:] = high
    return pixels


def pixelwise(low: int, high: int, *, channel: slice = slice(None)) -> Image:
    """Two greys from pixel to pixel, so that cells hardly differ."""
    pixels = np.full((64, 64, 3), low, np.uint8)
    pixels[::2, :, channel] = high
    return pixels


@pytest.mark.parametrize(
    ("pixels", "flat"),
    [
        (np.zeros((20, 30, 3), np.uint8), True),
        (np.full((20, 30, 3), 255, np.uint8), True),
        (halves(100, 106), True),
        (halves(100, 108), True),  # 8 between cells, and 4 from their mean
        (halves(100, 109), False),
        (pixelwise(100, 108), True),
        (pixelwise(100, 110), None),  # 5 from the mean in each pixel, and no cell differs: there is no direction
        (pixelwise(100, 108, channel=slice(1)), True),
        (np.random.default_rng(0).integers(0, 4, (400, 600, 3), np.uint8), True),
        (noise(), False),
    ],
)
def test_what_is_of_one_colour_has_no_direction(pixels: Image, flat: bool | None) -> None:
    assert (look_at(pixels).direction is None) is (flat is not False)


def test_one_coloured_half_is_a_picture() -> None:
    """The channels are looked at one by one: of grey on an equally light red there is something to be seen."""
    pixels = np.full((32, 32, 3), 100, np.uint8)
    pixels[:, 16:, 2] = 120
    assert look_at(pixels).direction is not None


def at(*degrees: float, size: int = 768) -> list[Look]:
    """Directions in one plane, each with a digest of its own."""
    looks = []
    for degree in degrees:
        direction = np.zeros(size, np.float32)
        direction[:2] = np.cos(np.radians(degree)), np.sin(np.radians(degree))
        looks.append(Look(f"at {degree}", direction))
    return looks


def test_pictures_are_new_near_the_first_like_them_or_the_same() -> None:
    different = Different(near=float(np.cos(np.radians(10))))
    first, second, near, between, third = at(0, 15, -9, 7.5, 80)
    assert len(different) == 0
    assert [different.add(look) for look in (first, second)] == [("new", 0), ("new", 1)]
    assert different.add(near) == ("near", 0)
    assert different.add(between) == ("near", 0)  # like both
    assert different.add(third) == ("new", 2)
    assert different.add(Look("dark", None)) == ("flat", -1)
    assert different.add(Look("dark", None)) == ("flat", -1)
    # What was seen before is the same as it, and known by the number of what it was like.
    assert [different.add(look) for look in (near, second, first, third)] == [
        ("same", 0),
        ("same", 1),
        ("same", 0),
        ("same", 2),
    ]
    assert different.add(at(-18)[0]) == ("new", 3)  # near to what was near only
    assert len(different) == 4


def test_from_its_cosine_on_a_picture_is_near() -> None:
    (look,) = at(0)
    different = Different(near=1.0)
    assert different.add(look) == ("new", 0)
    assert different.add(Look("another file", look.direction)) == ("near", 0)


def test_by_default_pictures_count_as_one_from_a_cosine_of_97_in_a_hundred() -> None:
    for degree, verdict in ((13.9, "near"), (14.3, "new")):  # the cosine of 14.07 degrees
        different = Different()
        assert [different.add(look)[0] for look in at(0, degree)] == ["new", verdict]


def test_there_may_be_any_number_of_pictures() -> None:
    different = Different()
    rows: FloatArray = np.eye(768, dtype=np.float32)
    for number in range(200):
        assert different.add(Look(str(number), rows[number])) == ("new", number)
    for number in (0, 63, 64, 127, 128, 199):
        assert different.add(Look(f"again {number}", rows[number])) == ("near", number)
    assert len(different) == 200
