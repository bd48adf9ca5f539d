"""Corruptions are reproducible, grow with severity, and take any image."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from edgeclip.errors import InputError
from edgeclip.evaluation.robustness.corruptions import SEVERITIES, SUITE, check_severities, corrupt, corruptions_called
from edgeclip.evaluation.robustness.sensor import to_levels, to_light
from edgeclip.evaluation.robustness.views import contact_sheet, middle_square, reduced
from edgeclip.export.photographs import photograph
from edgeclip.runtime.images import Image, read_image

PHOTOGRAPHS = ("chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")
# Nothing is drawn for these: the key does not matter.
FIXED = {"over-exposure", "under-exposure", "defocus-blur", "jpeg"}


@pytest.fixture(scope="module")
def photographs() -> dict[str, Image]:
    return {name: middle_square(photograph(name), 128) for name in PHOTOGRAPHS}


def away(image: Image, other: Image) -> float:
    """Root of the mean squared difference, in levels."""
    return float(np.sqrt(((image.astype(np.float64) - other) ** 2).mean()))


@pytest.mark.parametrize("name", SUITE)
def test_the_same_key_gives_the_same_pixels_and_another_key_others(name: str, photographs: dict[str, Image]) -> None:
    image = photographs["coffee.png"]
    before = image.copy()
    first = corrupt(image, name, 3, key="a")
    np.testing.assert_array_equal(first, corrupt(image, name, 3, key="a"))
    np.testing.assert_array_equal(image, before)
    # Of a few keys one draws something else (the sides to slide or turn to are few).
    others = [corrupt(image, name, 3, key=key) for key in "bcde"]
    assert any(not np.array_equal(first, other) for other in others) is (name not in FIXED)


def test_what_is_drawn_is_drawn_the_same_on_every_machine() -> None:
    """By NumPy's frozen generator: noise of few photons, through tables and sums alone."""
    grey = np.full((16, 16, 3), 128, np.uint8)
    noisy = corrupt(grey, "low-light", 5, key="coffee.png")
    assert hashlib.sha256(noisy.tobytes()).hexdigest()[:16] == "e244c08f3df9e201"


@pytest.mark.parametrize("name", sorted(set(SUITE) - {"distance"}))
def test_a_higher_severity_is_farther_from_the_photograph(name: str, photographs: dict[str, Image]) -> None:
    means = [
        np.mean([away(corrupt(image, name, severity, key=key), image) for key, image in photographs.items()])
        for severity in SEVERITIES
    ]
    assert means[0] > 2
    assert np.all(np.diff(means) > 0)


def test_a_farther_object_is_smaller(photographs: dict[str, Image]) -> None:
    shares = []
    for severity in SEVERITIES:
        frame = corrupt(photographs["chelsea.png"], "distance", severity, key="cat")
        shares.append(float((frame != frame[0, 0]).any(axis=2).mean()))
    assert shares == pytest.approx([size**2 for size in SUITE["distance"].levels], rel=0.1)


@pytest.mark.parametrize("name", SUITE)
@pytest.mark.parametrize("shape", [(1, 1), (1, 37), (33, 5), (97, 131)])
def test_images_of_odd_and_tiny_sizes_keep_their_shape(name: str, shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    for severity in (1, 5):
        found = corrupt(image[:, ::-1], name, severity, key="k")  # a view with negative strides
        assert found.shape == image.shape
        assert found.dtype == np.uint8


def test_light_and_levels_are_inverse() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    np.testing.assert_array_equal(to_levels(to_light(levels)), levels)


@pytest.mark.parametrize(
    ("name", "level", "expected"), [("under-exposure", 1, 92), ("over-exposure", 5, 255), ("under-exposure", 5, 20)]
)
def test_exposure_is_counted_in_stops_of_light(name: str, level: int, expected: int) -> None:
    """Level 128 is 0.2159 of the light; half of that is level 92, a 32nd of it level 19.6."""
    image = np.full((2, 2, 3), 128, np.uint8)
    assert abs(int(corrupt(image, name, level, key="")[0, 0, 0]) - expected) <= 1


def test_noise_of_few_photons_has_the_variance_of_its_model() -> None:
    """Of n electrons collected, n by Poisson and 4 by the readout; white is not clipped below a gain of one."""
    image = np.full((64, 64, 3), 188, np.uint8)  # half of the light
    photons = SUITE["low-light"].levels[1]
    light = to_light(corrupt(image, "low-light", 2, key="white"))
    gain = light.mean() / 0.5
    expected = gain * np.sqrt(0.5 * photons + 4) / photons
    assert float(light.std()) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
    ("names", "message"),
    [(["montion-blur"], "did you mean motion-blur"), (["zzz"], "got 'zzz'$"), (["fog", "fog"], "fog twice")],
)
def test_unknown_corruptions_are_refused_with_the_nearest(names: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        corruptions_called(names)


@pytest.mark.parametrize("severities", [[0], [6], [1, 1]])
def test_unknown_severities_are_refused(severities: list[int]) -> None:
    with pytest.raises(InputError, match="severit"):
        check_severities(severities)


def test_arrays_that_are_no_images_are_refused() -> None:
    for wrong in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(InputError, match=r"expected an \(H, W, 3\) uint8"):
            corrupt(wrong, "fog", 1, key="")  # type: ignore[arg-type]


def test_large_images_are_brought_down_to_one_size(photographs_dir: Path) -> None:
    image = read_image(photographs_dir / "coffee.jpg")  # 400 × 600
    assert reduced(image, 256).shape == (256, 384, 3)
    assert reduced(image, 400) is image


def test_the_contact_sheet_shows_all_of_them(photographs: dict[str, Image]) -> None:
    sheet = contact_sheet(photographs["coffee.png"], key="c", side=32)
    assert sheet.shape == (7 * (32 + 18), 2 * 6 * 32 + 12, 3)
    assert contact_sheet(photographs["coffee.png"], key="c", corruptions=("fog",), side=32).shape == (50, 192, 3)
