"""``edgeclip wise-ft`` measures what the checkpoints between two others do, and does nothing twice that they share."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")
pytest.importorskip("matplotlib")

from rich.console import Console  # noqa: E402

from edgeclip.cli import app  # noqa: E402
from edgeclip.errors import EdgeclipError, ModelError, SourceError  # noqa: E402
from edgeclip.evaluation.wise import Accuracy, WiseOptions, mean_of, measure_wise, read_sets, wise_lines  # noqa: E402
from edgeclip.runtime.images import write_image  # noqa: E402
from edgeclip.training.adapt.wise import CheckpointsBetween, interpolate  # noqa: E402
from edgeclip.training.checkpoint.checkpoint import load_two_tower, save_checkpoint  # noqa: E402
from edgeclip.training.load import load_model, load_text_tower  # noqa: E402
from edgeclip.training.loop.trainer import train_recipe  # noqa: E402
from edgeclip.training.loop.validate import ZeroShot  # noqa: E402
from edgeclip.training.recipe import Data, Log, Loss, Model, Optimizer, Recipe, Tower  # noqa: E402
from edgeclip.training.two_tower import TwoTower  # noqa: E402
from tools.shapes import write_shapes  # noqa: E402

IMAGE = Tower(name="vit", options={"width": 16, "depth": 1, "heads": 2, "patch": 8, "image_size": 32})
TEXT = Tower(name="transformer", options={"width": 16, "depth": 1, "heads": 2, "context": 12})
COLOURS = {"red": (220, 20, 20), "blue": (20, 20, 220), "green": (20, 200, 20), "white": (240, 240, 240)}


def locked(tower: Tower) -> Tower:
    return Tower(name=tower.name, options=tower.options, locked=True)


def two_tower_of(name: str) -> TwoTower:
    return load_two_tower(name, teachers_text=load_text_tower)


def train(run: Path, shapes: Path, **model: Any) -> str:
    """A tiny checkpoint, trained for three steps with a high rate; the folder of its run."""
    recipe = Recipe(
        name=run.name,
        task="distill" if "teacher" in model else "contrastive",
        loss=Loss(kind="distill", teacher=model.pop("teacher")) if "teacher" in model else Loss(),
        model=Model(**{"image": IMAGE, "text": TEXT, "embedding_dim": 8, **model}),
        data=Data(pairs=f"{shapes}/train-*.tar", workers=0),
        optimizer=Optimizer(steps=3, batch_size=32, lr=2e-2, warmup=0),
        log=Log(eval_every=0, save_every=0, tensorboard=False),
    )
    train_recipe(recipe, run, console=Console(file=io.StringIO()))
    return str(run)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One checkpoint and forms of it that were fine-tuned in different ways."""
    folder = tmp_path_factory.mktemp("runs")
    write_shapes(folder / "shapes", train=96, val=16)
    shapes = folder / "shapes"
    start = train(folder / "start", shapes)
    teacher = train(folder / "student", shapes, teacher=start)
    return {
        "start": start,
        "whole": train(folder / "whole", shapes, start=start),
        "image": train(folder / "image", shapes, start=start, text=locked(TEXT)),
        "heads": train(folder / "heads", shapes, start=start, image=locked(IMAGE), text=locked(TEXT)),
        "wider": train(folder / "wider", shapes, image=Tower(name="vit", options={**IMAGE.options, "width": 24})),
        "student": teacher,
        "student-2": train(folder / "student-2", shapes, teacher=start, start=teacher),
    }


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three sets of noisy pictures; one file of the first is damaged."""
    chooser = np.random.default_rng(0)
    made: dict[str, Path] = {}
    for name, classes, noise in (
        ("target", ("red", "blue", "green", "white"), 60),
        ("dark", ("red", "blue", "white"), 30),
        ("grainy", ("red", "green"), 120),
    ):
        made[name] = tmp_path_factory.mktemp("sets") / name
        for label in classes:
            (made[name] / f"a_{label}_square").mkdir(parents=True)
            for index in range(12):
                picture = np.array(COLOURS[label]) * (0.4 if name == "dark" else 1)
                picture = np.clip(picture + chooser.integers(-noise, noise + 1, (40, 40, 3)), 0, 255)
                write_image(made[name] / f"a_{label}_square" / f"{index:02}.png", picture.astype(np.uint8))
    (made["target"] / "a_red_square" / "00.png").write_bytes(b"not a picture")
    return made


def top1(checkpoint: str, folder: Path) -> float:
    """As the trainer measures it, by another way than the curve's."""
    model = load_model(checkpoint)
    zero_shot = ZeroShot(Data(pairs="", val=str(folder)), model.encoder.preprocess)
    return zero_shot.top1(model.encode_image, model.encode_text)


def command(*words: str | Path) -> str:
    """Run it; what was printed."""
    done = CliRunner().invoke(app, ["wise-ft", *map(str, words)])
    if done.exception:
        raise done.exception
    return done.output


