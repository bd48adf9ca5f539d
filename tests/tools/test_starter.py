"""Labelled shards become a checkpoint that loads, exports and labels, as the shipped starter did."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize

from edgeclip import PreprocessSpec
from edgeclip.errors import InputError, ModelError, RecipeError, TrainingError
from edgeclip.files import sha256_file
from edgeclip.runtime.preprocess.preprocess import Preprocessor
from edgeclip.training.checkpoint.checkpoint import load_checkpoint, load_checkpoint_text, load_two_tower
from edgeclip.training.data.labelled import LabelledSamples
from edgeclip.training.data.shards import ShardPairs
from edgeclip.training.towers.heads import ImageHead
from edgeclip.training.towers.pretrained import ImageTower, efficientnet_lite0
from tests.tar_shards import write_labelled_shards
from tools.starter.features import cached_features, shrink
from tools.starter.recipe import load_starter_recipe
from tools.starter.start import start_from_captions, start_from_classes
from tools.starter.train import train_starter

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of six images each in three classes, and their names."""
    return write_labelled_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def tower() -> ImageTower:
    return efficientnet_lite0(on_grid=True)


def test_features_are_the_towers_and_are_computed_once(tower: ImageTower, shards: Path) -> None:
    reader = ShardPairs(str(shards / "train-*.tar"))
    done: list[int] = []
    found = cached_features(tower, reader, progress=done.append)
    preprocess = Preprocessor(tower.preprocess)
    with torch.inference_mode():
        images = [torch.from_numpy(preprocess(sample.image)[None]) for sample in LabelledSamples(reader)]
        expected = torch.cat([tower.module(image) for image in images])
    np.testing.assert_allclose(found.features, expected.numpy(), atol=0.01)
    assert found.labels.tolist() == [0, 1, 2, 0, 1, 2] * 2
    assert cached_features(tower, ShardPairs(str(shards / "train-*.tar"))).labels.tolist() == found.labels.tolist()
    assert len(done) <= 1
    smaller = cached_features(tower, reader, view=16)
    assert np.abs(np.asarray(smaller.features) - found.features).max() > 0.1


def test_shrinking_keeps_the_shape_and_never_enlarges() -> None:
    image = np.zeros((100, 200, 3), np.uint8)
    assert shrink(image, 50).shape == (50, 100, 3)
    assert shrink(image, 100) is image


def test_the_start_puts_a_sure_image_on_its_class_name(tower: ImageTower) -> None:
    torch.manual_seed(0)
    head = ImageHead(tower, 32)
    classes = normalize(torch.randn(1000, 32), dim=-1)
    # A feature vector that the classifier is sure about: its own weight row, scaled up.
    features = 3.0 * tower.classifier[0][[7, 400]]
    start_from_classes(head, classes, features.abs(), class_scale=1.0, ridge=1.0)
    with torch.inference_mode():
        embedding = normalize(head(features), dim=-1)
    assert (embedding @ classes.T).argmax(dim=1).tolist() == [7, 400]


def test_the_text_head_centres_and_keeps_what_differs() -> None:
    torch.manual_seed(0)
    captions = torch.randn(200, 12) * torch.tensor([3.0] * 4 + [0.01] * 8) + 5.0
    head = start_from_captions(captions, 4)
    with torch.inference_mode():
        projected = head(captions)
    assert projected.mean(dim=0).abs().max() < 1e-4
    assert projected.var() > 0.95 * captions[:, :4].var(dim=0).mean()


def write_recipe(folder: Path, shards: Path, **more: object) -> Path:
    recipe = {
        "name": "tiny",
        "task": "starter",
        "image_tower": "efficientnet-lite0",
        "text_tower": "minilm",
        "embedding_dim": 32,
        "weight_grid": True,
        "data": {"shards": str(shards / "train-*.tar"), "classes": str(shards / "classes.json"), "views": [0, 16]},
        "captions": {"own_predictions": 0.5},
        "optimizer": {"steps": 4, "batch_size": 8, "lr": 1e-3},
        **more,
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe))  # JSON is YAML
    return path


def quiet_console() -> Console:
    return Console(file=io.StringIO())


