"""Merged towers are ToMe's: nothing is lost where tokens are alike, and a bundle says what merging changed else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

torch = pytest.importorskip("torch")
open_clip = pytest.importorskip("open_clip")
transformers = pytest.importorskip("transformers")

from torch import Tensor, nn  # noqa: E402

from edgeclip import Bundle  # noqa: E402
from edgeclip.cli import app  # noqa: E402
from edgeclip.errors import InputError, ModelError  # noqa: E402
from edgeclip.export.cost import graph_cost  # noqa: E402
from edgeclip.export.int8.quantization import merging_products  # noqa: E402
from edgeclip.export.merge_tokens.blocks import Merge, MergingBlocks, merge_tower  # noqa: E402
from edgeclip.export.merge_tokens.model import REPORT, MergedModel  # noqa: E402
from edgeclip.export.onnx import export_onnx  # noqa: E402
from edgeclip.export.proofs import run_onnx  # noqa: E402
from edgeclip.prompts import unit_rows  # noqa: E402
from edgeclip.runtime.engines.base import load_engine  # noqa: E402
from edgeclip.runtime.images import read_image  # noqa: E402
from edgeclip.runtime.preprocess.preprocess import Preprocessor  # noqa: E402
from edgeclip.spec import EncoderSpec, PreprocessSpec  # noqa: E402
from edgeclip.training.build_model import build_two_tower  # noqa: E402
from edgeclip.training.checkpoint.checkpoint import load_checkpoint, save_checkpoint  # noqa: E402
from edgeclip.training.recipe import Data, Model, Recipe, Tower  # noqa: E402
from edgeclip.training.towers.hugging_face import TransformersImageTower  # noqa: E402
from edgeclip.training.towers.open_clip import OpenClipImageTower, for_clip_class_token  # noqa: E402
from edgeclip.training.towers.pretrained import efficientnet_lite0  # noqa: E402
from edgeclip.training.towers.vit import VisionTransformer, VitOptions  # noqa: E402

SIDE, PATCH, WIDTH, DEPTH, HEADS = 32, 8, 64, 3, 4
PATCHES = (SIDE // PATCH) ** 2


def open_clip_tower(**options: object) -> nn.Module:
    visual = open_clip.transformer.VisionTransformer(SIDE, PATCH, WIDTH, DEPTH, HEADS, 4.0, output_dim=24, **options)
    return OpenClipImageTower(visual)


def transformers_tower(kind: str) -> nn.Module:
    config = getattr(transformers, f"{kind}VisionConfig")(
        hidden_size=WIDTH,
        intermediate_size=128,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        image_size=SIDE,
        patch_size=PATCH,
    )
    vision = getattr(transformers, f"{kind}VisionModel")(config)
    return TransformersImageTower(for_clip_class_token(vision.eval()), None)


def our_tower() -> nn.Module:
    return VisionTransformer(VitOptions(width=WIDTH, depth=DEPTH, heads=HEADS, patch=PATCH, image_size=SIDE))


TOWERS: dict[str, Callable[[], nn.Module]] = {
    "ours": our_tower,
    "open_clip, class token": open_clip_tower,
    "open_clip, layer scale": lambda: open_clip_tower(ls_init_value=0.5),
    "open_clip, average": lambda: open_clip_tower(pool_type="avg", final_ln_after_pool=True),
    "open_clip, attention pooled": lambda: open_clip_tower(
        attentional_pool=True, attn_pooler_queries=8, attn_pooler_heads=HEADS, output_tokens=True
    ),
    "transformers CLIP": lambda: transformers_tower("CLIP"),
    "transformers SigLIP": lambda: transformers_tower("Siglip"),
}
WITHOUT_CLASS_TOKEN = ("ours", "transformers SigLIP")


def tower_of(name: str) -> nn.Module:
    """A small tower whose attention tells tokens apart: fresh weights give near-equal ones."""
    torch.manual_seed(0)
    tower = TOWERS[name]().eval().requires_grad_(requires_grad=False)
    for module in tower.modules():
        if isinstance(module, nn.LayerNorm):
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.1)
        elif isinstance(module, nn.Linear | nn.MultiheadAttention):
            for key, parameter in module.named_parameters(recurse=False):
                parameter.normal_(0, 0.02 if "bias" in key else 0.1)
    return tower


def merged(tower: nn.Module, count: int) -> nn.Module:
    return merge_tower(tower, count, image_size=(SIDE, SIDE), name="small")


def pictures(count: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def tokens_of(tower: nn.Module) -> tuple[int, ...]:
    return next(module for module in tower.modules() if isinstance(module, MergingBlocks)).tokens


# The tower


@pytest.mark.parametrize("name", TOWERS)
def test_merging_no_tokens_changes_nothing(name: str) -> None:
    tower = tower_of(name)
    torch.testing.assert_close(merged(tower, 0)(pictures()), tower(pictures()), rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("name", TOWERS)
def test_merging_leaves_the_tower_itself_as_it_was(name: str) -> None:
    tower = tower_of(name)
    before, state = tower(pictures()), {key: value.clone() for key, value in tower.state_dict().items()}
    after = merged(tower, 3)(pictures())
    assert torch.equal(tower(pictures()), before)
    assert all(torch.equal(value, state[key]) for key, value in tower.state_dict().items())
    assert (after - before).abs().max() > 1e-4  # different tokens merged do change something


@pytest.mark.parametrize("name", TOWERS)
def test_merging_tokens_that_are_alike_changes_nothing(name: str) -> None:
    """Patches of two kinds and no positions: whatever is merged, its like is there at an odd place in every block."""
    tower = tower_of(name)
    for key, parameter in tower.named_parameters():
        if "position" in key:
            parameter.zero_()
    kinds = torch.randn(2, 3, 2, PATCH, PATCH, generator=torch.Generator().manual_seed(1))
    columns = torch.cat([kinds[:, :, kind] for kind in (0, 1, 0, 1)], dim=-2)  # (2, 3, 32, 8)
    images = columns.repeat(1, 1, 1, SIDE // PATCH)  # each row of patches of one kind
    torch.testing.assert_close(merged(tower, 2)(images), tower(images), rtol=1e-4, atol=1e-5)


def test_without_proportional_attention_alike_tokens_would_lose_weight() -> None:
    """The claim above is not empty: it fails when attention forgets how many patches a token stands for."""
    tower = tower_of("ours")
    tower.positions.zero_()
    first, second = torch.randn(2, 1, 3, PATCH, PATCH, generator=torch.Generator().manual_seed(1))
    rows = torch.cat([first, first, first, second], dim=-1)
    images = rows.repeat(1, 1, SIDE // PATCH, 1)
    forgets = merged(tower, 5)
    (blocks,) = (module for module in forgets.modules() if isinstance(module, MergingBlocks))
    for block in blocks.blocks:
        block.register_forward_pre_hook(lambda _, given: (given[0], None))
    assert (forgets(images) - tower(images)).abs().max() > 1e-3


@pytest.mark.parametrize("name", TOWERS)
def test_blocks_merge_what_they_are_asked_until_half_of_what_is_left(name: str) -> None:
    tokens = tokens_of(merged(tower_of(name), 6))
    if name in WITHOUT_CLASS_TOKEN:
        assert tokens == (16, 10, 5, 3)
    elif "average" in name or "attention" in name:
        assert tokens == (17, 11, 6, 4)
    else:  # only the class token leaves
        assert tokens == (17, 11, 6, 1)


# One merge


@pytest.mark.parametrize(("tokens", "protected"), [(16, 0), (17, 1), (16, 1), (9, 0), (3, 1)])
def test_a_merge_keeps_the_class_token_every_size_and_the_mean(tokens: int, protected: int) -> None:
    rng = torch.Generator().manual_seed(tokens)
    x, keys = torch.randn(2, tokens, 5, generator=rng), torch.randn(2, tokens, 4, generator=rng)
    keys[:, 1] = keys[:, 0]  # the class token has a perfect match, and is left alone all the same
    sizes = torch.randint(1, 5, (2, tokens), generator=rng).float()
    for count in range(1, (tokens - protected) // 2 + 1):
        y, grown, places = Merge(tokens, count, protected)(x, sizes, keys)
        assert y.shape == (2, tokens - count, 5)
        torch.testing.assert_close(grown.sum(dim=1), sizes.sum(dim=1))
        torch.testing.assert_close((y * grown[..., None]).sum(dim=1), (x * sizes[..., None]).sum(dim=1))
        if protected:
            assert torch.equal(y[:, 0], x[:, 0])
            assert torch.equal(grown[:, 0], sizes[:, 0])
            assert not places[:, 0].any()
        # Each token is where it is said to be, with the weight of its size.
        arrived = torch.zeros(2, tokens - count).scatter_add_(1, places, sizes)
        torch.testing.assert_close(arrived, grown)


def test_the_tokens_most_alike_are_merged_first() -> None:
    angles = torch.tensor([[0.0, 0.9, 2.0, 2.01, -2.0, -1.5]])  # 2.0 and 2.01 are nearest, then -2.0 and -1.5
    keys = torch.stack([angles.cos(), angles.sin()], dim=-1) * torch.tensor([1.0, 5, 1, 3, 2, 1])[:, None]
    x, sizes = torch.arange(6.0)[None, :, None], torch.tensor([[1.0, 1, 3, 1, 1, 1]])
    one, grown, _ = Merge(6, 1, 0)(x, sizes, keys)
    torch.testing.assert_close(one[0, :, 0], torch.tensor([0.0, 4, 1, (3 * 2 + 3) / 4, 5]))
    assert grown.tolist() == [[1, 1, 1, 4, 1]]
    two, _, places = Merge(6, 2, 0)(x, sizes, keys)
    torch.testing.assert_close(two[0, :, 0], torch.tensor([0.0, 1, (3 * 2 + 3) / 4, 4.5]))
    assert places.tolist() == [[0, 1, 2, 2, 3, 3]]


# What is refused


@pytest.mark.parametrize(
    ("count", "message"),
    [(-1, "at least 0, got -1"), (9, "at most 8 tokens to merge a block, half of the 16 patches of small, got 9")],
)
@pytest.mark.parametrize("name", ["ours", "open_clip, class token"])
def test_a_number_of_tokens_that_cannot_be_merged_is_refused(name: str, count: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        merged(tower_of(name), count)


def test_what_is_no_such_vit_is_refused() -> None:
    starter = efficientnet_lite0(image_size=SIDE).module  # its image tower, without the time that its text tower takes
    with pytest.raises(ModelError, match=r"expected a ViT to merge tokens in .*got small \(no such tower\)"):
        merged(starter, 1)
    with pytest.raises(ModelError, match="blocks of type CustomResidualAttentionBlock"):
        merged(open_clip_tower(qk_norm=True), 1)


# The graph


@pytest.mark.parametrize("name", ["ours", "open_clip, class token"])
def test_the_graph_gives_what_torch_does_with_fewer_products(name: str, tmp_path: Path) -> None:
    tower = tower_of(name)
    width = tower(pictures(1)).shape[1]
    preprocess = PreprocessSpec(height=SIDE, width=SIDE, resize_to=SIDE, mean=(0.5,) * 3, std=(0.5,) * 3)
    encoder = EncoderSpec(preprocess=preprocess, embedding_dim=width, logit_scale=10.0)
    macs = []
    for count in (0, 4):
        reduced = merged(tower, count)
        path = tmp_path / f"{count}.onnx"
        export_onnx(reduced, encoder, path, metadata={})
        expected = reduced(pictures(5)).numpy()
        for _, got in run_onnx(path, pictures(5).numpy(), encoder):
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
        macs.append(graph_cost(path).macs)
    assert macs[1] < 0.85 * macs[0]
    onnx_ir = pytest.importorskip("onnx_ir")
    # Both products of each block that merges, and that which gives the patches back to what pools them.
    assert len(merging_products(onnx_ir.load(tmp_path / "4.onnx"))) == (4 if "class" in name else 7)
    assert not merging_products(onnx_ir.load(tmp_path / "0.onnx"))
    pytest.importorskip("openvino")
    with load_engine("openvino", tmp_path / "4.onnx", encoder, precision="fp32") as engine:
        np.testing.assert_allclose(engine.infer(pictures(5).numpy()), expected, rtol=1e-3, atol=1e-4)


# The bundle


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merge") / "tiny"
    vit = Tower(
        name="vit", options={"width": WIDTH, "depth": DEPTH, "heads": HEADS, "patch": PATCH, "image_size": SIDE}
    )
    text = Tower(name="transformer", options={"width": 32, "depth": 1, "heads": 2, "context": 16})
    model = Model(image=vit, text=text, embedding_dim=32)
    recipe = Recipe(name="tiny", data=Data(pairs="none"), model=model)
    save_checkpoint(folder, build_two_tower(model, seed=0), recipe=recipe)
    return folder


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_a_merged_bundle_is_proved_says_so_and_takes_the_unmerged_models_tables(
    checkpoint: Path, photographs_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeclip.runtime.images import write_image

    monkeypatch.setattr("edgeclip.export.proofs.COUNT", 8)
    monkeypatch.setattr("edgeclip.export.bundle.CALIBRATION_IMAGES", 4)
    plain, reduced = tmp_path / "plain.edgeclip", tmp_path / "merged.edgeclip"
    run("export", checkpoint, "--images", photographs_dir, "-o", plain)
    calib = tmp_path / "calib"
    calib.mkdir()
    for path in sorted(photographs_dir.iterdir()):  # mirrored, they are others
        write_image(calib / f"{path.stem}.png", np.ascontiguousarray(read_image(path)[:, ::-1]))
    said = run(
        *("export", checkpoint, "--images", photographs_dir, "-o", reduced, "--merge-tokens", 3),
        *("--variants", "int8-cpu", "--calibration", calib),
    )
    assert "images: 5 to prove on" in said
    assert "merges 3 tokens a block: 16 enter the first, 10 the last; on 5 photographs cosine" in said

    before, after = Bundle.open(plain), Bundle.open(reduced)
    assert list(after.verify())
    assert after.manifest.model.name == "tiny, 3 tokens merged a block"
    assert "3 tokens merged a block" in run("inspect", reduced)
    report = json.loads(after.file(REPORT).read_text())
    assert (report["merged"], report["tokens"]) == (3, [16, 13, 10, 7])
    assert report["unmerged_model"] == before.manifest.model.id
    assert report["agreement"]["images"] == 5
    assert report["agreement"]["max_abs_difference"] > 0
    assert REPORT not in before.manifest.files
    costs = [json.loads(bundle.file("reports/cost.json").read_text())["macs"] for bundle in (before, after)]
    assert costs[1] < costs[0]

    run("prompts", "build", plain, "--name", "things", "--classes", "cat, cup, rocket")
    table = before.path / "prompts" / "things.safetensors"
    assert after.manifest.model.id != before.manifest.model.id
    after.add_table(Bundle.open(plain).table("things"))
    lines = tmp_path / "labels.jsonl"
    run("label", reduced, photographs_dir, "--table", "things", "--variant", "fp32", "--jsonl", lines)
    labels = [json.loads(line)["label"] for line in lines.read_text().splitlines()]
    assert len(labels) == 5
    assert set(labels) <= {"cat", "cup", "rocket"}
    assert table.is_file()


def test_a_report_compares_the_merged_tower_with_the_unmerged_one(checkpoint: Path, photographs_dir: Path) -> None:
    model = load_checkpoint(str(checkpoint))
    photos = [(path.name, read_image(path)) for path in sorted(photographs_dir.iterdir())]
    classes = np.eye(32, dtype=np.float32)[:4]
    preprocess = Preprocessor(model.encoder.preprocess)
    images = torch.from_numpy(np.stack([preprocess(image) for _, image in photos]))
    reduced = MergedModel(model, 3)
    report = reduced.report(photos, classes)
    before, after = (each.encode_image(images).numpy() for each in (model, reduced))
    cosines = (unit_rows(before) * unit_rows(after)).sum(axis=1)
    assert report.agreement.max_abs_difference == pytest.approx(np.abs(before - after).max(), rel=0.01)
    assert report.agreement.min_cosine == pytest.approx(cosines.min(), abs=1e-5)
    assert report.agreement.mean_cosine == pytest.approx(cosines.mean(), abs=1e-5)
    assert report.agreement.max_abs_difference > 1e-4


def test_the_text_side_is_found_again_and_each_number_is_a_model_of_its_own(checkpoint: Path) -> None:
    model = load_checkpoint(str(checkpoint))
    one, two = MergedModel(model, 1), MergedModel(model, 2)
    assert len({model.identity.id, one.identity.id, two.identity.id}) == 3
    assert one.identity.table_ids == (one.identity.id, model.identity.id)
    assert one.identity.text_sha256 == model.identity.text_sha256
    assert one.identity.origin == model.identity.origin