# --- what is measured -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tuned", ["whole", "image", "heads", "student"])
def test_the_curve_is_what_the_checkpoints_between_do(
    tuned: str, runs: dict[str, str], folders: dict[str, Path], tmp_path: Path
) -> None:
    first, second = (runs["student"], runs["student-2"]) if tuned == "student" else (runs["start"], runs[tuned])
    way = CheckpointsBetween(first, second)
    sets = read_sets(folders["target"], [folders["dark"], folders["grainy"]], None)
    report = measure_wise(way, sets, WiseOptions(alphas=(1.0, 0.0, 0.5)))
    assert [result.alpha for result in report.results] == [0.0, 0.5, 1.0]
    assert (report.target.images, report.target.unreadable) == (47, 1)
    for result in report.results:
        saved = tmp_path / f"{result.alpha}"
        way.save(saved, result.alpha)
        expected = [top1(str(saved), folders[name]) for name in ("target", "dark", "grainy")]
        assert [item.top1 for item in (result.target, *result.shifts)] == pytest.approx(expected)
        assert result.shift_mean
        assert result.shift_mean.top1 == pytest.approx(np.mean(expected[1:]))
        for item in (result.target, *result.shifts):
            assert item.ci95[0] <= item.top1 + 1e-9
            assert item.top1 <= item.ci95[1] + 1e-9
    for alpha, end in ((0.0, first), (1.0, second)):
        saved_state, state = two_tower_of(str(tmp_path / f"{alpha}")).state_dict(), two_tower_of(end).state_dict()
        assert all(torch.equal(saved_state[name], value) for name, value in state.items())
    assert len({tuple(item.top1 for item in (result.target, *result.shifts)) for result in report.results}) > 1


def counted(module: torch.nn.Module) -> Callable[[], int]:
    """How many rows have gone through a module."""
    rows: list[int] = []
    module.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    return lambda: sum(rows)


@pytest.mark.parametrize(
    ("tuned", "shared"),
    [("heads", ("image", "text")), ("image", ("text",)), ("whole", ())],
)
def test_a_tower_that_both_share_is_run_once(
    tuned: str, shared: tuple[str, ...], runs: dict[str, str], folders: dict[str, Path]
) -> None:
    way = CheckpointsBetween(runs["start"], runs[tuned])
    assert way.shared == set(shared)
    images, texts = counted(way.at(0).image), counted(way.at(0).text)
    sets = read_sets(folders["target"], [folders["dark"]], None)
    seen: list[tuple[int, int]] = []
    options = WiseOptions(alphas=(0.0, 0.3, 0.6, 1.0), templates=("a photo of {}.", "{}"))
    report = measure_wise(way, sets, options, progress=lambda done, total: seen.append((done, total)))
    readable, names = 47 + 36, 4  # the class names of the second set are among those of the first
    assert images() == readable * (1 if "image" in shared else 4)
    # Not shared, they are encoded for each alpha, still once for both sets.
    assert texts() == 2 * names * (1 if "text" in shared else 4)
    assert {total for _, total in seen} == {84 * (1 if "image" in shared else 4)}
    assert report.shared == sorted(shared)


def test_the_mean_of_one_set_has_its_interval_and_that_of_more_a_smaller_one() -> None:
    one = Accuracy(0.5, (0.4, 0.61))
    assert mean_of([]) is None
    alone, twice = mean_of([one]), mean_of([one, one])
    assert alone
    assert alone.top1 == one.top1
    assert alone.ci95 == pytest.approx(one.ci95)
    assert twice
    assert twice.ci95 == pytest.approx((0.5 - 0.1 / 2**0.5, 0.5 + 0.11 / 2**0.5))


# --- the command ------------------------------------------------------------------------------------------------


