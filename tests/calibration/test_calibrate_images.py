"""Calibration images are chosen so that nothing the camera sees lies far from them, in bounded memory, verifiably."""

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
from edgeclip.calibration.choice.candidates import Candidates, choose, cover
from edgeclip.calibration.choice.choose import ChooseOptions, choose_images
from edgeclip.calibration.choice.chosen_set import CalibrationSet, ChosenImages, Held, read_record
from edgeclip.calibration.choice.coverage import coverage_of
from edgeclip.calibration.choice.drift import Site, energy_test, measure_drift
from edgeclip.calibration.choice.footage import Footage, Sampling
from edgeclip.calibration.choice.survey import LEAST_POOL, Reservoir, survey
from edgeclip.calibration.images import find_images, sample_images
from edgeclip.cli import app
from edgeclip.errors import IntegrityError, SourceError
from edgeclip.evaluation.calibration_images.run import calibrate_images, compare_sites
from edgeclip.prompts import FloatArray, unit_rows
from edgeclip.runtime.encoder import ImageEncoder
from edgeclip.runtime.images import Image
from tests.chromium import TEXT, Chromium

RATE = 5
Exact = dict[str, bytes]


def film(path: Path, frames: Sequence[Image]) -> Path:
    """A video at 5 frames/s."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "16"})
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        for index, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, RATE)
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


def rows_near(centres: int, each: int, width: int = 12, spread: float = 0.02) -> FloatArray:
    """A stream of unit rows that visits some places again and again, in no order."""
    generator = np.random.default_rng(5)
    places = np.repeat(generator.standard_normal((centres, width)), each, axis=0)
    rows = unit_rows((places + spread * generator.standard_normal(places.shape)).astype(np.float32))
    return rows[generator.permutation(len(rows))]


def through(rows: FloatArray, size: int) -> tuple[Candidates[int], int]:
    """A pool that a stream has gone through, and the most members that it ever had."""
    pool: Candidates[int] = Candidates(size, rows.shape[1])
    most = 0
    for number, row in enumerate(rows):
        cells = np.full((4, 4), number % 251, np.uint8)  # so that none counts as a near-duplicate by its luma
        if pool.offer(row, cells, 0):
            pool.add(row, cells, 0, number)
        most = max(most, len(pool.members))
    return pool, most


def greedy(rows: FloatArray, count: int) -> float:
    """The radius of offline farthest-first over all rows: what the stream is held against."""
    nearest, taken = np.full(len(rows), 2.0, np.float32), 0
    for _ in range(count):
        nearest = np.minimum(nearest, cover(rows, rows[taken : taken + 1]))
        taken = int(nearest.argmax())
    return float(nearest.max())


# ---- the pool


@pytest.mark.parametrize(("size", "length"), [(64, 2000), (64, 6000), (400, 2000)])
def test_the_pool_stays_bounded_and_no_row_of_the_stream_lies_farther_than_it_says(size: int, length: int) -> None:
    rows = rows_near(length // 4, 4, spread=0.3)
    pool, most = through(rows, size)
    assert most <= size
    kept = np.stack([member.row for member in pool.members])
    assert len(kept) >= size // 2
    assert cover(rows, kept).max() <= pool.slack + 1e-3
    assert sum(member.absorbed for member in pool.members) == len(rows)


@pytest.mark.parametrize("size", [128, 5000])
def test_the_choice_covers_a_stream_within_its_bound_of_offline_k_center(size: int) -> None:
    """Farthest-first of k is within twice the best k; the pool adds its slack. Offline greedy is itself no better."""
    rows = rows_near(400, 6, spread=0.1)
    pool, _ = through(rows, size)
    members = np.stack([member.row for member in pool.members])
    names = [hashlib.sha256(row.tobytes()).hexdigest() for row in members]
    choice = choose(members, [("one",)] * len(members), [member.absorbed for member in pool.members], names, 64)
    radius = float(cover(rows, members[choice.taken]).max())
    assert radius <= choice.radius + pool.slack + 1e-3
    assert radius <= 2 * greedy(rows, choice.edge) + pool.slack + 1e-3
    assert radius <= 2 * greedy(rows, 64)  # not proved where the pool was thinned, and true all the same


def test_every_stratum_is_represented_and_ties_do_not_depend_on_the_order() -> None:
    rows = rows_near(40, 8)
    names = [hashlib.sha256(row.tobytes()).hexdigest() for row in rows]
    strata = [("rare" if number in (7, 11) else "usual", f"part {number % 3}") for number in range(len(rows))]
    first = choose(rows, strata, [1] * len(rows), names, 16)
    assert set(first.taken) & {7, 11}
    assert len(set(first.taken)) == 16
    turned = np.random.default_rng(1).permutation(len(rows))
    again = choose(rows[turned], [strata[n] for n in turned], [1] * len(rows), [names[n] for n in turned], 16)
    assert [int(turned[number]) for number in again.taken] == first.taken


def test_what_is_seen_all_day_gets_more_than_one_image() -> None:
    """Farthest-first alone would take the 30 odd ones and one of the 300."""
    generator = np.random.default_rng(2)
    usual = unit_rows((np.eye(1, 40) + 0.1 * generator.standard_normal((300, 40))).astype(np.float32))
    odd = unit_rows(generator.standard_normal((30, 40)).astype(np.float32))
    rows = np.concatenate([usual, odd])
    choice = choose(rows, [("one",)] * 330, [20] * 300 + [1] * 30, [f"{n:04}" for n in range(330)], 24)
    assert sum(number < 300 for number in choice.taken) >= 7
    assert sum(number >= 300 for number in choice.taken) >= 8


def test_a_reservoir_is_a_uniform_sample() -> None:
    counts = np.zeros(20)
    for seed in range(600):
        sample: Reservoir[int] = Reservoir(5, str(seed))
        for number in range(20):
            sample.offer(number)
        counts[sample.items] += 1
    assert np.all(np.abs(counts - 150) < 5 * np.sqrt(150 * 0.75))


# ---- footage


def test_held_out_frames_are_blocks_of_time_that_are_not_near_any_other(site: Path) -> None:
    with Footage([str(site)], Sampling()) as footage:
        shots = [(shot.time_s, shot.role, shot.block) for shot in footage]
    held = [time_s for time_s, role, _ in shots if role == "held out"]
    others = np.array([time_s for time_s, role, _ in shots if role == "candidate"])
    assert 0.1 < len(held) / len(shots) < 0.25
    assert min(np.abs(others - time_s).min() for time_s in held) >= 0.5
    assert len({block for _, role, block in shots if role == "held out"}) >= 3


def test_a_folder_is_searched_with_its_folders_and_a_damaged_image_is_counted_and_passed_over(
    bundle: Bundle, photographs_dir: Path, tmp_path: Path
) -> None:
    shutil.copytree(photographs_dir, tmp_path / "in" / "deeper")
    (tmp_path / "in" / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    record = calibrate_images(bundle, [str(tmp_path / "in")], tmp_path / "out", ChooseOptions(4))
    assert record.sources[0].unreadable == 1
    assert any("1 files or frames could not be decoded" in note for note in record.notes)
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
    assert record.counts.pool <= record.counts.pool_size == LEAST_POOL
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


def test_the_same_seed_writes_the_same_bytes_and_other_seeds_hold_other_blocks_out(
    bundle: Bundle, calib: Path, site: Path, tmp_path: Path
) -> None:
    calibrate_images(bundle, [str(site)], tmp_path / "again", ChooseOptions(count=40))
    assert contents(tmp_path / "again") == contents(calib)
    held = set()
    for seed in range(6):
        with Footage([str(site)], Sampling(seed=seed)) as footage:
            held.add(tuple(shot.frame for shot in footage if shot.role == "held out"))
    assert len(held) > 2


def test_the_set_is_taken_as_it_is(calib: Path, tmp_path: Path) -> None:
    """All images in their order, whatever number is asked for, and never the contact sheet."""
    images = sample_images(calib, 3, seed=9)
    assert len(images) == len(find_images(calib)) == 40
    first = read_record(calib).images[0]
    assert hashlib.sha256((calib / first.file).read_bytes()).hexdigest() == first.sha256
    (calib / first.file).write_bytes(b"something else")
    with pytest.raises(IntegrityError, match="not the image that was chosen"):
        sample_images(calib, 3)


def test_quantize_measures_its_ranges_on_the_set(calib: Path) -> None:
    from edgeclip.export.bundle import calibration_inputs

    encoder = Bundle.open("starter").manifest.encoder
    inputs = calibration_inputs(sample_images(calib, 128), (), encoder, count=128)
    assert inputs.shape == (40, 3, 224, 224)


def test_fewer_than_asked_for_are_taken_and_said(bundle: Bundle, photographs_dir: Path, tmp_path: Path) -> None:
    record = calibrate_images(
        bundle, [str(photographs_dir)], tmp_path / "calib", ChooseOptions(50, Sampling(holdout=0.0))
    )
    assert len(record.images) == 5
    assert record.coverage is None
    assert "only 5 different ones" in record.notes[0]


def test_the_pool_gives_back_its_files_when_it_is_thinned(bundle: Bundle, site: Path, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    with Footage([str(site)], Sampling(holdout=0.0)) as footage, ImageEncoder(bundle) as encoder:
        found = survey(footage, encoder, spool, count=8, pool_size=96)
    assert found.pool.largest == 96
    assert found.pool.absorbed > 0
    assert len(list(spool.iterdir())) == len(found.pool.members)


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


# ---- coverage and drift


def test_coverage_says_what_is_nearer_and_that_few_blocks_are_too_few() -> None:
    rows = rows_near(60, 10)
    every = [rows[at::7] for at in range(5)]
    centres = rows_near(60, 1)
    blocks = [str(number // 4) for number in range(len(rows))]
    exposures = ["ordinary, flat, grey"] * len(rows)
    found = coverage_of(rows, exposures, blocks, centres, exposures[:60], [part[:4] for part in every])
    assert found.to_chosen.p95 < found.to_random.p95
    assert found.p95_gain[1] > 0
    assert found.verdict.endswith("better than random ones.")
    few = coverage_of(rows, exposures, ["a"] * len(rows), centres, ["dark"], [part[:4] for part in every])
    assert "only 1 blocks" in few.verdict
    assert "No image was chosen of: ordinary, flat, grey." in few.verdict


def test_the_energy_test_keeps_its_level_where_frames_of_a_block_are_alike() -> None:
    """Of pairs from one distribution few are told apart, though frames within a block are nearly the same."""

    def site_of(generator: np.random.Generator, shift: float = 0.0) -> Held:
        middles = np.repeat(generator.standard_normal((20, 8)) + shift, 6, axis=0)
        rows = unit_rows((middles + 0.05 * generator.standard_normal(middles.shape)).astype(np.float32))
        return Held(rows, np.full((120, 3), 100, np.float32), np.repeat(np.arange(20, dtype=np.int32), 6))

    same = [energy_test(site_of(g), site_of(g))[1] for g in map(np.random.default_rng, range(20))]
    assert np.mean(np.array(same) < 0.1) <= 0.3
    assert energy_test(site_of(np.random.default_rng(0)), site_of(np.random.default_rng(1), 1.5))[1] <= 0.005


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A set chosen by the starter from a site, later footage of the same, and footage of another."""
    folder = tmp_path_factory.mktemp("sites")
    first = film(folder / "first.mp4", walk(skimage_data.astronaut(), 200))
    later = film(folder / "later.mp4", walk(skimage_data.astronaut(), 100, seed=8))
    other = film(folder / "other.mp4", walk(skimage_data.rocket(), 100))
    sampling = Sampling(holdout=0.4, every_s=0.4)
    calibrate_images(Bundle.open("starter"), [str(first)], folder / "calib", ChooseOptions(40, sampling))
    return folder / "calib", later, other


