"""Calibration images are different ones of every exposure and time, chosen in bounded memory, verifiably."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from skimage import data as skimage_data
from typer.testing import CliRunner

from edgeclip import Bundle
from edgeclip.calibration.choice.bins import exposure_of
from edgeclip.calibration.choice.choose import LEAST_POOL, ChooseOptions, Pool, choose, choose_images, distances
from edgeclip.calibration.choice.chosen_set import CalibrationSet, ChosenImages, FootageSample, read_record, read_sample
from edgeclip.calibration.choice.drift import energy_test, measure_drift
from edgeclip.calibration.choice.footage import EmbeddedFrame, Footage, FootageFrame, FootageSampler, embedded
from edgeclip.calibration.images import find_images, sample_images
from edgeclip.cli import app
from edgeclip.errors import IntegrityError, SourceError
from edgeclip.evaluation.calibration_images import PAGE, calibrate_images, compare_footage
from edgeclip.prompts import FloatArray, unit_rows
from edgeclip.runtime.encoder import ImageEncoder
from edgeclip.runtime.images import Image
from tests.chromium import TEXT, Chromium

RATE = 5
Exact = dict[str, bytes]


def film(path: Path, frames: Sequence[Image], first: int = 0) -> Path:
    """A video at 5 frames/s, whose clock begins at ``first``, in frames."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "16"})
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        for index, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = first + index, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def walk(photograph: Image, count: int, *, seed: int = 0) -> list[Image]:
    """Views of a photograph that jump from place to place, as of a camera that is turned."""
    generator = np.random.default_rng(seed)
    height, width = photograph.shape[:2]
    places = zip(generator.integers(0, height - 120, count), generator.integers(0, width - 160, count), strict=True)
    return [photograph[top : top + 120, left : left + 160] for top, left in places]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 s: 20 s of one view that does not move, 48 s of others, 4 s in the dark, 8 s more."""
    views = walk(skimage_data.astronaut(), 290)
    dark = [view // 8 for view in views[260:280]]
    return film(tmp_path_factory.mktemp("site") / "site.mp4", [views[0]] * 100 + views[:240] + dark + views[240:280])


@pytest.fixture
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


@pytest.fixture(scope="module")
def made(_tiny_bundle: Path, site: Path) -> Path:
    folder = site.parent / "calib"
    calibrate_images(Bundle.open(_tiny_bundle), [str(site)], folder, ChooseOptions(count=40))
    return folder


@pytest.fixture
def calib(made: Path, tmp_path: Path) -> Path:
    """A copy, free to be damaged, of a set chosen from the site."""
    shutil.copytree(made, tmp_path / "calib")
    return tmp_path / "calib"


def contents(folder: Path) -> Exact:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def look(row: FloatArray, number: int, *, level: float = 100, moment: str = "06–09 h") -> EmbeddedFrame:
    """A changed frame of a source that is no file, as ``embedded`` gives it; its cells are like no other's."""
    grey = np.full((8, 8, 3), level, np.uint8)
    cells = np.full((4, 4), 5.0 * number, np.float32)
    return EmbeddedFrame(
        FootageFrame(0, number, float(number), grey, moment), row, cells, exposure_of(grey), changed=True
    )


def random_rows(count: int, width: int = 16, seed: int = 5) -> FloatArray:
    return unit_rows(np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32))


# ---- the pool


def test_the_pool_stays_bounded_and_keeps_what_is_rare(tmp_path: Path) -> None:
    """Of 400 frames three are of another hour: all are kept, and each of the others with the same chance."""
    early = []
    for seed in range(12):
        folder = tmp_path / str(seed)
        folder.mkdir()
        pool = Pool(40, folder, seed)
        for number, row in enumerate(random_rows(400)):
            pool.offer(look(row, number, moment="21–24 h" if number in (50, 200, 350) else "06–09 h"))
            assert len(pool.members) <= 40
        frames = {member.look.shot.frame for member in pool.members}
        assert len(frames) == 40
        assert {50, 200, 350} <= frames
        assert {path.name for path in folder.rglob("*.png")} == {member.place.name for member in pool.members}
        early.append(sum(frame < 200 for frame in frames))
    assert 15 < np.mean(early) < 25


def test_a_frame_is_a_near_duplicate_only_if_both_embedding_and_luma_are_alike(tmp_path: Path) -> None:
    pool = Pool(40, tmp_path, 0)
    row, other = random_rows(2)
    pool.offer(look(row, 0))
    pool.offer(look(other, 0))  # the same luma
    pool.offer(look(row, 9))  # the same embedding
    assert (len(pool.members), pool.near_duplicates) == (3, 0)
    pool.offer(look(unit_rows((row + 0.02 * other)[None])[0], 0))
    assert (len(pool.members), pool.near_duplicates) == (3, 1)


