"""Models from open_clip and transformers: text, preprocessing, activations, identity and errors."""

from __future__ import annotations

import gc
import gzip
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeclip.errors import ModelError
from edgeclip.export.photographs import photographs
from edgeclip.runtime.preprocess.preprocess import Preprocessor

torch = pytest.importorskip("torch")
open_clip = pytest.importorskip("open_clip")
transformers = pytest.importorskip("transformers")

from edgeclip.export.proofs import class_rows  # noqa: E402
from edgeclip.training.load import load_model, load_text_tower  # noqa: E402
from edgeclip.training.model import ContrastiveModel, weights_digest  # noqa: E402
from edgeclip.training.towers.hugging_face import _CLIP, _SIGLIP, TransformersModel, _preprocess_spec  # noqa: E402
from edgeclip.training.towers.open_clip import CausalText, OpenClipModel, OpenClipTextTower  # noqa: E402
from edgeclip.training.towers.quiet import quiet  # noqa: E402

TEXTS = ["a cat", "a photo of a dog.", "a close-up photo of the small, red fire engine parked in a narrow street"]
LONG = "word " * 200


def tokenizer_folder(folder: Path) -> Path:
    """Write CLIP's tokenizer, as transformers reads it, from the vocabulary that open_clip ships."""
    tokenizer = open_clip.tokenizer.SimpleTokenizer()
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {names.get(token, token): index for token, index in tokenizer.encoder.items()}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    packaged = gzip.decompress(Path(open_clip.tokenizer.default_bpe()).read_bytes()).decode()
    merges = packaged.split("\n")[1 : 49152 - 256 - 2 + 1]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": "<|endoftext|>"})
    )
    return folder


@pytest.fixture(scope="module")
def clip() -> Iterator[OpenClipModel]:
    yield OpenClipModel("ViT-B-32", None, seed=1)
    gc.collect()


@pytest.fixture(scope="module")
def siglip() -> Iterator[OpenClipModel]:
    yield OpenClipModel("ViT-B-16-SigLIP", None, seed=1)
    gc.collect()


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CLIPModel of transformers with a full tokenizer."""
    torch.manual_seed(0)
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.CLIPConfig(
        text_config={**small, "eos_token_id": 49407, "bos_token_id": 49406, "pad_token_id": 49407},
        vision_config={**small, "image_size": 64, "patch_size": 16},
        projection_dim=32,
    )
    folder = tmp_path_factory.mktemp("clip")
    transformers.CLIPModel(config).save_pretrained(folder)
    return tokenizer_folder(folder)


@pytest.fixture(scope="module")
def siglip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small SiglipModel of transformers; no tokenizer for it can be had offline."""
    torch.manual_seed(0)
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.SiglipConfig(
        text_config={**small, "vocab_size": 100, "max_position_embeddings": 16, "projection_size": 64},
        vision_config={**small, "image_size": 64, "patch_size": 16},
    )
    folder = tmp_path_factory.mktemp("siglip")
    transformers.SiglipModel(config).save_pretrained(folder)
    return folder


# Text of open_clip models


@pytest.mark.parametrize("texts", [TEXTS, TEXTS[:1], ["", LONG], [LONG]])
def test_trimmed_clip_text_equals_open_clips_own_at_full_context(clip: OpenClipModel, texts: list[str]) -> None:
    tokens = open_clip.get_tokenizer("ViT-B-32")(texts)
    assert tokens.shape[1] == 77
    with torch.no_grad():
        expected = clip._model.encode_text(tokens).numpy()
    np.testing.assert_allclose(clip.encode_text(texts), expected, atol=1e-5)


def test_clip_text_runs_only_as_far_as_the_longest_prompt(clip: OpenClipModel) -> None:
    lengths = []
    text = clip.text.modules()[0]
    hook = text.transformer.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    clip.encode_text(["a cat"])
    hook.remove()
    assert lengths == [4]  # start, a, cat, end


