"""Weights, folders and options of open_clip: what they say is taken, what nobody says is asked for."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgeclip.class_names import make_classes
from edgeclip.errors import ModelError, PromptError, RecipeError
from edgeclip.spec import ModelOptions

torch = pytest.importorskip("torch")
open_clip = pytest.importorskip("open_clip")

from edgeclip.export.prompt_table import table_for_bundle  # noqa: E402
from edgeclip.training.load import in_full, load_again, load_model, load_text_tower, short_name  # noqa: E402
from edgeclip.training.recipe import Tower  # noqa: E402
from edgeclip.training.towers.build import build_image_tower, build_text_tower  # noqa: E402

TINY = "tiny-of-the-tests"
TEXT = {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
VISION = {"image_size": 64, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
CONFIG = {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT}
SQUASH = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "interpolation": "bilinear", "resize_mode": "squash"}
SHORTEST = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bicubic", "resize_mode": "shortest"}


@pytest.fixture(autouse=True)
def tiny(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An architecture of open_clip that is built in milliseconds, with two tags that agree."""
    path = tmp_path_factory.mktemp("configs") / f"{TINY}.json"
    path.write_text(json.dumps(CONFIG))
    open_clip.add_model_config(path)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, TINY, {"one": dict(SQUASH), "two": dict(SQUASH)})
    yield
    open_clip.factory._MODEL_CONFIG_PATHS.remove(path)
    open_clip.factory._MODEL_CONFIGS.pop(TINY)


def weights(path: Path, *, wrapped: Any = None, **changes: Any) -> str:
    """A file of weights of the tiny architecture; ``wrapped`` puts them as a training script may."""
    torch.manual_seed(1)
    state = open_clip.create_model(TINY, pretrained_text=False, **changes).state_dict()
    torch.save(wrapped(state) if wrapped else state, path)
    return str(path)


# Preprocessing


def test_a_files_preprocessing_is_what_all_tags_of_its_architecture_have(tmp_path: Path) -> None:
    spec = load_model(TINY, pretrained=weights(tmp_path / "w.pt")).encoder.preprocess
    assert (spec.resize, spec.interpolation, spec.mean, spec.std) == ("squash", "bilinear", (0.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize(
    ("name", "mean", "resize"), [("MobileCLIP2-S0", 0.0, "shortest"), ("ViT-B-16-SigLIP", 0.5, "squash")]
)
def test_real_architectures_have_their_tags_preprocessing(name: str, mean: float, resize: str) -> None:
    tags = open_clip.list_pretrained_tags_by_model(name)
    found = {
        (open_clip.get_pretrained_cfg(name, tag)["mean"], open_clip.get_pretrained_cfg(name, tag)["resize_mode"])
        for tag in tags
    }
    assert found == {((mean,) * 3, resize)}


def test_where_tags_differ_the_preprocessing_has_to_be_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tags = {"one": dict(SQUASH), "two": dict(SHORTEST), "three": {**SHORTEST, "interpolation": "bilinear"}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, TINY, tags)
    path = weights(tmp_path / "w.pt")
    expected = r"expected mean and std and interpolation and resize_mode .* squash in one; shortest in two, three"
    with pytest.raises(ModelError, match=expected):
        load_model(TINY, pretrained=path)
    with pytest.raises(ModelError, match=r"expected interpolation and resize_mode for"):
        load_model(TINY, pretrained=path, options=ModelOptions(mean=(0.1, 0.2, 0.3), std=(1, 1, 1)))
    options = ModelOptions(mean=(0.1, 0.2, 0.3), std=(1, 1, 1), interpolation="bicubic", resize_mode="squash")
    spec = load_model(TINY, pretrained=path, options=options).encoder.preprocess
    assert (spec.mean, spec.interpolation, spec.resize) == ((0.1, 0.2, 0.3), "bicubic", "squash")
    assert load_model(TINY, pretrained="none").origin.seed == 0  # of random weights nothing is asked


def test_without_tags_the_default_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, TINY, {})
    model = load_model(TINY, pretrained=weights(tmp_path / "w.pt"))
    assert model.encoder.preprocess.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    assert "nothing says how images of" in caplog.text
    assert model.notes == tuple(record.getMessage() for record in caplog.records if record.name == "edgeclip")


def test_an_activation_that_tags_were_trained_with_is_pointed_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, TINY, {"openai": {**SQUASH, "quick_gelu": True}})
    (note,) = load_model(TINY, pretrained=weights(tmp_path / "w.pt")).notes
    assert note == (f"the weights are run with GELU, as {TINY} says; if they began as openai, name {TINY}-quickgelu")


# Sizes