# ---- the choice


def names_of(rows: FloatArray) -> list[str]:
    return [hashlib.sha256(row.tobytes()).hexdigest() for row in rows]


def test_every_stratum_is_represented_and_the_choice_does_not_depend_on_the_order() -> None:
    rows = random_rows(320)
    strata = [("rare" if number in (7, 11) else "usual", f"part {number % 3}") for number in range(len(rows))]
    first = [index for index, _ in choose(rows, strata, names_of(rows), 16)]
    assert {strata[index] for index in first} == set(strata)
    assert len(set(first)) == 16
    turned = np.random.default_rng(1).permutation(len(rows))
    again = choose(rows[turned], [strata[n] for n in turned], [names_of(rows)[n] for n in turned], 16)
    assert [int(turned[index]) for index, _ in again] == first


def test_shares_follow_what_there_is() -> None:
    rows = random_rows(130)
    strata = [("a", "")] * 80 + [("b", "")] * 48 + [("c", "")] * 2
    taken = [strata[index][0] for index, _ in choose(rows, strata, names_of(rows), 27)]
    assert (taken.count("a"), taken.count("b"), taken.count("c")) == (16, 10, 1)
    fullest = choose(rows, strata, names_of(rows), 2)
    assert {strata[index][0] for index, _ in fullest} == {"a", "b"}
    assert len(choose(rows, strata, names_of(rows), 999)) == 130


def test_the_choice_lies_nearer_to_the_farthest_frame_than_a_random_one() -> None:
    crowd = unit_rows(random_rows(300) * np.float32(0.2) + random_rows(1))
    rows = np.concatenate([crowd, random_rows(20)])
    chosen = [index for index, _ in choose(rows, [("one", "")] * len(rows), names_of(rows), 24)]

    def radius(indices: Sequence[int]) -> float:
        return float(distances(rows @ rows[indices].T).min(axis=1).max())

    draws = [np.random.default_rng(seed).choice(len(rows), 24, replace=False) for seed in range(50)]
    assert radius(chosen) < min(radius(list(draw)) for draw in draws)


def test_each_image_tells_its_distance_to_those_before_it() -> None:
    rows = random_rows(60)
    taken = choose(rows, [("one", "")] * 60, names_of(rows), 20)
    assert taken[0][1] == 2
    for place, (index, distance) in enumerate(taken[1:], 1):
        before = rows[[other for other, _ in taken[:place]]]
        assert distance == pytest.approx(float(distances(before @ rows[index]).min()), abs=1e-4)
    farthest_first = [distance for _, distance in taken[11:]]
    assert farthest_first == sorted(farthest_first, reverse=True)


def test_what_is_seen_all_day_gets_more_than_one_image() -> None:
    """Farthest-first alone would take the 30 odd ones and one of the 300."""
    generator = np.random.default_rng(2)
    usual = unit_rows((np.eye(1, 40) + 0.1 * generator.standard_normal((300, 40))).astype(np.float32))
    odd = unit_rows(generator.standard_normal((30, 40)).astype(np.float32))
    rows = np.concatenate([usual, odd])
    taken = [index for index, _ in choose(rows, [("one", "")] * 330, names_of(rows), 24)]
    assert sum(number < 300 for number in taken) >= 7
    assert sum(number >= 300 for number in taken) >= 8


# ---- footage


def test_a_frame_like_the_one_before_is_not_encoded_and_counts_all_the_same(bundle: Bundle, site: Path) -> None:
    with Footage([str(site)]) as footage, ImageEncoder(bundle) as encoder:
        looks = list(embedded(footage, encoder))
    assert len(looks) == 400
    assert not any(look.changed for look in looks[1:100])  # the view that does not move
    assert all(look.row is looks[0].row for look in looks[:100])
    assert sum(look.changed for look in looks) > 200


def test_so_many_seconds_of_a_recording_are_counted_from_its_first_frame(tmp_path: Path) -> None:
    """A recorder's segment has the recorder's clock, an hour in, say."""
    path = film(tmp_path / "segment.mkv", [np.full((48, 64, 3), 9 * n, np.uint8) for n in range(20)], 3600 * RATE)
    with Footage([str(path)], every_s=0.0, duration_s=2.0) as footage:
        assert [round(frame.time_s - 3600, 1) for frame in footage] == [n / RATE for n in range(2 * RATE)]


