"""The demo films real photographs, labels the film and tells the truth about it."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from rich.console import Console

from edgeclip import Bundle
from edgeclip.cli.demo import FPS, SCENES, SECONDS_A_SCENE, SIZE, TABLE, judge, run_demo, views
from edgeclip.errors import VariantError
from edgeclip.runtime.images import read_image

FRAMES = 15  # a scene, over the same path as the 75 of the real film, which the tutorial on cameras is tested with


@pytest.fixture(scope="module", autouse=True)
def _a_short_film() -> Iterator[None]:
    assert FPS * SECONDS_A_SCENE == 75
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgeclip.cli.demo._FRAMES_A_SCENE", FRAMES)
        yield


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "out"
    run_demo(folder, variant="fp32", console=Console(file=io.StringIO()))
    return folder


def test_a_variant_that_is_not_there_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(VariantError, match="nope"):
        run_demo(tmp_path / "out", variant="nope", console=Console(file=io.StringIO()))
    assert list(tmp_path.iterdir()) == []


def test_every_truth_is_in_the_table() -> None:
    labels = Bundle.open("starter").table(TABLE).labels
    assert {scene.truth for scene in SCENES} <= set(labels)
    assert len(SCENES) == 8
    assert len(labels) > 200


def test_at_least_six_of_eight_scenes_are_right(output: Path) -> None:
    scenes = json.loads((output / "result.json").read_text())["scenes"]
    assert sum(scene["label"] == scene["truth"] for scene in scenes) >= 6


def test_the_result_follows_from_the_labels(output: Path) -> None:
    lines = [json.loads(line) for line in (output / "labels.jsonl").read_text().splitlines()]
    assert len(lines) == FRAMES * len(SCENES)
    said = [[line["label"] for line in lines[start : start + FRAMES]] for start in range(0, len(lines), FRAMES)]
    scenes = json.loads((output / "result.json").read_text())["scenes"]
    assert [scene["truth"] for scene in scenes] == [scene.truth for scene in SCENES]
    for scene, labels in zip(scenes, said, strict=True):
        assert scene["share"] == labels.count(scene["label"]) / FRAMES
        assert scene["share"] >= max(labels.count(other) for other in set(labels)) / FRAMES
        assert scene["frames_right"] == labels.count(scene["truth"]) / FRAMES


def test_a_scene_is_what_most_of_its_frames_say() -> None:
    cut = [
        ["cat"] * 10 + ["dog"] * 5,
        ["dog"] * 8 + ["coffee cup"] * 7,
        *[[scene.truth] * 15 for scene in SCENES[2:]],
    ]
    found = judge([{"label": label} for labels in cut for label in labels])
    assert found[0] == {"truth": "cat", "label": "cat", "share": 10 / 15, "frames_right": 10 / 15}
    assert found[1] == {"truth": "coffee cup", "label": "dog", "share": 8 / 15, "frames_right": 7 / 15}
    assert [(each["label"], each["frames_right"]) for each in found[2:]] == [(scene.truth, 1.0) for scene in SCENES[2:]]


def test_a_wrong_label_is_shown_wrong() -> None:
    lines: list[dict[str, object]] = [{"label": "dog"}] * (FRAMES * len(SCENES))
    assert all(record["label"] == "dog" and record["frames_right"] == 0 for record in judge(lines))


def test_film_overlay_and_contact_sheet_are_there(output: Path) -> None:
    assert {path.name for path in output.iterdir()} == {
        "camera.mp4",
        "labels.jsonl",
        "overlay.mp4",
        "contact_sheet.png",
        "result.json",
    }
    for name in ("camera.mp4", "overlay.mp4"):
        with av.open(str(output / name)) as container:
            assert sum(1 for _ in container.decode(video=0)) == FRAMES * len(SCENES)
    assert read_image(output / "contact_sheet.png").shape == (540, 1440, 3)


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.truth)
def test_the_camera_moves_and_stays_inside_the_photograph(scene) -> None:
    frames = list(views(scene))
    assert len(frames) == FRAMES
    assert frames[0].shape == (*SIZE, 3)
    assert np.abs(frames[0].astype(int) - frames[-1]).mean() > 3