@pytest.mark.parametrize("name", ["MobileCLIP2-S0", "coca_ViT-B-32", "PE-Core-T-16-384"])
def test_other_towers_equal_open_clips_own(name: str) -> None:
    model = OpenClipModel(name, None, seed=1)
    tokens = open_clip.get_tokenizer(name)(TEXTS)
    with torch.no_grad():
        expected = model._model.encode_text(tokens, normalize=False).numpy()
    np.testing.assert_allclose(model.encode_text(TEXTS), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["MobileCLIP2-S0", "ViT-B-16-SigLIP", "coca_ViT-B-32"])
def test_towers_that_see_their_padding_are_never_trimmed(name: str) -> None:
    model = OpenClipModel(name, None)
    assert not isinstance(model.text.modules()[0], CausalText)


def test_siglip_tokens_equal_open_clips_own(siglip: OpenClipModel) -> None:
    tokens = torch.randint(2, 32000, (3, 64), generator=torch.Generator().manual_seed(0))
    tokens[:, 9:] = 1  # padding, which this tower attends to and pools from
    assert isinstance(siglip.text, OpenClipTextTower)
    with torch.no_grad():
        expected = siglip._model.encode_text(tokens).numpy()
    np.testing.assert_allclose(siglip.text.encode_tokens(tokens), expected, atol=1e-5)


def test_a_missing_tokenizer_is_one_error_and_only_when_text_is_encoded(siglip: OpenClipModel, offline: None) -> None:
    assert siglip.encoder.embedding_dim == 768
    with pytest.raises(ModelError, match=r"tokenizer of ViT-B-16-SigLIP.*cannot be reached"):
        siglip.encode_text(["a cat"])
    assert class_rows(siglip.text, 768).shape == (0, 768)  # an export goes on without classes


def test_a_texts_embedding_does_not_depend_on_its_batch(clip: OpenClipModel, clip_folder: Path) -> None:
    for model in (clip, TransformersModel(str(clip_folder))):
        together, alone = model.encode_text(TEXTS), [model.encode_text([text])[0] for text in TEXTS]
        np.testing.assert_allclose(together, np.stack(alone), atol=1e-5)


# Text of transformers models


def test_transformers_clip_text_equals_the_library_at_full_padding(clip_folder: Path) -> None:
    model = TransformersModel(str(clip_folder))
    tokens = transformers.AutoTokenizer.from_pretrained(clip_folder)(
        [*TEXTS, LONG], padding="max_length", truncation=True, max_length=77, return_tensors="pt"
    )
    with torch.no_grad():
        output = transformers.CLIPModel.from_pretrained(clip_folder).eval().get_text_features(**tokens)
    expected = output if isinstance(output, torch.Tensor) else output.pooler_output
    np.testing.assert_allclose(model.encode_text([*TEXTS, LONG]), expected.numpy(), atol=1e-5)


def test_transformers_reads_the_tokens_that_open_clip_writes(clip_folder: Path) -> None:
    ours = transformers.AutoTokenizer.from_pretrained(clip_folder)(TEXTS, padding="longest", return_tensors="pt")
    theirs = open_clip.get_tokenizer("ViT-B-32")(TEXTS)
    for ids, mask, full in zip(ours["input_ids"], ours["attention_mask"], theirs, strict=True):
        length = int(mask.sum())
        assert ids[:length].tolist() == full[:length].tolist()
        assert not full[length:].any()