@pytest.fixture(scope="module")
def checkpoint(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    target = folder / "tiny"
    train_starter(load_starter_recipe(write_recipe(folder, shards)), target, console=quiet_console())
    return target


def test_training_is_reproducible_and_moves_the_weights(checkpoint: Path, shards: Path, tmp_path: Path) -> None:
    again, longer = tmp_path / "again", tmp_path / "longer"
    path = write_recipe(tmp_path, shards)
    train_starter(load_starter_recipe(path), again, console=quiet_console())
    assert (again / "weights.safetensors").read_bytes() == (checkpoint / "weights.safetensors").read_bytes()
    train_starter(load_starter_recipe(path, overrides=["optimizer.steps=8"]), longer, console=quiet_console())
    assert (longer / "weights.safetensors").read_bytes() != (again / "weights.safetensors").read_bytes()


def test_the_starter_is_stored_in_8_bits_with_the_loss_of_every_step(checkpoint: Path) -> None:
    stored = load_file(checkpoint / "weights.safetensors")
    assert not [name for name, value in stored.items() if value.dim() > 1 and value.dtype != torch.int8]
    lines = [json.loads(line) for line in (checkpoint / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(line["loss"] > 0 for line in lines)


def test_training_lowers_the_loss(shards: Path, tmp_path: Path) -> None:
    console = quiet_console()
    path = write_recipe(tmp_path, shards, captions={"own_predictions": 0.0})
    train_starter(load_starter_recipe(path, overrides=["optimizer.steps=60"]), tmp_path / "out", console=console)
    first, last = (float(x) for x in console.file.getvalue().split("loss ")[-1].split(" after")[0].split(" → "))  # type: ignore[attr-defined]
    assert last < 0.9 * first


def test_a_checkpoint_loads_whole_and_text_alone(checkpoint: Path) -> None:
    model = load_checkpoint(str(checkpoint))
    text = load_checkpoint_text(str(checkpoint))
    assert model.identity.text_sha256 == text.sha256
    rows = text.encode_text(["a cat", "a dog"])
    assert rows.shape == (2, 32)
    np.testing.assert_allclose(rows, model.encode_text(["a cat", "a dog"]), atol=1e-6)
    assert isinstance(model.encoder.preprocess, PreprocessSpec)
    assert model.encode_image(torch.zeros(1, 3, 224, 224)).shape == (1, 32)


def test_a_checkpoint_of_the_first_format_is_still_read(checkpoint: Path, tmp_path: Path) -> None:
    """The first starter was one: other names, no classifier, digests of the towers beside the recipe."""
    new = load_two_tower(str(checkpoint))
    state, config = new.state_dict(), json.loads((checkpoint / "checkpoint.json").read_text())
    parts = {
        f"from_{part}": f"image_head.from_{part}" for part in ("classes.weight", "features.weight", "features.bias")
    }
    parts |= {"text.weight": "text_head.weight", "text.bias": "text_head.bias"}
    save_file({old: state[name].contiguous() for old, name in parts.items()}, tmp_path / "weights.safetensors")
    old = {
        "format": "edgeclip.checkpoint.1",
        "recipe": config["recipe"],
        "logit_scale": 17.5,
        "image_tower_sha256": config["image"]["sha256"],
        "text_tower_sha256": config["text"]["sha256"],
        "weights_sha256": sha256_file(tmp_path / "weights.safetensors"),
    }
    (tmp_path / "checkpoint.json").write_text(json.dumps(old))
    model, expected = load_checkpoint(str(tmp_path)), load_checkpoint(str(checkpoint))
    assert model.encoder.logit_scale == pytest.approx(17.5)
    image = torch.rand(1, 3, 224, 224)
    torch.testing.assert_close(model.encode_image(image), expected.encode_image(image))
    rows = load_checkpoint_text(str(tmp_path)).encode_text(["a cat"])
    np.testing.assert_array_equal(rows, expected.encode_text(["a cat"]))


def test_a_damaged_checkpoint_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    data = bytearray((copy / "weights.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "weights.safetensors").write_bytes(data)
    with pytest.raises(ModelError, match="altered"):
        load_checkpoint(str(copy))
    config = json.loads((checkpoint / "checkpoint.json").read_text())
    shutil.copytree(checkpoint, copy, dirs_exist_ok=True)
    config["image"]["sha256"] = "0" * 64
    (copy / "checkpoint.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="other weights"):
        load_checkpoint(str(copy))
    (copy / "checkpoint.json").write_text("{}")
    with pytest.raises(ModelError, match=r"expected a checkpoint|of the expected form"):
        load_checkpoint(str(copy))


def test_a_checkpoint_is_not_overwritten_unasked(checkpoint: Path, shards: Path, tmp_path: Path) -> None:
    recipe = load_starter_recipe(write_recipe(tmp_path, shards))
    with pytest.raises(InputError, match="exists already"):
        train_starter(recipe, checkpoint, console=quiet_console())


def test_a_loss_that_is_not_finite_stops_with_the_step(shards: Path, tmp_path: Path) -> None:
    recipe = load_starter_recipe(write_recipe(tmp_path, shards), overrides=["optimizer.lr=1e38"])
    with pytest.raises(TrainingError, match="at step"):
        train_starter(recipe, tmp_path / "out", console=quiet_console())
    assert not (tmp_path / "out").exists()


def test_labels_beyond_the_names_are_refused(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "classes.json").write_text('["one", "two"]')
    recipe = load_starter_recipe(
        write_recipe(tmp_path, shards), overrides=[f"data.classes={tmp_path / 'classes.json'}"]
    )
    with pytest.raises(TrainingError, match="labels from 0 to 1"):
        train_starter(recipe, tmp_path / "out", console=quiet_console())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.learning=1", "unknown field `learning`"),
        ("optimizer.step=1", "did you mean `steps`"),
        ("optimizer.steps=0", "steps"),
        ("optimizer.lr=fast", "lr"),
        ("embedding_dim=-1", "embedding_dim"),
        ("name=a/b", "name"),
        ("steps", "expected an override key=value"),
        ("name.x=1", "expected a section"),
    ],
)
def test_recipe_errors_name_the_key(shards: Path, tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_starter_recipe(write_recipe(tmp_path, shards), overrides=[override])


@pytest.mark.parametrize(("content", "message"), [("- a", "keys and values"), ("a: [", "not valid YAML")])
def test_what_is_no_recipe_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    with pytest.raises(RecipeError, match=message):
        load_starter_recipe(path)


def test_unknown_towers_list_what_there_is(shards: Path, tmp_path: Path) -> None:
    recipe = load_starter_recipe(write_recipe(tmp_path, shards, image_tower="resnet"))
    with pytest.raises(RecipeError, match="efficientnet-lite0"):
        train_starter(recipe, tmp_path / "out", console=quiet_console())


def test_the_starters_recipe_is_valid() -> None:
    assert load_starter_recipe(ROOT / "tools" / "starter" / "starter.yaml").name == "starter"