def test_image_size_and_context_are_taken_from_the_weights_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = weights(tmp_path / "w.pt", force_image_size=96, force_context_length=12)
    model = load_model(TINY, pretrained=path)
    assert (model.encoder.preprocess.height, model.encoder.preprocess.width) == (96, 96)
    assert model.origin.options == ModelOptions(image_size=(96, 96), context_length=12)
    assert "trained at 96x96 pixels, not 64x64" in caplog.text
    assert "texts of 12 tokens, not 20" in caplog.text
    reference = open_clip.create_model(TINY, pretrained=path, force_image_size=96, force_context_length=12).eval()
    image = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model.encode_image(image), reference.encode_image(image))
    texts = ["a cat", "word " * 50]
    expected = model.encode_text(texts)
    caplog.clear()
    assert (load_text_tower(model.identity).encode_text(texts) == expected).all()
    assert load_again(model.origin).identity == model.identity
    assert not caplog.records  # what was said once is in the manifest
    assert model.text.too_long([*texts, "word " * 10, "word " * 11]) == [texts[1], "word " * 11]


def test_another_size_than_that_of_the_weights_is_resampled_only_when_asked(tmp_path: Path) -> None:
    path = weights(tmp_path / "w.pt")
    model = load_model(TINY, pretrained=path, options=ModelOptions(image_size=96))
    assert model.encoder.preprocess.height == 96
    assert any("resampled to 96x96" in note for note in model.notes)
    assert load_again(model.origin).identity == model.identity
    for options, message in (
        (ModelOptions(image_size=90), "in multiples of 16x16"),
        (ModelOptions(context_length=77), "expected context_length 20"),
    ):
        with pytest.raises(ModelError, match=message):
            load_model(TINY, pretrained=path, options=options)


def test_weights_of_images_that_are_no_square_want_their_size(tmp_path: Path) -> None:
    path = weights(tmp_path / "w.pt", force_image_size=(48, 96))
    with pytest.raises(ModelError, match="18 patches of 16x16 pixels, which are no square: give image_size"):
        load_model(TINY, pretrained=path)
    spec = load_model(TINY, pretrained=path, options=ModelOptions(image_size=(48, 96))).encoder.preprocess
    assert (spec.height, spec.width) == (48, 96)


def test_a_recipes_tower_says_its_size_itself(tmp_path: Path) -> None:
    path = weights(tmp_path / "w.pt", force_image_size=96)
    with pytest.raises(RecipeError, match=r"has image_size \(96, 96\): give it in the options"):
        build_image_tower(Tower(name=f"open_clip:{TINY}", pretrained=path))
    stated = Tower(name=f"open_clip:{TINY}", pretrained=path, options={"image_size": [96, 96]})
    assert build_image_tower(stated).preprocess.height == 96
    with pytest.raises(RecipeError, match="unknown field `depth`"):
        build_text_tower(Tower(name=f"open_clip:{TINY}", options={"depth": 3}))


# Weights as training leaves them


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda state: {f"_orig_mod.{key}": value for key, value in state.items()},
        lambda state: {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}},
        lambda state: {"model": state, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}},
        lambda state: {"model": {f"module._orig_mod.{key}": value for key, value in state.items()}},
        lambda state: {"state_dict": {f"model.{key}": value for key, value in state.items()}},
        lambda state: {key.replace("visual.", "visual._orig_mod."): value for key, value in state.items()},
        lambda state: {key: value.half() for key, value in state.items()},
    ],
)
def test_weights_are_found_however_training_wrapped_them(tmp_path: Path, wrapped: Any) -> None:
    plain, other = weights(tmp_path / "plain.pt"), weights(tmp_path / "wrapped.pt", wrapped=wrapped)
    expected, found = (load_model(TINY, pretrained=path).encode_text(["a cat"]) for path in (plain, other))
    assert abs(expected - found).max() < 1e-2


