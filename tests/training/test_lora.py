"""LoRA by recipe: adapters and projections are all that is trained, and a checkpoint has no trace of them."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
open_clip = pytest.importorskip("open_clip")

from rich.console import Console  # noqa: E402

from edgeclip.errors import RecipeError  # noqa: E402
from edgeclip.training.build_model import build_two_tower  # noqa: E402
from edgeclip.training.checkpoint.checkpoint import load_checkpoint, load_two_tower  # noqa: E402
from edgeclip.training.loop.lora import LoraOptions, adaptable, apply_lora, apply_to_towers, merge_lora, merged_weights  # noqa: E402
from edgeclip.training.loop.trainer import train_recipe  # noqa: E402
from edgeclip.training.recipe_file import check_recipe, load_recipe  # noqa: E402
from edgeclip.training.two_tower import TwoTower  # noqa: E402
from tools.shapes import write_shapes  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
IMAGE = {"name": "vit", "options": {"width": 16, "depth": 2, "heads": 2, "patch": 8, "image_size": 32}}
TEXT = {"name": "transformer", "options": {"width": 16, "depth": 1, "heads": 2, "context": 12}}
PROJECTIONS = {"image_head.weight", "text_head.weight", "logit_scale"}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    write_shapes(folder, train=96, val=32)
    return folder


@pytest.fixture(scope="module")
def start(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint to fine-tune."""
    folder = tmp_path_factory.mktemp("start")
    model = {"image": IMAGE, "text": TEXT, "embedding_dim": 8}
    tree = {"name": "start", "model": model, "data": {"pairs": f"{shapes}/train-*.tar", "workers": 0}}
    train(_file(folder, tree), folder / "run", "optimizer.steps=1", "optimizer.batch_size=16")
    return folder / "run"


def _file(folder: Path, tree: dict[str, Any]) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(tree))  # JSON is YAML
    return path


def train(path: Path, target: Path, *overrides: str, resume: bool = False) -> None:
    recipe = load_recipe(path, overrides=[*overrides, "log.tensorboard=false"])
    train_recipe(recipe, target, console=Console(file=io.StringIO()), resume=resume)


def tiny(start: Path, shapes: Path, *more: str) -> list[str]:
    """What makes the shipped recipe small: our towers on the shapes, in two steps."""
    return [
        f"model.start={start}",
        f"model.image={json.dumps(IMAGE)}",
        f"model.text={json.dumps({**TEXT, 'locked': True})}",
        "model.embedding_dim=8",
        f"data.pairs={shapes}/train-*.tar",
        f"data.val={shapes}/seen-*.tar",
        f"data.val_classes={shapes}/classes.json",
        "data.workers=0",
        "optimizer.steps=2",
        "optimizer.batch_size=16",
        "optimizer.lr=1e-2",
        *more,
    ]