def test_the_footages_sample_is_uniform_and_in_its_order() -> None:
    rows = np.arange(20, dtype=np.float32)[:, None] + np.zeros((20, 3), np.float32)
    counts = np.zeros(20)
    for seed in range(600):
        sampler = FootageSampler(seed, size=5)
        for number, row in enumerate(rows):
            sampler.offer(look(row, number))
        found = sampler.sample().rows[:, 0].astype(int)
        assert list(found) == sorted(found)
        counts[found] += 1
    assert np.all(np.abs(counts - 150) < 5 * np.sqrt(150 * 0.75))


def test_a_folder_is_searched_with_its_folders_and_a_damaged_image_is_counted_and_passed_over(
    bundle: Bundle, photographs_dir: Path, tmp_path: Path
) -> None:
    shutil.copytree(photographs_dir, tmp_path / "in" / "deeper")
    (tmp_path / "in" / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    record = calibrate_images(bundle, [str(tmp_path / "in")], tmp_path / "out", ChooseOptions(4))
    assert record.sources[0].unreadable == 1
    assert any("1 file or frame could not be decoded" in note for note in record.notes)
    originals = {hashlib.sha256(path.read_bytes()).hexdigest() for path in photographs_dir.iterdir()}
    assert {image.sha256 for image in record.images} <= originals  # the bytes that were there


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (None, "no such file"),
        ({}, "expected images below"),
        ({"a.png": b"nothing"}, "got none that can be read"),
    ],
)
def test_what_cannot_be_used_is_refused_and_leaves_nothing(
    bundle: Bundle, site: Path, tmp_path: Path, made: Exact | None, said: str
) -> None:
    source = tmp_path / "source"
    if made is not None:
        source.mkdir()
        for name, content in made.items():
            (source / name).write_bytes(content)
    with pytest.raises(SourceError, match=said):
        calibrate_images(bundle, [str(source)], tmp_path / "work" / "calib", ChooseOptions(8))
    assert not (tmp_path / "work").exists() or not list((tmp_path / "work").iterdir())


# ---- the set


def test_the_set_has_no_near_duplicates_and_the_dark_is_in_it(calib: Path) -> None:
    record = read_record(calib)
    assert record.counts.unchanged > 80  # the view that did not move
    assert record.counts.pool <= LEAST_POOL
    assert record.counts.seen == 400
    assert any(image.stratum.startswith("dark") for image in record.images)
    small = np.stack([image[::8, ::8].astype(np.float32).mean(axis=2) for image in ChosenImages(calib)])
    apart = np.abs(small[:, None] - small[None]).mean(axis=(2, 3)) + 255 * np.eye(len(small))
    assert apart.min() > 2  # grey levels: two frames of the view that does not move differ by less than one
    seen = {image.moment for image in record.images}
    assert seen == {f"part {number} of 8" for number in (1, 3, 4, 5, 6, 7, 8)}  # part 2 does not differ from part 1


def test_every_image_is_the_frame_that_the_record_names(calib: Path, site: Path) -> None:
    frames = [frame.to_ndarray(format="rgb24") for frame in av.open(str(site)).decode(video=0)]
    for item, image in zip(read_record(calib).images, ChosenImages(calib), strict=True):
        np.testing.assert_array_equal(image, frames[item.frame])
        assert item.time_s == pytest.approx(item.frame / RATE)


def test_the_same_seed_writes_the_same_bytes_and_another_one_chooses_others(
    bundle: Bundle, calib: Path, site: Path, tmp_path: Path
) -> None:
    calibrate_images(bundle, [str(site)], tmp_path / "again", ChooseOptions(count=40))
    assert contents(tmp_path / "again") == contents(calib)
    other = calibrate_images(bundle, [str(site)], tmp_path / "other", ChooseOptions(count=40, seed=1))
    assert {image.sha256 for image in other.images} != {image.sha256 for image in read_record(calib).images}


def test_the_set_is_taken_as_it_is(calib: Path, tmp_path: Path) -> None:
    """All images in their order, whatever number is asked for."""
    images = sample_images(calib, 3, seed=9)
    assert len(images) == len(find_images(calib)) == 40
    first = read_record(calib).images[0]
    assert hashlib.sha256((calib / first.file).read_bytes()).hexdigest() == first.sha256
    (calib / first.file).write_bytes(b"something else")
    with pytest.raises(IntegrityError, match="not the image that was chosen"):
        sample_images(calib, 3)