def test_a_folder_without_its_tokenizer_encodes_no_text(
    clip_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of such a folder transformers makes a tokenizer of two tokens, by which all texts are the same."""
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).symlink_to(clip_folder / file)
    model = load_model(str(tmp_path))
    with pytest.raises(ModelError, match=r"expected a tokenizer of 49,408 tokens, .* got one of 2: put"):
        model.encode_text(TEXTS)
    assert class_rows(model.text, 32).shape == (0, 32)
    assert "no prompt can be encoded (expected a tokenizer" in caplog.text


def test_a_tokenizer_whose_texts_end_elsewhere_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    for file in clip_folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    config = json.loads((clip_folder / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 5
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"texts end in token 5, .* got 49407"):
        load_model(str(tmp_path)).encode_text(TEXTS)


def test_a_damaged_tokenizer_is_one_sentence(clip_folder: Path, tmp_path: Path) -> None:
    for file in clip_folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "vocab.json").unlink()
    vocabulary = json.loads((clip_folder / "vocab.json").read_text())
    (tmp_path / "vocab.json").write_text(json.dumps(dict(list(vocabulary.items())[:30_000])))
    with pytest.raises(ModelError, match="cannot load the tokenizer of"):
        load_model(str(tmp_path)).encode_text(TEXTS)


def test_texts_longer_than_the_context_are_found(clip: OpenClipModel, clip_folder: Path) -> None:
    texts = ["a cat", LONG, "word " * 75, "word " * 76]  # 77 tokens with start and end; one more
    for model in (clip, TransformersModel(str(clip_folder))):
        assert model.text.too_long(texts) == [texts[1], texts[3]]
        assert model.text.too_long([]) == []
    starter = load_model("starter")
    assert starter.text.too_long(["a cat", "word " * 126, "word " * 127]) == ["word " * 127]


class WordTokenizer:
    """Stands for SigLIP's tokenizer, which must be downloaded: a token a word, padded with 1 when asked to."""

    def __call__(self, texts: list[str], *, padding: str, max_length: int, **_: object) -> dict[str, object]:
        assert all(text == text.lower() for text in texts)
        rows = [[2 + sum(map(ord, word)) % 90 for word in text.split()][:max_length] for text in texts]
        longest = max_length if padding == "max_length" else max(map(len, rows))
        return {
            "input_ids": torch.tensor([row + [1] * (longest - len(row)) for row in rows]),
            "attention_mask": torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows]),
        }


def test_siglip_text_is_lower_cased_padded_to_its_context_and_not_masked(siglip_folder: Path) -> None:
    model = TransformersModel(str(siglip_folder))
    model.text._tokenizer = tokenizer = WordTokenizer()  # type: ignore[attr-defined]
    texts = [text.lower() for text in TEXTS]
    tokens = tokenizer(texts, padding="max_length", max_length=16)["input_ids"]
    with torch.no_grad():
        output = transformers.SiglipModel.from_pretrained(siglip_folder).eval().get_text_features(input_ids=tokens)
    expected = output if isinstance(output, torch.Tensor) else output.pooler_output
    np.testing.assert_allclose(model.encode_text([text.upper() for text in TEXTS]), expected.numpy(), atol=1e-5)
    np.testing.assert_allclose(model.encode_text(TEXTS[:1]), expected[:1].numpy(), atol=1e-5)


# Activations


