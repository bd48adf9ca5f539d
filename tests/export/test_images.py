"""Images that prove: different photographs, none of them calibrated on, split by what is in them and not by name."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgeclip.bundle import Bundle
from edgeclip.errors import InputError, SourceError
from edgeclip.export.images import ImageSplit, crops_to_calibrate_on, split_images, to_calibrate_on
from edgeclip.runtime.images import Image, read_image, write_image
from edgeclip.runtime.preprocess.preprocess import Preprocessor
from edgeclip.runtime.proof.basis import CalibratedOn
from edgeclip.runtime.proof.distinct import Different, look_at, pixels_digest
from edgeclip.runtime.proof.golden import GoldenImages, golden_files
from edgeclip.spec import EncoderSpec


def picture(number: int, *, height: int = 48, width: int = 64) -> Image:
    """A picture of a few soft patches of colour, unlike that of any other number."""
    patches = np.random.default_rng(number).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return np.ascontiguousarray(cv2.resize(patches, (width, height), interpolation=cv2.INTER_CUBIC))


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder of pictures; files as name → number of the picture, or pixels."""

    def make(name: str, **files: int | Image) -> Path:
        for file, content in files.items():
            path = tmp_path / name / file.replace("__", "/").replace("_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            write_image(path, picture(content) if isinstance(content, int) else content)
        return tmp_path / name

    return make


def many(count: int, *, first: int = 0, suffix: str = "png", below: str = "") -> dict[str, int]:
    return {f"{below}p{number}_{suffix}": number for number in range(first, first + count)}


def digests(split: ImageSplit) -> tuple[set[str], set[str], set[str]]:
    evaluated = {pixels_digest(read_image(path)) for path, _ in split.evaluation}
    return set(split.golden.digests), set(split.calibration.digests), evaluated


# The split


def test_a_folder_is_split_into_what_is_proved_on_and_what_is_calibrated_on(folder: Callable[..., Path]) -> None:
    split = split_images(folder("a", **many(24)), golden=10, calibration=8)
    golden, calibration, _ = digests(split)
    assert (len(golden), len(calibration), split.evaluation) == (10, 8, ())
    assert not golden & calibration
    assert not split.told
    for part in (split.golden, split.calibration):
        assert [pixels_digest(pixels) for _, pixels in part] == list(part.digests)
        assert all(np.array_equal(pixels, read_image(folder("a") / name)) for name, pixels in part)


def test_the_split_follows_from_the_pixels_and_the_seed_and_not_from_names(folder: Callable[..., Path]) -> None:
    names = folder("names", **many(12))
    others = folder("others", **{f"deep__q{20 - number}_bmp": number for number in range(12)})
    one, two = (split_images(each, golden=6, calibration=3) for each in (names, others))
    assert digests(one) == digests(two)
    assert one.golden.digests == two.golden.digests
    assert digests(split_images(names, golden=6, calibration=3, seed=1)) != digests(one)


@pytest.mark.parametrize(("count", "parts"), [(3, (2, 1)), (9, (6, 3)), (20, (10, 10)), (40, (10, 20))])
def test_of_few_images_two_in_three_are_to_prove_on(
    count: int, parts: tuple[int, int], folder: Callable[..., Path]
) -> None:
    split = split_images(folder("a", **many(count)), golden=10, calibration=20)
    assert (len(split.golden), len(split.calibration)) == parts
    said = [f"photographs to prove on: {parts[0]} of 10 asked for"] * (parts[0] < 10)
    said += [f"photographs to calibrate on: {parts[1]} of 20 asked for"] * (parts[1] < 20)
    assert list(split.told) == said


def test_where_nothing_is_calibrated_all_are_to_prove_on(folder: Callable[..., Path]) -> None:
    split = split_images(folder("a", **many(9)), golden=8, calibration=0)
    assert (len(split.golden), len(split.calibration)) == (8, 0)


def test_arrays_are_split_as_files_are(folder: Callable[..., Path]) -> None:
    split = split_images([picture(number) for number in range(9)])
    assert digests(split) == digests(split_images(folder("a", **many(9))))
    assert {name for name, _ in split.golden} < {f"image {number}" for number in range(1, 10)}


def test_one_folder_a_class_leaves_half_to_evaluate_on(folder: Callable[..., Path]) -> None:
    data = folder("data", **many(10, below="cat__"), **many(10, first=10, below="dog__"))
    split = split_images(data, golden=6, calibration=6)
    golden, calibration, evaluated = digests(split)
    assert (len(golden), len(calibration), len(evaluated)) == (6, 4, 10)
    assert not golden & calibration | golden & evaluated | calibration & evaluated
    assert {label for _, label in split.evaluation} == {"cat", "dog"}
    assert all(path.parent.name == label for path, label in split.evaluation)


def test_a_picture_in_two_classes_is_not_evaluated_on(folder: Callable[..., Path]) -> None:
    data = folder("data", **many(12, below="cat__"), **many(12, first=11, below="dog__"))
    for seed in range(4):
        split = split_images(data, golden=2, calibration=0, seed=seed)
        taken = pixels_digest(picture(11)) in split.golden.digests
        assert pixels_digest(picture(11)) not in digests(split)[2]
        assert any("several classes" in said for said in split.told) is not taken


def test_frames_of_a_film_that_are_evaluated_on_are_told(folder: Callable[..., Path]) -> None:
    film = picture(50, height=480, width=640)
    frames = {f"cat__f{number}_png": np.roll(film, 4 * number, axis=1) for number in range(3)}
    data = folder("data", **many(9, below="cat__"), **many(9, first=9, below="dog__"), **frames)
    seen = set()
    for seed in range(8):
        split = split_images(data, golden=6, calibration=0, seed=seed)
        evaluated = sum(path.name.startswith("f") for path, _ in split.evaluation)
        count = len(split.evaluation)
        assert [said for said in split.told if "nearly" in said] == (
            [
                f"2 of {count} to evaluate on are nearly the same as another, as frames of a film are: each counts "
                "once where a loss is bounded"
            ]
            if evaluated
            else ["2 of 21 are nearly the same as another, as frames of a film are: left out"]
        )
        seen.add(evaluated)
    assert seen == {0, 3}


# What cannot serve is counted and told


def test_what_is_there_twice_or_nearly_counts_once(
    folder: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    film = picture(50, height=480, width=640)
    data = folder(
        "a",
        **many(6),
        **many(2, suffix="bmp"),  # 0 and 1 again, in another container
        large_png=cv2.resize(picture(2), (640, 480), interpolation=cv2.INTER_CUBIC),
        lossy_jpg=3,
        f1_png=film,
        f2_png=np.roll(film, 4, axis=1),
        f3_png=np.roll(film, 8, axis=1),
    )
    with caplog.at_level(logging.WARNING):
        split = split_images(data, golden=4, calibration=3)
    assert (len(split.golden), len(split.calibration)) == (4, 3)
    assert set(split.told) == {
        "2 of 13 are the same as another: left out",
        "4 of 13 are nearly the same as another, as frames of a film are: left out",
    }
    assert all(f"images: {said}" in caplog.messages for said in split.told)


def test_frames_of_one_colour_are_left_out_and_noise_does_not_hide_them(folder: Callable[..., Path]) -> None:
    noise = np.random.default_rng(0).integers(0, 6, (48, 64, 3), dtype=np.uint8)  # a covered lens
    lamp = noise.copy()
    lamp[20:26, 30:36] = 255
    fine = np.random.default_rng(1).integers(0, 256, (512, 512, 3), dtype=np.uint8)  # its means are all alike
    black = np.zeros((48, 64, 3), np.uint8)
    data = folder("a", **many(3), black_png=black, white_png=black + 255, noise_png=noise, lamp_png=lamp, fine_png=fine)
    split = split_images(data, golden=5, calibration=0)
    assert len(split.golden) == 5
    assert split.told == ("3 of 8 are of one colour: left out",)


def test_what_cannot_be_read_is_counted_and_named(
    folder: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    data = folder("a", **many(4))
    (data / "cut.png").write_bytes((data / "p0.png").read_bytes()[:200])
    (data / "empty.jpg").touch()
    (data / ".hidden.png").write_bytes(b"no image")
    (data / ".thumbnails").mkdir()
    (data / ".thumbnails" / "p0.png").write_bytes(b"no image")
    split = split_images(data, golden=4, calibration=0)
    assert split.told == ("2 of 6 cannot be read (cut.png, empty.jpg)",)
    assert sum("passed over" in said and str(data) in said for said in caplog.messages) == 2  # each with its reason


def test_what_ranges_were_measured_on_is_not_proved_on(folder: Callable[..., Path]) -> None:
    data = folder("a", **many(10))
    resized = cv2.resize(picture(4), (100, 80), interpolation=cv2.INTER_CUBIC)
    split = split_images(data, golden=10, calibration=0, calibrated=[picture(2), picture(3), resized, picture(90)])
    assert len(split.golden) == 7
    assert not {pixels_digest(picture(number)) for number in (2, 3, 4)} & set(split.golden.digests)
    assert split.told == (
        "3 of 10 are among the calibration images, or nearly the same as one: left out",
        "photographs to prove on: 7 of 10 asked for",
    )


def test_one_class_and_images_outside_of_the_classes_are_told(folder: Callable[..., Path]) -> None:
    one = split_images(folder("one", **many(6, below="cat__")), golden=4, calibration=2)
    assert one.told == ("all are of one class, cat: they are taken as not labelled",)
    assert not one.evaluation
    mixed = folder("mixed", **many(3, below="cat__"), **many(3, first=3, below="dog__"), **many(1, first=6))
    split = split_images(mixed, golden=4, calibration=2)
    assert split.told[0] == "1 of 7 lie in no class folder: all are taken as not labelled"
    assert not split.evaluation


@pytest.mark.parametrize(
    ("files", "calibration", "match"),
    [
        ({"a_png": 1}, 0, r"at least 2 different photographs, better 64, got 1: give more"),
        ({"a_png": 1, "b_png": 1, "c_bmp": 1}, 0, r"got 1; 2 of 3 are the same as another: left out: give more"),
        ({"a_png": 1, "b_png": 2}, 128, r"at least 3 different photographs, better 192, got 2: give more"),
        ({"a_png": np.zeros((9, 9, 3), np.uint8), "b_png": 1}, 0, "got 1; 1 of 2 is of one colour"),
        ({"x__a_png": 1, "y__b_png": 2}, 0, r"at least 3 different photographs, better 64 and others to evaluate on"),
    ],
)
def test_too_few_are_refused_with_how_many_there_should_be(
    files: dict[str, int | Image], calibration: int, match: str, folder: Callable[..., Path]
) -> None:
    with pytest.raises(SourceError, match=match):
        split_images(folder("a", **files), calibration=calibration)


def test_a_folder_without_an_image_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(SourceError, match="expected images below"):
            split_images(path)


def test_a_file_that_is_another_one_by_now_is_refused(folder: Callable[..., Path]) -> None:
    data = folder("a", **many(4))
    split = split_images(data, golden=4, calibration=0)
    write_image(data / split.golden[0][0], picture(99))
    with pytest.raises(SourceError, match="was changed while it was read"):
        split.golden[0]


# Images to calibrate on beside a golden set that is there


@pytest.fixture(scope="module")
def encoder() -> EncoderSpec:
    return Bundle.open("starter").manifest.encoder


def golden_set(encoder: EncoderSpec, *numbers: int, hashed: bool = True) -> GoldenImages:
    images = [picture(number) for number in numbers]
    digests = tuple(map(pixels_digest, images)) if hashed else tuple(f"{number:064x}" for number in numbers)
    rows = np.ones((len(images), encoder.embedding_dim), np.float32)
    return GoldenImages(
        tuple(map(str, numbers)), golden_files(images, encoder.preprocess), rows, rows[:0], digests, "images"
    )


@pytest.mark.parametrize("hashed", [True, False])
def test_golden_images_are_not_calibrated_on_whether_or_not_their_digests_are_known(
    encoder: EncoderSpec, hashed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    golden = golden_set(encoder, 1, 2, 3, hashed=hashed)
    black = np.zeros((48, 64, 3), np.uint8)
    given = [picture(number) for number in (0, 1, 2, 4, 4)] + [black]
    inputs, of = to_calibrate_on(given, encoder, golden=golden)
    assert of == CalibratedOn(
        origin="images", photographs=2, digests=tuple(pixels_digest(picture(number)) for number in (0, 4))
    )
    preprocess = Preprocessor(encoder.preprocess)
    np.testing.assert_array_equal(inputs, np.stack([preprocess(picture(0)), preprocess(picture(4))]))
    assert caplog.messages == [
        "images: 2 of 6 calibration images are golden images, or nearly: left out",
        "images: 1 of 6 calibration images is of one colour: left out",
        "images: 1 of 6 calibration images is there twice: left out",
    ]


def test_a_calibration_set_that_is_all_golden_is_refused(encoder: EncoderSpec) -> None:
    with pytest.raises(SourceError, match=r"none that is left of 2 \(2 of 2 calibration images are golden images"):
        to_calibrate_on([picture(1), picture(2)], encoder, golden=golden_set(encoder, 1, 2, 3))


def test_crops_count_as_the_photographs_that_they_are_of(encoder: EncoderSpec) -> None:
    photos = [(str(number), picture(number)) for number in range(3)]
    inputs, of = crops_to_calibrate_on(photos, encoder, origin="stand-ins", count=10)
    assert len(inputs) == 10
    assert (of.origin, of.photographs) == ("stand-ins", 3)
    assert of.digests == tuple(pixels_digest(pixels) for _, pixels in photos)


def test_pictures_that_differ_are_told_from_those_that_nearly_do_not() -> None:
    different = Different()
    verdicts = [different.add(look_at(picture(number))) for number in range(200)]
    assert verdicts == [("new", number) for number in range(200)]
    nearly = np.clip(picture(7).astype(int) + 12, 0, 255).astype(np.uint8)  # a little brighter
    assert different.add(look_at(nearly)) == ("near", 7)
    assert different.add(look_at(nearly)) == ("same", 7)
    assert different.add(look_at(picture(7)[:, ::-1])) == ("new", 200)


@pytest.mark.parametrize("counts", [{"golden": -1}, {"calibration": -5}])
def test_numbers_below_nothing_are_refused(counts: dict[str, int]) -> None:
    with pytest.raises(InputError, match="of 0 or more images, got"):
        split_images([np.zeros((16, 16, 3), np.uint8)], **counts)


def test_a_picture_counts_as_the_first_that_it_is_like() -> None:
    """Between two that differ: however much nearer it is to the second, the first is not proved on beside it."""
    ramp = np.add.outer(np.arange(64), np.arange(64))[..., None].repeat(3, 2)
    first = (ramp * 1.5).astype(np.uint8)
    second = first.copy()
    second[:, 40:] = second[:, 40:] // 2 + 40
    between = (0.35 * first + 0.65 * second).astype(np.uint8)
    directions = [look_at(picture).direction for picture in (first, second, between)]
    near = directions[2] @ directions[0]
    assert directions[0] @ directions[1] < near < directions[2] @ directions[1]
    different = Different(near - 1e-3)
    assert [different.add(look_at(picture)) for picture in (first, second)] == [("new", 0), ("new", 1)]
    assert different.add(look_at(between)) == ("near", 0)