def test_a_set_that_an_earlier_version_wrote_is_taken_and_has_no_sample_for_drift(calib: Path) -> None:
    """Its record had more in it, and its sample was of footage held out."""
    record = json.loads((calib / "calibration.json").read_text())
    record |= {"schema": "edgeclip.calibration/1", "radius": 0.5, "slack": 0.2, "reserved": 10, "edge": 15}
    record["coverage"] = None
    record["images"] = [image | {"stands_for": 3} for image in record["images"]]
    (calib / "calibration.json").write_text(json.dumps(record))
    (calib / "footage.safetensors").unlink()
    assert len(sample_images(calib, 3)) == 40
    with pytest.raises(SourceError, match="choose the images again"):
        read_sample(calib)
    record["schema"] = "edgeclip.calibration/3"
    (calib / "calibration.json").write_text(json.dumps(record))
    with pytest.raises(SourceError, match=r"expected .* of schema edgeclip\.calibration/2"):
        sample_images(calib, 3)


def test_quantize_measures_its_ranges_on_the_set(calib: Path) -> None:
    from edgeclip.export.bundle import calibration_inputs

    encoder = Bundle.open("starter").manifest.encoder
    inputs = calibration_inputs(sample_images(calib, 128), (), encoder, count=128)
    assert inputs.shape == (40, 3, 224, 224)


def test_fewer_than_asked_for_are_taken_and_said(bundle: Bundle, photographs_dir: Path, tmp_path: Path) -> None:
    record = calibrate_images(bundle, [str(photographs_dir)], tmp_path / "calib", ChooseOptions(50))
    assert len(record.images) == 5
    assert "only 5 different ones" in record.notes[0]


