"""The trainer: equal gradients however a step is computed, equal losses however often it is killed."""

from __future__ import annotations

import io
import itertools
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")

from rich.console import Console  # noqa: E402
from torch import nn  # noqa: E402

from edgeclip.errors import InputError, RecipeError, TrainingError  # noqa: E402
from edgeclip.runtime.images import IMAGE_SUFFIXES, decode_image  # noqa: E402
from edgeclip.runtime.preprocess.preprocess import Preprocessor  # noqa: E402
from edgeclip.training.data.pairs import open_pairs  # noqa: E402
from edgeclip.training.load import load_model  # noqa: E402
from edgeclip.training.loop.distributed import World, blocks_of  # noqa: E402
from edgeclip.training.loop.frozen_towers import FeatureLoader, TextFeatures, pair_features  # noqa: E402
from edgeclip.training.loop.grad_cache import forward_backward  # noqa: E402
from edgeclip.training.loop.resume import load_state  # noqa: E402
from edgeclip.training.loop.schedule import Average, warmup_cosine  # noqa: E402
from edgeclip.training.loop.task import contrastive_objective  # noqa: E402
from edgeclip.training.loop.trainer import train_recipe  # noqa: E402
from edgeclip.training.loop.validate import ZeroShot  # noqa: E402
from edgeclip.training.recipe import Data, Optimizer, Recipe  # noqa: E402
from edgeclip.training.recipe_file import load_recipe  # noqa: E402
from edgeclip.training.towers.pretrained import ImageTower  # noqa: E402
from edgeclip.training.two_tower_model import TwoTowerModel  # noqa: E402
from tests.distributed_worker import CASES, gradients, joint_batch, model_of  # noqa: E402
from tools.shapes import CLASSES, SHAPES, held_out, write_shapes  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
ALONE = World(0, 1, torch.device("cpu"))
TINY_IMAGE = {"name": "vit", "options": {"width": 16, "depth": 2, "heads": 2, "patch": 8, "image_size": 32}}
TINY_TEXT = {"name": "transformer", "options": {"width": 16, "depth": 1, "heads": 2, "context": 12}}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    write_shapes(folder, train=96, val=32)
    return folder


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def workers_of(pid: int) -> list[int]:
    """Child processes; torchrun's are the ones that train."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def log_lines(run: Path) -> list[bytes]:
    log = run / "log.jsonl"
    return log.read_bytes().splitlines() if log.is_file() else []


def recipe_file(folder: Path, shapes: Path, **more: Any) -> Path:
    """A recipe of a tiny model on the shapes; sections given replace these."""
    tree = {
        "name": "tiny",
        "model": {"image": TINY_IMAGE, "text": TINY_TEXT, "embedding_dim": 8},
        "data": {
            "pairs": str(shapes / "train-*.tar"),
            "val": str(shapes / "held-out-*.tar"),
            "val_classes": str(shapes / "classes.json"),
            "shuffle_buffer": 20,
            "workers": 0,
        },
        "optimizer": {"steps": 4, "batch_size": 16, "lr": 1e-3, "warmup": 2},
        "log": {"every": 1, "eval_every": 0, "save_every": 0, "tensorboard": False},
        **more,
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(tree))  # JSON is YAML
    return path


def train(
    path: Path, target: Path, *overrides: str, resume: bool = False, overwrite: bool = False, width: int = 200
) -> str:
    """Train in this process; what was printed."""
    said = io.StringIO()
    recipe = load_recipe(path, overrides=overrides)
    train_recipe(recipe, target, console=Console(file=said, width=width), resume=resume, overwrite=overwrite)
    return said.getvalue()


def log_of(run: Path, key: str = "loss") -> dict[int, float]:
    """A figure by step."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line[key] for line in lines if key in line}


# Equal gradients