@pytest.mark.parametrize(
    ("wrapped", "message"),
    [
        (lambda state: {**state, "foo.bar": torch.zeros(1)}, r"1 are none of the model's \(foo\.bar\)"),
        (lambda state: {**state, "visual.proj": torch.zeros(3, 4)}, r"visual\.proj: \(32, 16\) in the model, \(3, 4\)"),
        (
            lambda state: {key: value for key, value in state.items() if key != "visual.proj"},
            r"1 weights of the model are missing \(visual\.proj\)",
        ),
        (lambda state: {"vision_model.a": torch.zeros(2), "text_model.b": torch.zeros(2)}, "names of transformers"),
        (lambda state: {"model": state, "ema": state}, "one set of weights .* got ema, model"),
        (lambda state: {"epoch": 3}, "expected weights in .* got none"),
        (lambda state: [1, 2], "expected weights in .* got none"),
        (lambda state: {**state, "logit_bias": torch.tensor(float("nan"))}, "one finite logit_bias"),
        (lambda state: Path, "got something else"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path: Path, wrapped: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(TINY, pretrained=weights(tmp_path / "w.pt", wrapped=wrapped))


@pytest.mark.parametrize("content", [b"abc", b"", b"\x80\x02.", bytes(range(256))])
def test_a_file_of_no_weights_is_refused(tmp_path: Path, content: bytes) -> None:
    for name in ("w.pt", "w.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError):
            load_model(TINY, pretrained=str(tmp_path / name))


def test_a_bias_of_the_scores_is_taken_from_the_weights(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    encoder = load_model(TINY, pretrained=weights(tmp_path / "bias.pt", init_logit_bias=-9.5)).encoder
    assert (encoder.score, encoder.logit_bias) == ("sigmoid", -9.5)
    assert "has a logit_bias (-9.5)" in caplog.text
    plain = weights(tmp_path / "plain.pt")
    assert load_model(TINY, pretrained=plain).encoder.score == "softmax"
    given = load_model(TINY, pretrained=plain, options=ModelOptions(init_logit_bias=-3)).encoder
    assert (given.score, given.logit_bias) == ("sigmoid", -3.0)


# Folders, and where they are


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of open_clip as its authors keep one."""
    path = tmp_path / "mine"
    path.mkdir()
    (path / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": SQUASH}))
    weights(path / "open_clip_pytorch_model.bin")
    return path


def test_a_folder_of_open_clip_is_found_again_from_anywhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = load_model(f"local-dir:{folder}")
    assert expected.encoder.preprocess.resize == "squash"
    for place, name in (
        (folder.parent, "mine"),
        (folder.parent, "local-dir:mine"),
        (folder, "."),
        (folder, "../mine/"),
    ):
        monkeypatch.chdir(place)
        model = load_model(name)
        monkeypatch.chdir("/")
        assert model.identity.image_sha256 == expected.identity.image_sha256
        assert model.origin.name == f"local-dir:{folder}"
        assert load_text_tower(model.identity).sha256 == model.text.sha256
        assert load_again(model.origin).identity == model.identity
    assert load_again(load_model(str(folder), pretrained="none").origin).origin.seed == 0


def test_a_model_of_the_hub_is_read_from_its_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    repository = tmp_path / "hub" / "models--me--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots").mkdir()
    folder.rename(repository / "snapshots" / ("0" * 40))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    model = load_model("hf-hub:me/tiny")
    assert (model.name, model.encoder.preprocess.resize) == ("hf-hub:me/tiny", "squash")
    assert load_text_tower(model.identity).sha256 == model.text.sha256
    with pytest.raises(ModelError, match="cannot load the open_clip model hf-hub:me/other"):
        load_model("hf-hub:me/other")


def test_a_file_of_weights_is_found_again_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights(tmp_path / "w.pt")
    monkeypatch.chdir(tmp_path)
    model = load_model(TINY, pretrained="w.pt")
    monkeypatch.chdir("/")
    assert model.origin.pretrained == str(tmp_path / "w.pt")
    assert load_text_tower(model.identity).sha256 == model.text.sha256


def test_what_a_folder_lacks_is_told(folder: Path) -> None:
    config = folder / "open_clip_config.json"
    (folder / "open_clip_pytorch_model.bin").rename(folder / "a.pt")
    assert load_model(str(folder)).origin.loader == "open_clip"
    (folder / "b.pt").write_bytes(b"")
    with pytest.raises(ModelError, match=r"one file of weights .* got a\.pt, b\.pt"):
        load_model(str(folder))
    with pytest.raises(ModelError, match="a file of weights with local-dir:"):
        load_model(str(folder), pretrained="laion2b")
    for text, message in (
        ("{", "not JSON"),
        ("{}", "expected model_cfg with"),
        ('{"model_cfg": 3}', "expected model_cfg"),
    ):
        config.write_text(text)
        with pytest.raises(ModelError, match=message):
            load_model(str(folder))
    with pytest.raises(ModelError, match=r"expected open_clip_config\.json in the folder"):
        load_model(f"local-dir:{folder.parent}")


def test_a_bundle_of_the_folder_one_stands_in_has_a_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert [short_name(name) for name in (".", "./", "../mine", f"local-dir:{folder}", "hf:.", "..")] == [
        *["mine"] * 5,
        folder.parent.name,
    ]
    assert short_name("hf:openai/clip") == short_name("hf-hub:openai/clip") == "clip"
    assert (short_name("ViT-B-32"), short_name("/")) == ("ViT-B-32", "model")
    assert in_full("ViT-B-32") == "ViT-B-32"


def test_options_are_for_open_clip_alone() -> None:
    with pytest.raises(ModelError, match="options are for open_clip names, got image_size with 'starter'"):
        load_model("starter", options=ModelOptions(image_size=96))


def test_a_table_says_what_it_cuts_each_time_it_is_built(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """From the cache too; and a class that is another only in case is named."""
    monkeypatch.setenv("EDGECLIP_CACHE", str(tmp_path / "cache"))
    model = load_model(str(folder))
    bundle: Any = SimpleNamespace(manifest=SimpleNamespace(model=model.identity, encoder=model.encoder))
    for _ in range(2):
        caplog.clear()
        table_for_bundle(bundle, make_classes(["cat", "Cat", "dog " * 40]), ["a {}"], name="t")
        said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert "1 prompts are longer than the model's context and are cut, such as 'a dog dog" in said[0]
        assert said[1] == "table t: the model cannot tell these classes apart, their rows are equal: 'cat', 'Cat'"
    with pytest.raises(PromptError, match="all 2 classes of 't' get the same row"):
        table_for_bundle(bundle, make_classes(["cat", "CAT"]), ["a {}"], name="t")
