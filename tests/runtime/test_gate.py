"""The scene gate passes what changes, however small, and stops what does not, however noisy."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from skimage import data as skimage_data

from edgeclip import Bundle
from edgeclip.errors import InputError
from edgeclip.runtime.encoder import ImageEncoder
from edgeclip.runtime.gate import GateOptions, SceneGate
from edgeclip.runtime.preprocess.preprocess import Pixels
from edgeclip.runtime.scoring import Scorer
from tests.conftest import shared

PHOTOGRAPH = np.ascontiguousarray(skimage_data.astronaut()[:432, :])
KINDS = ["rgb24", "yuv420p", "nv12", "yuv422p10le"]


def as_kind(image: np.ndarray, kind: str) -> Pixels:
    return image if kind == "rgb24" else av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=kind)


def with_patch(image: np.ndarray, size: int) -> np.ndarray:
    changed = image.copy()
    changed[200 : 200 + size, 250 : 250 + size] = 255 - changed[200 : 200 + size, 250 : 250 + size]
    return changed


@pytest.mark.parametrize("kind", KINDS)
def test_noise_and_a_change_of_brightness_pass_unnoticed_but_a_small_thing_does_not(kind: str) -> None:
    gate = SceneGate()
    noise = np.random.default_rng(0).normal(0, 8, PHOTOGRAPH.shape)
    noisy = np.clip(PHOTOGRAPH + noise, 0, 255).astype(np.uint8)
    dimmed = (PHOTOGRAPH * 0.95).astype(np.uint8)
    seen = [gate.changed(as_kind(image, kind)) for image in (PHOTOGRAPH, PHOTOGRAPH, noisy, dimmed)]
    assert seen == [True, False, False, False]
    assert gate.changed(as_kind(with_patch(PHOTOGRAPH, 24), kind))
    assert not gate.changed(as_kind(with_patch(PHOTOGRAPH, 24), kind))


def test_a_slow_drift_adds_up() -> None:
    gate = SceneGate()
    passed = []
    for step in range(40):
        image = PHOTOGRAPH.copy()
        image[100:200, 100:200] = 50 + step  # one grey level a frame
        passed.append(gate.changed(image))
    assert sum(passed) == 3
    assert passed[:10] == [True] + [False] * 9


def test_a_frame_of_another_size_passes() -> None:
    gate = SceneGate()
    assert [gate.changed(PHOTOGRAPH), gate.changed(PHOTOGRAPH[:400])] == [True, True]


def test_what_the_encoder_does_not_see_is_not_looked_at() -> None:
    spec = Bundle.open("starter").manifest.encoder.preprocess
    wide = np.tile(PHOTOGRAPH, (1, 2, 1))
    beside = wide.copy()
    beside[:, :200] = 0
    whole, cropped = SceneGate(), SceneGate(spec=spec)
    assert [whole.changed(wide), whole.changed(beside)] == [True, True]
    assert [cropped.changed(wide), cropped.changed(beside)] == [True, False]


def test_a_refresh_is_forced_after_max_skip_s() -> None:
    gate = SceneGate(max_skip_s=1.0)
    assert [gate.changed(PHOTOGRAPH, time_s) for time_s in (0.0, 0.5, 1.0, 1.5, 2.1)] == [
        True,
        False,
        True,
        False,
        True,
    ]
    assert gate.changed(PHOTOGRAPH, 0.0), "the stream began again"


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (7, 500), (2160, 3840)])
def test_images_of_any_size_are_compared(shape: tuple[int, int]) -> None:
    gate = SceneGate()
    dark = np.zeros((*shape, 3), np.uint8)
    assert [gate.changed(dark), gate.changed(dark)] == [True, False]


@pytest.mark.parametrize(("threshold", "max_skip_s"), [(0.0, None), (300.0, None), (float("nan"), None), (4.0, 0.0)])
def test_options_out_of_range_are_refused(threshold: float, max_skip_s: float | None) -> None:
    with pytest.raises(InputError, match="expected"):
        GateOptions(threshold, max_skip_s)


# The starter has no class for the people of the second video: its labels there are near ties, which noise decides.
@pytest.mark.parametrize(("name", "least"), [("bottle-detection", 0.99), ("one-by-one-person-detection", 0.85)])
def test_labels_of_a_real_video_agree_with_those_of_every_frame(name: str, least: float) -> None:
    video: Path = shared("videos", f"{name}.mp4")
    bundle = Bundle.open("starter")
    scorer = Scorer(bundle.table(), bundle.manifest.encoder)
    gate = SceneGate(spec=bundle.manifest.encoder.preprocess)
    passed: list[bool] = []
    batch: list[av.VideoFrame] = []
    embeddings = []
    with ImageEncoder(bundle, "int8-cpu") as encoder, av.open(str(video)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for frame in container.decode(video=0):
            passed.append(gate.changed(frame))
            batch.append(frame)
            if len(batch) == 16:
                embeddings.append(encoder.encode(batch))
                batch.clear()
        if batch:
            embeddings.append(encoder.encode(batch))
    labels = scorer.scores(np.concatenate(embeddings)).argmax(axis=1)
    last = np.maximum.accumulate(np.where(passed, np.arange(len(passed)), 0))
    held = labels[last]
    assert (held == labels).mean() >= least
    assert np.count_nonzero(np.diff(held)) <= np.count_nonzero(np.diff(labels))  # a gate adds no flicker
    assert len(passed) / sum(passed) >= 2.0