def with_adapters(start: Path, run: Path, *, averaged: bool) -> TwoTower:
    """The model as it was when training ended, adapters and all, from the state to resume from."""
    two_tower = load_two_tower(str(start), model=load_recipe(run / "recipe.json").model)
    apply_to_towers(two_tower, LoraOptions())
    state = torch.load(run / "state.pt", weights_only=True)
    trained = {name for name, parameter in two_tower.named_parameters() if parameter.requires_grad}
    assert set(state["model"]) >= trained
    two_tower.load_state_dict(state["model"], strict=False)
    if averaged:
        assert set(state["average"]) == trained
        two_tower.load_state_dict(state["average"], strict=False)
    return two_tower.eval()


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_two_steps_move_adapters_and_projections_and_the_checkpoint_is_the_merged_model(
    ema: float, start: Path, shapes: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train(ROOT / "recipes" / "finetune-lora.yaml", run, *tiny(start, shapes, f"optimizer.ema={ema}"))
    before, saved = load_two_tower(str(start)).state_dict(), load_two_tower(str(run))
    after = saved.state_dict()
    assert list(after) == list(before), "the checkpoint is of the architecture that it was"
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    adapted = {f"image.{name}.weight" for name in adaptable(saved.image)}
    assert changed == adapted | PROJECTIONS

    trained = with_adapters(start, run, averaged=ema > 0)
    moved = {name for name, parameter in trained.named_parameters() if parameter.requires_grad}
    assert moved - PROJECTIONS
    assert all(".lora_" in name for name in moved - PROJECTIONS)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model = load_checkpoint(str(run))
    torch.testing.assert_close(model.encode_image(images), trained.encode_image(images), atol=1e-5, rtol=1e-5)
    texts = torch.from_numpy(model.encode_text(["a red star"]))
    torch.testing.assert_close(texts, trained.encode_text(trained.tokenize(["a red star"])), atol=1e-5, rtol=1e-5)


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(start: Path, shapes: Path, tmp_path: Path) -> None:
    recipe, small = ROOT / "recipes" / "finetune-lora.yaml", tiny(start, shapes, "log.save_every=1")
    train(recipe, tmp_path / "whole", *small)
    killed = tmp_path / "killed"

    class Killed(Exception):
        pass

    class Stops(Console):
        """Ends the run at what is said of the second step, before that is saved."""

        def print(self, *objects: Any, **options: Any) -> None:
            if str(objects[0]).startswith("step 2"):
                raise Killed

    stopping = load_recipe(recipe, overrides=[*small, "log.tensorboard=false", "log.eval_every=2"])
    with pytest.raises(Killed):
        train_recipe(stopping, killed, console=Stops(file=io.StringIO()))
    train(recipe, killed, *small, resume=True)
    expected, found = load_two_tower(str(tmp_path / "whole")), load_two_tower(str(killed))
    for name, value in found.state_dict().items():
        torch.testing.assert_close(value, expected.state_dict()[name], atol=0, rtol=0)


def attention() -> torch.nn.Module:
    """A tower with torch's own attention, which peft wraps in a way of its own."""
    return open_clip.transformer.VisionTransformer(
        image_size=32, patch_size=16, width=16, layers=1, heads=2, mlp_ratio=2.0, output_dim=16
    )


def test_attention_of_torch_is_merged_and_the_model_goes_on_with_its_adapters() -> None:
    tree = {"name": "any", "data": {"pairs": "none"}, "model": {"image": IMAGE, "text": TEXT, "embedding_dim": 8}}
    model = build_two_tower(check_recipe(tree, source="test").model, seed=0)
    model.image = attention()
    names = list(model.state_dict())
    apply_to_towers(model, LoraOptions(rank=2))
    images = torch.randn(2, 3, 32, 32)
    adapters = [item for name, item in model.named_parameters() if "lora_B" in name]
    with torch.no_grad():
        for adapter in adapters:
            adapter.normal_()
    expected = model.eval().encode_image(images)
    state = copy.deepcopy(model.state_dict())
    merged = merged_weights(model, state)
    assert sorted(merged) == sorted(names)
    torch.testing.assert_close(model.encode_image(images), expected)
    plain = build_two_tower(check_recipe(tree, source="test").model, seed=1)
    plain.image = attention()
    plain.load_state_dict(merged)
    torch.testing.assert_close(plain.eval().encode_image(images), expected, atol=1e-4, rtol=1e-4)


def test_the_starters_image_tower_takes_adapters_and_gives_them_back() -> None:
    """The recipe that is shipped begins with it; its convolutions come from a library with a class of its own."""
    pytest.importorskip("efficientnet_lite_pytorch")
    from edgeclip.training.towers.pretrained import efficientnet_lite0

    tower = efficientnet_lite0().module
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    names, before = list(tower.state_dict()), tower(images)
    apply_lora(tower)
    torch.testing.assert_close(tower(images), before)
    trained = [parameter for parameter in tower.parameters() if parameter.requires_grad]
    assert len(trained) == 2 * (15 + 16 + 1)  # expand but in the first block, project, head
    tower(images).sum().backward()
    assert all(parameter.grad is not None for parameter in trained)
    assert list(merge_lora(tower).state_dict()) == names
    torch.testing.assert_close(tower(images), before)


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"lora": {"rnk": 4}}, "did you mean `rank`"),
        ({"lora": {"rank": 0}}, ">= 1"),
        ({"lora": {"dropout": 1.0}}, "< 1"),
        ({"lora": {}, "scale": {"strategy": "fsdp"}}, "ddp with lora"),
        ({"lora": {}, "model": {"image": {"name": "vit", "trainable": "blocks"}}}, "model.image.trainable"),
        (
            {
                "lora": {},
                "model": {"image": {"name": "vit", "locked": True}, "text": {"name": "minilm", "locked": True}},
            },
            "image and text locked",
        ),
    ],
)
def test_what_cannot_be_is_refused(sections: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        check_recipe({"name": "wrong", "data": {"pairs": "none"}, **sections}, source="test")