def test_a_password_is_not_written(bundle: Bundle, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, ["calibrate", "images", "rtsp://me:secret@127.0.0.1:9/x", "-o", str(tmp_path / "c")]
    )
    assert isinstance(result.exception, SourceError)
    assert "secret" not in str(result.exception) + result.output
    assert not list(tmp_path.glob("*.part"))
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_stopped_leaves_the_old_set_and_nothing_half_written(
    how: signal.Signals, calib: Path, tiny_bundle: Path
) -> None:
    before = contents(calib)
    command = ["calibrate", "images", "stdin?width=160&height=120", "--bundle", str(tiny_bundle)]
    command += ["-o", str(calib), "--overwrite"]
    process = subprocess.Popen(
        [sys.executable, "-m", "edgeclip", *command], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdin
    deadline = time.monotonic() + 30
    while not (at_work := list(calib.parent.glob(".calib.*.part"))):  # it waits for a frame
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(how)
    process.wait(30)
    process.stdin.close()
    assert contents(calib) == before
    if how == signal.SIGTERM:
        assert not any(path.exists() for path in at_work)


# ---- drift


def site_of(generator: np.random.Generator, shift: float = 0.0, frames: int = 160, stay: int = 5) -> FloatArray:
    """Footage of one place: what is seen changes every ``stay`` frames, and frames between are nearly the same."""
    middles = np.repeat(generator.standard_normal((frames // stay, 8)) + shift, stay, axis=0)
    return unit_rows((middles + 0.05 * generator.standard_normal(middles.shape)).astype(np.float32))


def sample_of(rows: FloatArray, level: float = 100) -> FootageSample:
    return FootageSample(rows, np.full((len(rows), 3), level, np.float32))


def test_the_test_keeps_its_level_where_neighbouring_frames_are_alike() -> None:
    """Of pairs from one distribution few are told apart, though frames near in time are nearly the same."""
    same = [energy_test(site_of(g), site_of(g))[1] for g in map(np.random.default_rng, range(40))]
    assert np.mean(np.array(same) <= 0.1) <= 0.25
    assert np.mean(np.array(same) <= 0.01) <= 0.05
    assert energy_test(site_of(np.random.default_rng(0)), site_of(np.random.default_rng(1), 1.5))[1] <= 0.001


def test_energy_is_zero_for_the_same_footage_and_does_not_depend_on_the_sides() -> None:
    a, b = site_of(np.random.default_rng(0)), site_of(np.random.default_rng(1), 0.5, frames=85)
    same, p_value = energy_test(a, a)
    assert same == pytest.approx(0, abs=1e-5)
    assert p_value > 0.9
    assert energy_test(a, b)[0] == pytest.approx(energy_test(b, a)[0], abs=1e-5)
    apart = [distances(left @ right.T).mean() for left, right in ((a, b), (a, a), (b, b))]
    assert energy_test(a, b)[0] == pytest.approx(2 * apart[0] - apart[1] - apart[2], abs=1e-4)


def test_the_verdict_says_what_was_found() -> None:
    a, b = site_of(np.random.default_rng(0)), site_of(np.random.default_rng(1), 1.5)
    found = measure_drift("A", sample_of(a), "B", sample_of(b, 60))
    assert found.drifted
    assert found.verdict.startswith("The footage of B differs from that of A (energy distance ")
    assert found.exposure == dict.fromkeys(("luma", "contrast", "saturation"), (100, 60))
    again = measure_drift("A", sample_of(a), "B", sample_of(site_of(np.random.default_rng(2))))
    assert not again.drifted
    assert again.verdict.startswith("No drift was found: ")


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A set chosen by the starter from a site, later footage of the same, and footage of another."""
    folder = tmp_path_factory.mktemp("sites")
    first = film(folder / "first.mp4", walk(skimage_data.astronaut(), 200))
    later = film(folder / "later.mp4", walk(skimage_data.astronaut(), 100, seed=8))
    other = film(folder / "other.mp4", walk(skimage_data.rocket(), 100))
    calibrate_images(Bundle.open("starter"), [str(first)], folder / "calib", ChooseOptions(40, every_s=0.4))
    return folder / "calib", later, other


def test_another_site_has_drifted_and_later_footage_of_the_same_has_not(
    sites: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    bundle, options = Bundle.open("starter"), ChooseOptions(every_s=0.4)
    calib, later, other = map(str, sites)
    again = compare_footage(bundle, calib, later, options)
    assert not again.drifted, again.verdict
    page, numbers = tmp_path / "drift.html", tmp_path / "drift.json"
    found = compare_footage(bundle, calib, other, options, output=page, json_file=numbers)
    assert found.drifted, found.verdict
    assert found.verdict.startswith("The footage of other.mp4 differs from that of calib ")
    assert found.p_value <= 0.001
    of_a, of_b = found.exposure["luma"]
    assert of_b < of_a - 30
    assert json.loads(numbers.read_text())["energy"] == found.energy
    assert found.verdict in page.read_text()
    assert f"{of_b - of_a:+.1f}" in page.read_text()


def test_both_sides_may_be_footage_itself(bundle: Bundle, site: Path) -> None:
    found = compare_footage(bundle, str(site), str(site), ChooseOptions())
    assert not found.drifted
    assert found.energy == pytest.approx(0, abs=1e-5)
    assert found.p_value > 0.9
    assert found.frames_a == found.frames_b == 400


def test_drift_is_an_exit_code_and_too_few_frames_are_an_error(
    sites: tuple[Path, Path, Path], tiny_bundle: Path, photographs_dir: Path
) -> None:
    calib, later, other = map(str, sites)
    result = CliRunner().invoke(app, ["calibrate", "drift", calib, other, "--every", "0.6"])
    assert result.exit_code == 1, result.output
    result = CliRunner().invoke(app, ["calibrate", "drift", calib, later, "--every", "0.6"])
    assert result.exit_code == 0, result.output
    few = CliRunner().invoke(app, ["calibrate", "drift", calib, str(photographs_dir)])
    assert "expected at least 20 frames" in str(few.exception)
    wrong = CliRunner().invoke(app, ["calibrate", "drift", calib, other, "--bundle", str(tiny_bundle)])
    assert "`bundle` and `variant` that it was chosen with" in str(wrong.exception)


# ---- the page


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs Debian's chromium")
def test_the_page_shows_every_image_and_figure_of_the_record_and_fetches_nothing(calib: Path, tmp_path: Path) -> None:
    record: CalibrationSet = read_record(calib)
    with Chromium(tmp_path / "profile") as chromium:
        for width in (1100, 420):
            chromium.open((calib / PAGE).as_uri(), width=width)
            chromium.wait_for("document.readyState == 'complete' && document.images.length > 2")
            assert chromium.evaluate("document.documentElement.scrollWidth") == width
        text: Any = chromium.evaluate(TEXT)
        for name, count in record.exposures.items():
            assert f"{name}: {count}" in text
        for image in record.images:
            assert f"{image.distance:.2f}, {Path(image.name).stem}" in text
        for figure in (record.counts.seen, record.counts.unchanged, record.counts.near_duplicates, record.counts.pool):
            assert f"{figure:,}" in text
        assert chromium.evaluate("document.images.length") == 40
        assert chromium.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
        assert chromium.evaluate("performance.getEntriesByType('resource').length") == 0


def test_the_library_writes_into_a_folder_that_is_there(bundle: Bundle, photographs_dir: Path, tmp_path: Path) -> None:
    record = choose_images(bundle, [str(photographs_dir)], tmp_path, ChooseOptions(3))
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.endswith(".edgeclip")) == [
        "calibration.json",
        "footage.safetensors",
        "images",
    ]
    assert len(record.images) == 3