def test_another_site_is_not_covered_and_the_same_site_is(sites: tuple[Path, Path, Path], tmp_path: Path) -> None:
    bundle, options = Bundle.open("starter"), ChooseOptions(40, Sampling(every_s=0.4))
    calib, later, other = map(str, sites)
    again = compare_sites(bundle, calib, later, options)
    assert again.covered == "yes", again.verdict
    assert again.p_value > 0.01
    page, numbers = tmp_path / "drift.html", tmp_path / "drift.json"
    found = compare_sites(bundle, calib, other, options, output=page, json_file=numbers)
    assert found.covered == "no", found.verdict
    assert found.verdict.startswith("other.mp4 is not covered by calib's set: ")
    assert found.p_value <= 0.03  # four blocks against four: there are 35 ways to deal them out
    assert found.exposure[0].b[0] < found.exposure[0].a[0] - 30
    assert json.loads(numbers.read_text())["beyond"][1]["share"] == found.beyond[1].share
    assert all(f"{item.share:.1%}" in page.read_text() for item in found.beyond)


def test_a_site_may_be_footage_itself(bundle: Bundle, site: Path, tmp_path: Path) -> None:
    found = compare_sites(bundle, str(site), str(site), ChooseOptions(40))
    assert found.covered == "yes"
    assert found.frames_a < found.frames_b == 400