@pytest.mark.parametrize("kind", ["infonce", "siglip"])
@pytest.mark.parametrize("chunk", [1, 5, 11])
def test_a_batch_in_chunks_has_the_gradients_of_the_whole(kind: str, chunk: int) -> None:
    found = []
    for size in (0, chunk):
        model = model_of(kind).double()  # in float32 the towers round otherwise on each processor
        images, tokens, groups = joint_batch(model)
        loss = forward_backward(model, (images.double(), tokens), contrastive_objective(groups, ALONE), chunk=size)
        found.append((loss, gradients(model)))
    (loss, whole), (loss_in_chunks, in_chunks) = found
    torch.testing.assert_close(loss_in_chunks, loss)
    assert whole.keys() == in_chunks.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(in_chunks[name], gradient, atol=2e-6, rtol=1e-4, msg=name)


class Noisy(nn.Module):
    """A model with dropout: its two passes have to drop the same."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, images: torch.Tensor, texts: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return nn.functional.dropout(self.layer(images), 0.5), self.layer(texts), self.layer.bias.sum()


def test_chunks_drop_the_same_in_both_passes() -> None:
    torch.manual_seed(3)
    model, images, texts = Noisy(), torch.randn(6, 6), torch.randn(6, 6)
    seen: list[torch.Tensor] = []

    def objective(left: torch.Tensor, right: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        seen.append(left.detach())
        return (scale * left @ right.T).square().sum()

    torch.manual_seed(4)
    forward_backward(model, (images, texts), objective, chunk=2)
    after = torch.rand(1)
    got = gradients(model)

    # The same masks, applied by hand to the whole batch.
    model.zero_grad()
    kept = (seen[0] != 0).float()
    left, right = model.layer(images) * kept * 2, model.layer(texts)
    objective(left, right, model.layer.bias.sum()).backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-4)
    torch.manual_seed(4)
    for start in range(0, 6, 2):
        model(images[start : start + 2], texts[start : start + 2])
    assert torch.equal(torch.rand(1), after), "a step in chunks uses up as much chance as one pass"


def test_two_processes_have_the_loss_and_the_gradients_of_one(tmp_path: Path) -> None:
    out = tmp_path / "gradients.pt"
    worker = str(ROOT / "tests" / "distributed_worker.py")
    command = [*TORCHRUN, "2", worker, str(out)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for case, found in torch.load(out).items():
        (kind,) = {kind for kind, strategy, chunk in CASES if str((kind, strategy, chunk)) == case}
        model = model_of(kind)
        *inputs, groups = joint_batch(model)
        loss = forward_backward(model, tuple(inputs), contrastive_objective(groups, ALONE))
        torch.testing.assert_close(found["loss"], loss, msg=case)
        alone = gradients(model)
        assert alone.keys() == found["gradients"].keys()
        for name, gradient in alone.items():
            torch.testing.assert_close(found["gradients"][name], gradient, atol=2e-6, rtol=1e-4, msg=f"{case} {name}")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc to find torchrun's processes")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_several_processes_are_killed_and_go_on(strategy: str, shapes: Path, tmp_path: Path) -> None:
    scale, log = {"strategy": strategy, "grad_cache_chunk": 4}, {"every": 1, "save_every": 4, "tensorboard": False}
    optimizer = {"steps": 16, "batch_size": 16, "ema": 0.9}
    path = recipe_file(tmp_path, shapes, scale=scale, log=log, optimizer=optimizer)
    command = [*TORCHRUN, "2", "-m", "edgeclip", "train", str(path), "--resume", "--output"]
    run, whole = tmp_path / "run", tmp_path / "whole"
    with subprocess.Popen([*command, str(run)], env=environment()) as started:
        deadline = time.monotonic() + 300
        while len(log_lines(run)) < 6 and time.monotonic() < deadline:
            assert started.poll() is None
            time.sleep(0.01)
        for pid in [*workers_of(started.pid), started.pid]:
            os.kill(pid, signal.SIGKILL)
    assert 6 <= len(log_lines(run)) < 16
    subprocess.run([*command, str(run)], env=environment(), check=True)
    subprocess.run([*command, str(whole)], env=environment(), check=True)
    assert log_of(run) == log_of(whole)
    weights = "checkpoint/weights.safetensors"
    assert (run / weights).read_bytes() == (whole / weights).read_bytes()
    rows = load_model(str(run)).encode_text(["a red star", "a blue ring"])
    assert np.isfinite(rows).all()


def test_recomputed_activations_have_the_same_gradients() -> None:
    found = []
    for checkpointing in (False, True):
        model = model_of("infonce")
        model.set_grad_checkpointing(checkpointing)
        *inputs, groups = joint_batch(model)
        forward_backward(model, tuple(inputs), contrastive_objective(groups, ALONE))
        found.append(gradients(model))
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=name)


def test_the_blocks_that_are_sharded_are_the_transformers() -> None:
    assert [type(block).__name__ for block in blocks_of(model_of("infonce"))] == ["Block"] * 4


# Equal losses after a kill


def edgeclip(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "edgeclip", *arguments],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_killed_run_goes_on_with_the_same_losses(shapes: Path, tmp_path: Path) -> None:
    path = recipe_file(tmp_path, shapes, augment={"crop_scale": [0.6, 1.0], "flip": 0.5})
    long = ["optimizer.steps=60", "optimizer.ema=0.9", "log.save_every=7", "data.workers=1", "data.val="]
    options = [word for item in long for word in ("--set", item)]
    whole = edgeclip("train", str(path), "--output", str(tmp_path / "whole"), *options)
    killed = edgeclip("train", str(path), "--output", str(tmp_path / "killed"), *options)
    deadline = time.monotonic() + 120
    while len(log_lines(tmp_path / "killed")) < 17 and time.monotonic() < deadline:
        assert killed.poll() is None, killed.communicate()[0]
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert 17 <= len(log_lines(tmp_path / "killed")) < 60
    assert whole.wait(timeout=180) == 0, whole.communicate()[0]

    resumed = edgeclip("train", str(path), "--output", str(tmp_path / "killed"), "--resume", *options)
    said = resumed.communicate(timeout=180)[0]
    assert resumed.returncode == 0, said
    assert "resumed after step" in said
    assert log_of(tmp_path / "killed") == log_of(tmp_path / "whole")
    assert list(log_of(tmp_path / "whole")) == list(range(1, 61))
    name = "checkpoint/weights.safetensors"
    assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_resuming_with_another_recipe_names_what_changed(shapes: Path, tmp_path: Path) -> None:
    path = recipe_file(tmp_path, shapes)
    train(path, tmp_path / "run")
    with pytest.raises(RecipeError, match=r"changed .*\(optimizer\.lr\)"):
        train(path, tmp_path / "run", "optimizer.lr=1e-4", resume=True)
    assert "resumed after step 4" in train(path, tmp_path / "run", "log.every=2", resume=True)


def test_resuming_where_there_is_nothing_yet_begins(shapes: Path, tmp_path: Path) -> None:
    path = recipe_file(tmp_path, shapes)
    said = train(path, tmp_path / "run", "data.val=", resume=True)
    assert "resumed" not in said
    assert list(log_of(tmp_path / "run")) == [1, 2, 3, 4]


def test_a_damaged_state_is_refused(shapes: Path, tmp_path: Path) -> None:
    path = recipe_file(tmp_path, shapes)
    train(path, tmp_path / "run", "data.val=")
    state = tmp_path / "run" / "state.pt"
    state.write_bytes(state.read_bytes()[:5000])
    with pytest.raises(TrainingError, match=r"cannot read the state"):
        train(path, tmp_path / "run", "data.val=", resume=True)


def test_a_run_is_not_overwritten_unasked(shapes: Path, tmp_path: Path) -> None:
    path = recipe_file(tmp_path, shapes)
    train(path, tmp_path / "run", "data.val=")
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        train(path, tmp_path / "run", "data.val=")
    train(path, tmp_path / "run", "data.val=", "optimizer.steps=2", overwrite=True)
    assert list(log_of(tmp_path / "run")) == [1, 2]
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


# When the loss is not finite


def test_a_loss_that_is_not_finite_stops_with_the_step_and_the_batchs_keys(shapes: Path, tmp_path: Path) -> None:
    path = recipe_file(tmp_path, shapes)
    with pytest.raises(TrainingError, match=r"nan at step \d.*no state was saved.*lower optimizer\.lr") as stop:
        train(path, tmp_path / "run", "optimizer.lr=1e30", "data.val=")
    bad = json.loads((tmp_path / "run" / "bad-batch.json").read_text())
    assert f"at step {bad['step']}, batch {bad['keys'][0]}" in str(stop.value)
    with tarfile.open(shapes / "train-000.tar") as archive:
        stems = {f"train-000.tar:{name.partition('.')[0]}" for name in archive.getnames()}
    assert len(bad["keys"]) == 16
    assert set(bad["keys"]) <= stems


def test_what_was_saved_before_a_loss_that_is_not_finite_is_kept(shapes: Path, tmp_path: Path) -> None:
    path, run = recipe_file(tmp_path, shapes), tmp_path / "run"
    train(path, run, "data.val=", "log.save_every=1")
    state = torch.load(run / "state.pt", weights_only=True)
    state["step"], state["model"]["image_head.weight"][0, 0] = 2, torch.nan
    torch.save(state, run / "state.pt")
    kept = {name: (run / name).read_bytes() for name in ("state.pt", "checkpoint/weights.safetensors")}
    with pytest.raises(TrainingError, match=r"the loss is nan at step 3.*kept at .*state\.pt"):
        train(path, run, "data.val=", "log.save_every=1", resume=True)
    assert {name: (run / name).read_bytes() for name in kept} == kept
    assert load_model(str(run / "checkpoint")).name == "tiny"


def test_weights_that_are_not_finite_are_not_saved(shapes: Path, tmp_path: Path) -> None:
    path = recipe_file(tmp_path, shapes)
    with pytest.raises(TrainingError, match=r"weight .* is not finite after step 1"):
        train(path, tmp_path / "run", "optimizer.lr=1e39", "log.save_every=1", "data.val=")
    assert not (tmp_path / "run" / "state.pt").exists()


# What is written down


def test_the_validation_figure_is_that_of_the_saved_model(shapes: Path, tmp_path: Path) -> None:
    path = recipe_file(tmp_path, shapes)
    said = train(path, tmp_path / "run", "optimizer.ema=0.5", "log.eval_every=2")
    top1 = log_of(tmp_path / "run", "top1")
    assert list(top1) == [2, 4]
    assert f"top-1 {top1[4]:.4f}" in said
    model = load_model(str(tmp_path / "run" / "checkpoint"))
    recipe = load_recipe(path)
    assert isinstance(recipe, Recipe)
    again = ZeroShot(recipe.data, model.encoder.preprocess).top1(model.encode_image, model.encode_text)
    assert again == top1[4]


def test_zero_shot_accuracy_counts_the_nearest_class(shapes: Path) -> None:
    # A text encoder that gives each class an axis, and an image encoder that knows every label but the first.
    data = Data(pairs="", val=str(shapes / "held-out-*.tar"), classes=str(shapes / "classes.json"))
    spec = load_model("starter").encoder.preprocess
    held = ZeroShot(data, spec)
    axes = np.eye(len(CLASSES), dtype=np.float32)
    order = [label for label in range(len(CLASSES)) if held_out(label)]
    labels = iter([(row % 16, order[row % 16]) for row in range(32)])

    def encode_image(images: torch.Tensor) -> torch.Tensor:
        return torch.stack(
            [torch.from_numpy(axes[0 if row == 0 else label]) for row, label in (next(labels) for _ in images)]
        )

    def encode_text(texts: Any) -> Any:
        return np.stack([axes[next(i for i, name in enumerate(CLASSES) if name in text)] for text in texts])

    assert held.top1(encode_image, encode_text) == pytest.approx(30 / 32 if order[0] != 0 else 1.0)


def test_tensorboard_and_the_log_say_the_same(shapes: Path, tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    path = recipe_file(tmp_path, shapes)
    train(path, tmp_path / "run", "log.tensorboard=true")
    found = events.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    found.Reload()
    losses = {event.step: event.value for event in found.Scalars("train/loss")}
    assert losses == pytest.approx(log_of(tmp_path / "run"))
    assert [event.step for event in found.Scalars("val/top1")] == [4]
    assert all(speed > 0 for speed in log_of(tmp_path / "run", "samples_per_s").values())


def test_the_recipe_is_printed_in_full(shapes: Path, tmp_path: Path) -> None:
    path = recipe_file(tmp_path, shapes)
    said = train(path, tmp_path / "run", "data.val=", width=20)
    printed = json.JSONDecoder().raw_decode(said)[0]
    assert printed == json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert printed["optimizer"]["weight_decay"] == Optimizer().weight_decay  # a default, not in the file
    assert printed["data"]["val"] == ""


# Precision, schedule, average


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_stays_near_fp32(precision: str, shapes: Path, tmp_path: Path) -> None:
    path = recipe_file(tmp_path, shapes)
    train(path, tmp_path / "fp32", "data.val=")
    train(path, tmp_path / "half", f"scale.precision={precision}", "data.val=")
    full, half = log_of(tmp_path / "fp32"), log_of(tmp_path / "half")
    assert half != full
    assert half[1] == pytest.approx(full[1], rel=0.02)
    assert load_state_step(tmp_path / "half", path, f"scale.precision={precision}") == 4


def load_state_step(run: Path, path: Path, *overrides: str) -> int:
    recipe = load_recipe(path, overrides=["data.val=", *overrides])
    assert isinstance(recipe, Recipe)
    return int(load_state(run / "state.pt", recipe, ALONE)["step"])


def test_the_learning_rate_warms_up_and_follows_a_cosine() -> None:
    settings = Optimizer(steps=110, warmup=10, final_lr=0.1)
    shares = [warmup_cosine(step, settings) for step in range(111)]
    assert shares[0] == pytest.approx(0.1)
    assert shares[9] == shares[10] == pytest.approx(1.0)
    assert shares[60] == pytest.approx(0.55)  # half way down
    assert shares[110] == pytest.approx(0.1)
    assert all(later <= earlier for earlier, later in itertools.pairwise(shares[10:]))


def test_the_average_follows_the_weights_and_gives_them_back() -> None:
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(0.0)
    average = Average(model, 0.9)
    model.weight.data.fill_(1.0)
    average.update(step=1000)
    assert average.values["weight"].item() == pytest.approx(0.1)
    average.update(step=0)  # early on it moves faster: 1 - 1/10
    assert average.values["weight"].item() == pytest.approx(0.1 + 0.9 * 0.9)
    with average.in_place():
        assert model.weight.item() == pytest.approx(0.91)
    assert model.weight.item() == 1.0


# Locked towers


def locked_pairs(shapes: Path) -> tuple[ImageTower, Data]:
    torch.manual_seed(0)
    tower = model_of("infonce")
    data = Data(pairs=str(shapes / "train-*.tar"), workers=0)
    return ImageTower(tower.image, 16, tower.preprocess), data


def test_a_locked_tower_sees_an_image_once(shapes: Path) -> None:
    tower, data = locked_pairs(shapes)
    source = open_pairs(data)
    done: list[int] = []
    found = pair_features(tower, source, progress=done.append)
    assert done[-1] == 96
    preprocess = Preprocessor(tower.preprocess)
    images = [preprocess(decode_image(pair.image, name=pair.key)) for pair in source if isinstance(pair.image, bytes)]
    with torch.inference_mode():
        expected = tower.module(torch.from_numpy(np.stack(images)))
    np.testing.assert_allclose(found.features, expected.numpy(), atol=2e-3)
    assert [said.captions for said in found.samples] == [pair.captions for pair in source]
    count = len(done)
    again = pair_features(tower, source, progress=done.append)
    assert len(done) == count
    np.testing.assert_array_equal(again.features, found.features)


def test_features_come_in_epochs_are_divided_and_resume(shapes: Path) -> None:
    tower, data = locked_pairs(shapes)
    source = open_pairs(data)
    pairs = pair_features(tower, source)

    def loader(rank: int = 0, world: int = 1) -> FeatureLoader:
        return FeatureLoader(pairs, source, data, batch_size=24 // world, seed=1, rank=rank, world=world)

    whole = loader()
    batches = [batch for batch, _ in zip(iter(whole), range(8), strict=False)]
    for epoch in (batches[:4], batches[4:]):
        assert sorted(key for batch in epoch for key in batch.keys) == sorted(said.key for said in pairs.samples)
    assert [b.keys for b in batches[:4]] != [b.keys for b in batches[4:]]
    halves = [next(iter(loader(rank, 2))) for rank in (0, 1)]
    assert halves[0].keys + halves[1].keys == batches[0].keys
    resumed = loader()
    interrupted = loader()
    for _ in zip(iter(interrupted), range(3), strict=False):
        state = interrupted.state_dict()
    resumed.load_state_dict(state)
    following = next(iter(resumed))
    assert (following.keys, following.texts) == (batches[3].keys, batches[3].texts)
    assert torch.equal(following.images, batches[3].images)


def test_a_text_is_encoded_once() -> None:
    asked: list[str] = []

    def encode(texts: Any) -> torch.Tensor:
        asked.extend(texts)
        return torch.tensor([[float(len(text))] for text in texts])

    features = TextFeatures(encode)
    assert features(["aa", "b", "aa"]).flatten().tolist() == [2, 1, 2]
    assert features(["b", "ccc"]).flatten().tolist() == [1, 3]
    assert sorted(asked) == ["aa", "b", "ccc"]


def test_training_on_features_is_training_on_images(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flip that never comes counts as a change: images go through the tower. A batch is all pairs, in any order."""
    monkeypatch.setenv("EDGECLIP_CACHE", str(tmp_path / "cache"))
    locked = {
        "model": {"image": {**TINY_IMAGE, "locked": True}, "text": {**TINY_TEXT, "locked": True}, "embedding_dim": 8}
    }
    path = recipe_file(tmp_path, shapes, **locked)
    overrides = ("optimizer.steps=8", "optimizer.lr=1e-2", "optimizer.batch_size=96", "data.val=")
    train(path, tmp_path / "images", *overrides, "augment.flip=1e-30")
    assert not (tmp_path / "cache" / "features").exists()
    train(path, tmp_path / "features", *overrides)
    assert len(list((tmp_path / "cache" / "features").iterdir())) == 1
    expected = log_of(tmp_path / "images")
    assert expected[8] < expected[1] - 0.1
    assert log_of(tmp_path / "features") == pytest.approx(expected, rel=1e-3)
    features, images = (load_model(str(tmp_path / name)) for name in ("features", "images"))
    seen = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(features.encode_image(seen), images.encode_image(seen), atol=2e-3, rtol=1e-2)