def test_the_command_draws_the_curve_and_keeps_the_best(
    runs: dict[str, str], folders: dict[str, Path], tmp_path: Path
) -> None:
    out, figures = tmp_path / "out", tmp_path / "figures.json"
    shifts = ["--shift", folders["dark"], "--shift", folders["grainy"]]
    said = command(
        runs["start"], runs["whole"], "--data", folders["target"], *shifts, "--alphas", "0,0.5,1", "--save", "best",
        "-o", out, "--json", figures,
    )  # fmt: skip
    report = json.loads((out / "curve.json").read_text())
    assert json.loads(figures.read_text()) == report
    assert (out / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert [item["name"] for item in report["shifts"]] == ["dark", "grainy"]
    by_alpha = {item["alpha"]: item["target"]["top1"] for item in report["results"]}
    best = min(alpha for alpha, found in by_alpha.items() if found == max(by_alpha.values()))
    assert report["best"] == best
    assert f"best alpha {best:g}: the highest top-1 on the target" in said
    assert "1 could not be decoded" in said
    assert f"next: edgeclip export {out}" in said
    kept = two_tower_of(str(out)).state_dict()
    ends = [two_tower_of(runs[name]).state_dict() for name in ("start", "whole")]
    expected = interpolate(*ends, best)
    assert all(torch.equal(kept[name], value) for name, value in expected.items())
    config = json.loads((out / "checkpoint" / "checkpoint.json").read_text())
    assert config["recipe"]["alpha"] == best
    assert config["results"]["top1"] == by_alpha[best]


def test_one_alpha_can_be_kept_with_nothing_measured(runs: dict[str, str], tmp_path: Path) -> None:
    said = command(runs["start"], runs["image"], "--save", "0.35", "--output", tmp_path / "kept")
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["checkpoint"]
    assert "alpha 0.35" in said
    assert load_model(str(tmp_path / "kept")).name == "image-wise-0.35"


def test_names_are_taken_where_they_are_given(runs: dict[str, str], folders: dict[str, Path], tmp_path: Path) -> None:
    names = tmp_path / "names.json"
    given = {f"a_{label}_square": [label, f"{label} box"] for label in COLOURS}
    names.write_text(json.dumps(given))
    other = tmp_path / "other"
    for index, label in enumerate(("cup", "plate")):
        (other / label).mkdir(parents=True)
        write_image(other / label / "0.png", np.full((40, 40, 3), 50 + 100 * index, np.uint8))
    target, dark, own = read_sets(folders["target"], [folders["dark"], other], names)
    assert target.classes[0].names == ("blue", "blue box")
    assert dark.classes[-1].names == ("white", "white box")
    assert [item.label for item in own.classes] == ["cup", "plate"]
    report = measure_wise(CheckpointsBetween(runs["start"], runs["heads"]), [target, own], WiseOptions(alphas=(0.5,)))
    assert wise_lines(report)[1] == "other: 2 images in 2 classes (shift)"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["start", "wider", "--data", "target"], "expected two checkpoints of one architecture, got weight image"),
        (["start", "student", "--data", "target"], "got teacher none in"),
        (["start", "nowhere", "--save", "1", "-o", "out"], "expected a checkpoint at nowhere"),
        (["start", "whole", "--data", "absent"], "absent: no such folder"),
        (["start", "whole", "--data", "target", "--shift", "absent"], "absent: no such folder"),
        (["start", "whole", "--data", "target", "--alphas", "0,1.5"], "for --alphas, got '1.5'"),
        (["start", "whole", "--data", "target", "--alphas", "0;1"], "for --alphas, got '0;1'"),
        (["start", "whole", "--data", "target", "--alphas", ","], "got none"),
        (["start", "whole", "--save", "nan", "-o", "out"], "for --save, got 'nan'"),
        (["start", "whole"], "expected --data"),
        (["start", "whole", "--save", "best", "-o", "out"], "expected --data"),
        (["start", "whole", "--save", "0.5", "--json", "out"], "expected --data"),
        (["start", "whole", "--save", "0.5"], "expected --output FOLDER with --save"),
        (["start", "whole", "--save", "0.5", "-o", "target"], "exists already"),
        (["start", "whole", "--save", "0.5", "-o", "whole", "--overwrite"], "it would be replaced"),
    ],
    ids=lambda item: " ".join(item) if isinstance(item, list) else "",
)
def test_the_command_says_what_is_wrong_and_writes_nothing(
    words: list[str], says: str, runs: dict[str, str], folders: dict[str, Path], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EdgeclipError) as found:
        command(*(runs.get(word) or folders.get(word) or word for word in words))
    assert says in str(found.value)
    assert not list(tmp_path.iterdir())
    assert Path(runs["whole"]).is_dir()


def test_a_mistake_ends_with_a_sentence_and_an_exit_code(runs: dict[str, str]) -> None:
    words = ["wise-ft", runs["start"], runs["wider"], "--save", "0.5", "-o", "out"]
    done = subprocess.run([sys.executable, "-m", "edgeclip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == ModelError.exit_code != 0
    assert done.stderr.startswith("error: expected two checkpoints of one architecture")
    assert "Traceback" not in done.stderr


def test_a_set_without_a_picture_is_refused(runs: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "set" / "class").mkdir(parents=True)
    (tmp_path / "set" / "class" / "0.png").write_bytes(b"not a picture")
    sets = read_sets(tmp_path / "set", [], None)
    with pytest.raises(SourceError, match="none of the 1 images in set"):
        measure_wise(CheckpointsBetween(runs["start"], runs["heads"]), sets, WiseOptions())


@pytest.mark.slow
def test_the_shipped_starter_goes_half_way(tmp_path: Path) -> None:
    """Its checkpoint is of the first format, what is fine-tuned from it of the second; locked towers are not stored."""
    pytest.importorskip("efficientnet_lite_pytorch")
    tuned = two_tower_of("starter")
    with torch.no_grad():
        tuned.image_head.from_features.weight.add_(0.01)
    recipe = Recipe(name="tuned", data=Data(pairs="none"))
    save_checkpoint(tmp_path / "tuned", tuned, recipe=recipe)
    command("starter", tmp_path / "tuned", "--save", "0.5", "-o", tmp_path / "half")
    half, start = two_tower_of(str(tmp_path / "half")), two_tower_of("starter")
    moved = half.image_head.from_features.weight - start.image_head.from_features.weight
    torch.testing.assert_close(moved, torch.full_like(moved, 0.005))
    assert torch.equal(half.image.stem.weight, start.image.stem.weight)
    stored = (tmp_path / "half" / "checkpoint" / "weights.safetensors").stat().st_size
    assert stored < 20e6