def test_drift_is_an_exit_code_and_too_few_frames_are_an_error(
    sites: tuple[Path, Path, Path], tiny_bundle: Path, photographs_dir: Path
) -> None:
    calib, _, other = map(str, sites)
    result = CliRunner().invoke(app, ["calibrate", "drift", calib, other, "--every", "0.6"])
    assert result.exit_code == 1, result.output
    few = CliRunner().invoke(app, ["calibrate", "drift", calib, str(photographs_dir)])
    assert "expected at least 20 frames" in str(few.exception)
    wrong = CliRunner().invoke(app, ["calibrate", "drift", calib, other, "--bundle", str(tiny_bundle)])
    assert "pass the --bundle and --variant that it was chosen with" in str(wrong.exception)


def test_a_set_that_covers_says_so() -> None:
    rows = rows_near(60, 20)
    held = [
        Held(part, np.full((len(part), 3), 100, np.float32), np.arange(len(part), dtype=np.int32) // 3)
        for part in (rows[::2], rows[1::2])
    ]
    stratum = exposure_of(np.full((8, 8, 3), 100, np.uint8))
    found = measure_drift(Site("A", rows[::40], [stratum.bin], held[0]), Site("B", rows[:1], [], held[1]))
    assert found.covered == "yes"
    assert found.verdict.startswith("A's set covers B: ")
    two_blocks = Held(-rows[:40], held[1].exposures[:40], np.arange(40, dtype=np.int32) // 20)
    few = measure_drift(
        Site("A", rows[::40], [stratum.bin], two_blocks._replace(rows=rows[:40])), Site("B", rows[:1], [], two_blocks)
    )
    assert few.covered == "unclear"  # two blocks against two prove no difference
    assert "cannot be told apart" in few.verdict


# ---- the page


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs Debian's chromium")
def test_the_page_shows_the_figures_of_the_record_and_fetches_nothing(calib: Path, tmp_path: Path) -> None:
    record: CalibrationSet = read_record(calib)
    assert record.coverage
    with Chromium(tmp_path / "profile") as chromium:
        for width in (1100, 420):
            chromium.open((calib / "coverage.html").as_uri(), width=width)
            chromium.wait_for("document.readyState == 'complete' && document.querySelectorAll('svg').length > 2")
            assert chromium.evaluate("document.documentElement.scrollWidth") == width
        text: Any = chromium.evaluate(TEXT)
        assert record.coverage.verdict in text
        for figure in (record.coverage.to_chosen.mean, record.coverage.to_random.p95, record.coverage.mean_gain[0]):
            assert f"{abs(figure):.3f}" in text
        for item in record.coverage.strata:
            assert item.name in text
        assert chromium.evaluate("document.querySelectorAll('img').length") == 40
        assert chromium.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
        assert chromium.evaluate("performance.getEntriesByType('resource').length") == 0


def test_the_library_writes_into_a_folder_that_is_there(bundle: Bundle, photographs_dir: Path, tmp_path: Path) -> None:
    chosen = choose_images(bundle, [str(photographs_dir)], tmp_path, ChooseOptions(3))
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.endswith(".edgeclip")) == [
        "calibration.json",
        "held_out.safetensors",
        "images",
    ]
    assert len(chosen.record.images) == 3