# Recipes


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.step=1", "did you mean `steps`"),
        ("model.image.optins=1", "did you mean `options`"),
        ("data.paris=x", "did you mean `pairs`"),
        ("modle.image=x", "did you mean `model`"),
        ("task=contrast", "did you mean `contrastive`"),
        ("loss.kind=distill", "task distill"),
        ("task=distill", "loss.kind distill"),
        ("optimizer.ema=1", "below 1"),
        ("augment.crop_scale=[0.9, 0.5]", "low <= high"),
        ("optimizer.batch_size=1", "batch_size"),
        ("optimizer.lr=: :", "YAML value"),
        ("optimizer.lr=&a [*a]", "YAML value of the override .* an alias"),
        ("model={a: 1, a: 2}", "each key once in the YAML value"),
        ("scale.precision=int8", "precision"),
        ("scale.strategy=fsdp", "torchrun"),
        ("model.image.name=vitt", "vit"),
        ("data.val_classes=", "class names"),
    ],
)
def test_recipe_errors_say_what_is_wrong(override: str, message: str, shapes: Path, tmp_path: Path) -> None:
    with pytest.raises((RecipeError, TrainingError), match=message):
        train(recipe_file(tmp_path, shapes), tmp_path / "run", override)


def test_the_shapes_hold_out_combinations_but_no_colour_and_no_shape(shapes: Path) -> None:
    unseen = {label for label in range(len(CLASSES)) if held_out(label)}
    for part in (lambda label: label // len(SHAPES), lambda label: label % len(SHAPES)):
        assert len({part(label) for label in set(range(len(CLASSES))) - unseen}) == 8
        assert len({part(label) for label in unseen}) == 8
    source = open_pairs(Data(pairs=str(shapes / "train-*.tar")))
    said = " / ".join(caption for pair in source for caption in pair.captions)
    assert not [CLASSES[label] for label in unseen if CLASSES[label] in said]
    val = open_pairs(Data(pairs=str(shapes / "held-out-*.tar"), classes=str(shapes / "classes.json")))
    assert {pair.label for pair in val} == unseen


# A recipe at a size that trains in a moment: its sections as they are, but for towers, data and length.
TINY = (
    f"model.image={json.dumps(TINY_IMAGE)}",
    f"model.text={json.dumps(TINY_TEXT)}",
    "model.embedding_dim=8",
    "model.start=",
    "data.workers=0",
    "data.shuffle_buffer=20",
    "optimizer.steps=3",
    "optimizer.batch_size=16",
    "log.tensorboard=false",
)


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_train(path: Path, shapes: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    if not isinstance(recipe, Recipe):
        pytest.skip("a task of its own, tested with it")
    overrides = [*TINY, f"data.pairs={shapes}/train-*.tar", f"data.val={shapes}/seen-*.tar"]
    overrides += [f"data.val_classes={shapes}/classes.json"]
    if recipe.task == "distill":
        teacher = tmp_path / "teacher"
        train(recipe_file(tmp_path, shapes), teacher, "optimizer.steps=1")
        overrides.append(f"loss.teacher={teacher}")
    locked = {side: getattr(recipe.model, side).locked for side in ("image", "text")}
    overrides += [f"model.{side}.locked=true" for side, is_locked in locked.items() if is_locked]
    train(path, tmp_path / "run", *overrides)
    model = load_model(str(tmp_path / "run"))
    assert model.name == path.stem
    assert model.encode_image(torch.zeros(1, 3, 32, 32)).shape == (1, 8)
    assert (model.encoder.score == "sigmoid") == (recipe.loss.kind == "siglip")
    # What the log says is what the checkpoint does.
    val = Data(
        pairs="", val=f"{shapes}/seen-*.tar", val_classes=f"{shapes}/classes.json", templates=recipe.data.templates
    )
    top1 = ZeroShot(val, model.encoder.preprocess).top1(model.encode_image, model.encode_text)
    assert log_of(tmp_path / "run", "top1") == {3: top1}


def test_a_student_comes_nearer_to_its_teacher(shapes: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    train(recipe_file(tmp_path, shapes), teacher, "data.val=")
    distil = {"task": "distill", "loss": {"kind": "distill", "teacher": str(teacher)}}
    path = recipe_file(tmp_path, shapes, **distil)
    train(path, tmp_path / "student", "optimizer.steps=40", "optimizer.lr=1e-2", "model.image.options.width=8")
    losses = log_of(tmp_path / "student")
    assert losses[40] < 0.7 * losses[1]
    student, model = load_model(str(tmp_path / "student")), load_model(str(teacher))
    assert student.text.sha256 == model.text.sha256, "the teacher's tables are the student's"


def test_a_teacher_of_whole_images_sees_each_once_and_says_the_same(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flip that never comes counts as a change, so the teacher is asked at each step: the losses are the same."""
    monkeypatch.setenv("EDGECLIP_CACHE", str(tmp_path / "cache"))
    train(recipe_file(tmp_path, shapes), tmp_path / "teacher", "optimizer.steps=1")
    distil = {"task": "distill", "loss": {"kind": "distill", "teacher": str(tmp_path / "teacher")}}
    path = recipe_file(tmp_path, shapes, **distil)
    asked = [0]
    encode = TwoTowerModel.encode_image
    monkeypatch.setattr(
        TwoTowerModel, "encode_image", lambda self, images: (asked.append(len(images)), encode(self, images))[1]
    )
    train(path, tmp_path / "each-step", "augment.flip=1e-30", "data.val=")
    assert sum(asked) == 4 * 16
    train(path, tmp_path / "once", "data.val=")
    train(path, tmp_path / "once-whole", "augment.flip=1e-30", "loss.teacher_view=whole", "data.val=")
    assert sum(asked) == 4 * 16, "the cached embeddings were not used"
    expected = log_of(tmp_path / "each-step")
    assert log_of(tmp_path / "once") == pytest.approx(expected, rel=1e-3)
    assert log_of(tmp_path / "once-whole") == pytest.approx(expected, rel=1e-3)


def test_a_locked_student_learns_on_its_cached_features(shapes: Path, tmp_path: Path) -> None:
    """Teacher and student of one tower: the projection alone can bring the student all the way."""
    train(recipe_file(tmp_path, shapes), tmp_path / "teacher", "optimizer.steps=1")
    student = {"image": {**TINY_IMAGE, "pretrained": str(tmp_path / "teacher"), "locked": True}, "embedding_dim": 8}
    distil = {"task": "distill", "loss": {"kind": "distill", "teacher": str(tmp_path / "teacher")}, "model": student}
    path = recipe_file(tmp_path, shapes, **distil)
    train(path, tmp_path / "student", "optimizer.steps=200", "optimizer.lr=2e-2", "optimizer.weight_decay=0")
    losses = log_of(tmp_path / "student")
    assert losses[200] < 0.1 * losses[1]
    assert load_model(str(tmp_path / "student")).encode_image(torch.zeros(1, 3, 32, 32)).shape == (1, 8)


def test_a_table_of_frames_teaches_without_captions(shapes: Path, tmp_path: Path) -> None:
    train(recipe_file(tmp_path, shapes), tmp_path / "teacher", "optimizer.steps=1")
    with tarfile.open(sorted(shapes.glob("train-*.tar"))[0]) as packed:
        packed.extractall(tmp_path / "frames", filter="data")
    frames = sorted(path for path in (tmp_path / "frames").iterdir() if path.suffix in IMAGE_SUFFIXES)
    table = tmp_path / "frames.csv"
    table.write_text("\n".join(["image", *(f"frames/{path.name}" for path in frames)]))
    distil = {"task": "distill", "loss": {"kind": "distill", "teacher": str(tmp_path / "teacher")}}
    path = recipe_file(tmp_path, shapes, **distil)
    train(path, tmp_path / "student", f"data.pairs={table}", "data.val=", "optimizer.steps=2")
    assert sorted(log_of(tmp_path / "student")) == [1, 2]


def test_a_teacher_of_samples_that_share_a_key_is_refused(shapes: Path, tmp_path: Path) -> None:
    train(recipe_file(tmp_path, shapes), tmp_path / "teacher", "optimizer.steps=1")
    distil = {"task": "distill", "loss": {"kind": "distill", "teacher": str(tmp_path / "teacher")}}
    path = recipe_file(tmp_path, shapes, **distil)
    tar = sorted(shapes.glob("train-*.tar"))[0]
    with pytest.raises(TrainingError, match="a key of its own"):
        train(path, tmp_path / "student", f"data.pairs=[{tar}, {tar}]")


@pytest.mark.slow
def test_held_out_combinations_are_named_by_a_model_trained_from_nothing() -> None:
    """In 130 of the recipe's 600 steps, which reach 0.60 of the 0.94; learnt by heart, it would be near 0."""
    command = [sys.executable, str(ROOT / "benchmarks" / "shapes.py")]
    command += ["--set", "optimizer.steps=130", "--set", "log.eval_every=1000"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (held,) = (line for line in done.stdout.splitlines() if "never trained on" in line)
    assert float(held.rpartition(" ")[2]) >= 0.45