@pytest.fixture
def openai_weights(clip: OpenClipModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes every download of open_clip yield the random weights of ``clip``."""
    path = tmp_path / "weights.pt"
    torch.save(clip._model.state_dict(), path)
    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *_, **__: str(path))
    return path


@pytest.mark.parametrize(
    ("name", "tag", "activation"),
    [
        ("ViT-B-32", "openai", "QuickGELU"),
        ("ViT-B-32-quickgelu", "openai", "QuickGELU"),
        ("ViT-B-32", "laion2b_s34b_b79k", "GELU"),
    ],
)
def test_weights_run_with_the_activation_they_were_trained_with(
    openai_weights: Path, name: str, tag: str, activation: str
) -> None:
    model = OpenClipModel(name, tag)
    for transformer in (model._model.visual.transformer, model._model.transformer):
        assert {type(block.mlp.gelu).__name__ for block in transformer.resblocks} == {activation}
    assert model.origin.seed is None


def test_a_checkpoint_file_loads_like_a_tag(clip: OpenClipModel, openai_weights: Path) -> None:
    model = load_model("ViT-B-32", pretrained=str(openai_weights))
    assert model.text.sha256 == clip.text.sha256
    assert model.origin.pretrained == str(openai_weights)


# Preprocessing


@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_open_clips_evaluation_transform_and_our_spec_mean_the_same(clip: OpenClipModel, mode: str) -> None:
    from edgeclip.training.towers.open_clip_load import preprocess_spec

    config = {**clip._model.visual.preprocess_cfg, "resize_mode": mode}
    transform = open_clip.transform.image_transform_v2(open_clip.transform.PreprocessCfg(**config), is_train=False)
    preprocess = Preprocessor(preprocess_spec(config))
    for name, pixels in photographs():
        theirs, ours = transform(Image.fromarray(pixels)).numpy(), preprocess(pixels)
        # In units of one grey level; the resizers differ, a crop or a normalisation that is off would be far above.
        difference = np.abs(ours - theirs) * 255 * np.reshape(config["std"], (3, 1, 1))
        assert difference.mean() < 1.0, name


@pytest.mark.parametrize(
    "change", [{"resize_mode": "longest"}, {"size": (224, 196)}, {"interpolation": "nearest"}], ids=str
)
def test_preprocessing_that_cannot_be_stated_is_refused(clip: OpenClipModel, change: dict[str, object]) -> None:
    from edgeclip.training.towers.open_clip_load import preprocess_spec

    with pytest.raises(ModelError, match="expected"):
        preprocess_spec({**clip._model.visual.preprocess_cfg, **change})


OPENAI_PROCESSOR = {  # openai/clip-vit-base-patch32
    "crop_size": 224, "do_center_crop": True, "do_normalize": True, "do_resize": True, "resample": 3, "size": 224,
    "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
}  # fmt: skip
GOOGLE_PROCESSOR = {  # google/siglip-base-patch16-224
    "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": [0.5, 0.5, 0.5], "resample": 3,
    "image_std": [0.5, 0.5, 0.5], "rescale_factor": 0.00392156862745098, "size": {"height": 224, "width": 224},
}  # fmt: skip


@pytest.mark.parametrize(
    ("family", "settings", "expected"),
    [
        (_CLIP, OPENAI_PROCESSOR, ("shortest", 224, "bicubic")),
        (_CLIP, {**OPENAI_PROCESSOR, "size": {"shortest_edge": 256}, "resample": 2}, ("shortest", 256, "bilinear")),
        (_CLIP, {**OPENAI_PROCESSOR, "crop_size": {"height": 224, "width": 224}}, ("shortest", 224, "bicubic")),
        (_CLIP, {}, ("shortest", 224, "bicubic")),
        (_SIGLIP, GOOGLE_PROCESSOR, ("squash", 224, "bicubic")),
        (_SIGLIP, {}, ("squash", 224, "bicubic")),
    ],
)
def test_image_processor_settings_become_a_spec(family, settings, expected) -> None:  # type: ignore[no-untyped-def]
    spec = _preprocess_spec(settings, family, 224)
    assert (spec.resize, spec.resize_to, spec.interpolation) == expected
    assert spec.mean == pytest.approx(family.mean)
    assert spec.std == pytest.approx(family.std)


def test_an_unusual_rescale_factor_is_folded_into_mean_and_std() -> None:
    spec = _preprocess_spec({**GOOGLE_PROCESSOR, "rescale_factor": 1 / 127.5, "image_mean": [1, 1, 1]}, _SIGLIP, 224)
    value = 200.0
    assert (value / 255 - spec.mean[0]) / spec.std[0] == pytest.approx((value / 127.5 - 1) / 0.5)


@pytest.mark.parametrize(
    "change",
    [{"resample": 1}, {"do_resize": False}, {"do_center_crop": False}, {"crop_size": 196},
     {"size": {"height": 256, "width": 256}}, {"size": {"longest_edge": 224}}],
    ids=str,
)  # fmt: skip
def test_an_image_processor_that_cannot_be_stated_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ModelError, match="expected"):
        _preprocess_spec({**OPENAI_PROCESSOR, **change}, _CLIP, 224)


def test_the_image_processor_of_a_folder_is_read(siglip_folder: Path, tmp_path: Path) -> None:
    for file in siglip_folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    settings = {**GOOGLE_PROCESSOR, "size": {"height": 64, "width": 64}, "image_mean": [0.1, 0.2, 0.3]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    assert load_model(str(tmp_path)).encoder.preprocess.mean == pytest.approx((0.1, 0.2, 0.3))
    nested = {"image_processor": {**settings, "image_mean": [0.3, 0.2, 0.1]}}  # as transformers 5 saves it
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    assert load_model(str(tmp_path)).encoder.preprocess.mean == pytest.approx((0.3, 0.2, 0.1))


# Identity, scoring


def test_the_same_seed_gives_the_same_model_and_another_seed_another() -> None:
    state = torch.get_rng_state()
    one, same, other = (load_model("PE-Core-T-16-384", pretrained="none", seed=seed) for seed in (1, 1, 2))
    assert one.identity == same.identity
    assert one.identity.id != other.identity.id
    assert torch.equal(torch.get_rng_state(), state)


def test_scores_are_read_from_the_model(clip: OpenClipModel, siglip: OpenClipModel, siglip_folder: Path) -> None:
    assert (clip.encoder.score, clip.encoder.logit_bias) == ("softmax", 0.0)
    assert clip.encoder.logit_scale == pytest.approx(1 / 0.07)
    assert (siglip.encoder.score, siglip.encoder.logit_bias) == ("sigmoid", -10.0)
    theirs = transformers.SiglipModel.from_pretrained(siglip_folder)
    encoder = load_model(f"hf:{siglip_folder}").encoder
    assert encoder.score == "sigmoid"
    assert encoder.logit_scale == pytest.approx(theirs.logit_scale.exp().item())
    assert encoder.logit_bias == pytest.approx(theirs.logit_bias.item())


def test_a_text_tower_loads_again_from_the_identity_without_the_image_side(
    clip: OpenClipModel, clip_folder: Path, siglip_folder: Path
) -> None:
    np.testing.assert_array_equal(load_text_tower(clip.identity).encode_text(TEXTS), clip.encode_text(TEXTS))
    for folder in (clip_folder, siglip_folder):
        identity = load_model(str(folder)).identity
        assert load_text_tower(identity).sha256 == identity.text_sha256


def test_a_text_tower_with_other_weights_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    identity = load_model(str(clip_folder)).identity
    changed = transformers.CLIPModel.from_pretrained(clip_folder)
    with torch.no_grad():
        changed.text_projection.weight[0, 0] += 1
    changed.save_pretrained(tmp_path)
    import msgspec

    moved = msgspec.structs.replace(identity, origin=msgspec.structs.replace(identity.origin, name=str(tmp_path)))
    with pytest.raises(ModelError, match="has changed: expected text weights"):
        load_text_tower(moved)


# Errors


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network and an empty cache, whatever this machine has."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "https://nowhere.invalid")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("urllib.request.getproxies", dict)


@pytest.mark.parametrize(
    ("name", "pretrained", "message"),
    [
        ("ViT-B32", "none", r"did you mean one of .*ViT-B-32\b"),
        ("ViT-B-32", None, r"`pretrained` with ViT-B-32: .*laion2b_s34b_b79k.*or none for random"),
        ("ViT-B-32", "laion", r"got 'laion': give one of .*laion2b_s34b_b79k"),
        ("ViT-B-32", "laion2b_s34b_b79k", "cannot load ViT-B-32 with weights laion2b_s34b_b79k: .*cannot be reached"),
        ("hf:openai/clip-vit-base-patch32", None, "cannot load the transformers model openai/.*cannot be reached"),
        ("hf:./no-such-folder", None, "no such folder"),
        ("hf:openai/clip", "openai", "`pretrained` is for open_clip names"),
    ],
)
def test_what_cannot_be_loaded_is_one_quick_sentence(
    offline: None, name: str, pretrained: str | None, message: str
) -> None:
    start = time.perf_counter()
    with pytest.raises(ModelError, match=message) as caught:
        load_model(name, pretrained=pretrained)
    assert "\n" not in str(caught.value)
    assert time.perf_counter() - start < 10


def test_folders_without_a_model_are_refused(tmp_path: Path, clip_folder: Path) -> None:
    with pytest.raises(ModelError, match=r"expected config\.json"):
        load_model(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelError, match="of type clip, siglip, got bert"):
        load_model(str(tmp_path))
    (tmp_path / "config.json").write_text((clip_folder / "config.json").read_text())
    with pytest.raises(ModelError, match="cannot load the transformers model"):
        load_model(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ModelError, match="cannot load the transformers model"):
        load_model(str(tmp_path))


def test_a_checkpoint_that_lacks_weights_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(clip_folder / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((clip_folder / "config.json").read_text())
    with pytest.raises(ModelError, match=r"lacks 1 weights \(visual_projection.weight"):
        load_model(str(tmp_path))


def test_weights_of_other_shapes_than_the_configuration_says_are_named(clip_folder: Path, tmp_path: Path) -> None:
    config = json.loads((clip_folder / "config.json").read_text())
    config["vision_config"]["image_size"] = 96
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(clip_folder / "model.safetensors")
    with pytest.raises(
        ModelError, match=r"position_embedding\.weight: \(37, 64\) by its config, \(17, 64\) in the file"
    ):
        load_model(str(tmp_path))


def test_a_bias_of_the_scores_that_the_configuration_does_not_know_is_refused(
    clip_folder: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    state = {**load_file(clip_folder / "model.safetensors"), "logit_bias": torch.zeros(1)}
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((clip_folder / "config.json").read_text())
    with pytest.raises(ModelError, match="expected no logit_bias"):
        load_model(str(tmp_path))


def test_preprocessing_that_a_folder_does_not_state_is_said(clip_folder: Path) -> None:
    assert "no preprocessor_config.json" in load_model(str(clip_folder)).notes[0]


def test_loading_leaves_the_processs_logging_alone() -> None:
    root = logging.getLogger()
    handlers = list(root.handlers)
    load_model("PE-Core-T-16-384", pretrained="none")
    assert root.handlers == handlers
    assert root.manager.disable == logging.NOTSET


def test_a_tower_pooled_at_its_class_token_is_exported_without_the_other_tokens_last_block(
    clip: OpenClipModel, clip_folder: Path
) -> None:
    """The embeddings stay; what the last block's MLP is given is one token; the model itself is as it was."""
    for model, last in (
        (clip, "visual.transformer.resblocks.{}.block.mlp"),
        (TransformersModel(str(clip_folder)), "vision_model.encoder.layers.{}.layer.mlp"),
    ):
        images = torch.randn(2, 3, *_size(model), generator=torch.Generator().manual_seed(0))
        before = model.identity
        exported = model.exportable()
        seen: list[tuple[int, ...]] = []
        mlp = exported.get_submodule(last.format(_blocks(exported) - 1))
        mlp.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(tuple(given[0].shape)))
        with torch.inference_mode():
            embeddings = exported(images)
        assert [shape[1] for shape in seen] == [1]
        torch.testing.assert_close(embeddings, model.encode_image(images), atol=1e-5, rtol=1e-4)
        assert weights_digest(model.image_modules()) == before.image_sha256
        assert _blocks(exported) == _blocks(model.image_modules()[0])


def _size(model: ContrastiveModel) -> tuple[int, int]:
    return model.encoder.preprocess.height, model.encoder.preprocess.width


def _blocks(module: torch.nn.Module) -> int:
    lists = [part for part in module.modules() if isinstance(part, torch.nn.ModuleList)]
    return max(len(part) for part in lists)


def test_threads_that_are_quiet_at_once_leave_logging_as_it_was() -> None:
    first, second = quiet(), quiet()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert logging.root.manager.disable == logging.CRITICAL
    second.__exit__(None, None, None)
    assert logging.root.manager.disable == logging.NOTSET
