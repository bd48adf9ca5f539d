"""LoRA merges without a trace, models lie between models, and training makes up for what rounding to INT8 loses."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from edgeclip.errors import InputError, ModelError, ParityError, TrainingError
from edgeclip.prompts import FloatArray
from edgeclip.spec import EncoderSpec, ModelOrigin, PreprocessSpec

torch = pytest.importorskip("torch")
open_clip = pytest.importorskip("open_clip")

from torch import Tensor, nn  # noqa: E402

from edgeclip.training.adapt.wise import between, interpolate, plot_wise, wise_curve  # noqa: E402
from edgeclip.training.loop.lora import LoraOptions, adaptable, apply_lora, merge_lora  # noqa: E402
from edgeclip.training.model import ContrastiveModel, TextTower  # noqa: E402

SIZE, WIDTH = 64, 64
ENCODER = EncoderSpec(
    preprocess=PreprocessSpec(height=SIZE, width=SIZE, resize_to=SIZE, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
    embedding_dim=WIDTH,
    logit_scale=10.0,
)


class Letters(TextTower):
    """A text tower that adds up a vector for each letter."""

    def __init__(self) -> None:
        self.table = nn.Embedding(256, WIDTH)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> FloatArray:
        rows = [self.table(torch.tensor(list(text.encode()))).sum(dim=0) for text in texts]
        embeddings: FloatArray = torch.stack(rows).numpy()
        return embeddings

    def modules(self) -> Sequence[nn.Module]:
        return (self.table,)


class Small(ContrastiveModel):
    """Any image tower, with ``Letters`` beside it."""

    def __init__(self, image: nn.Module, *, logit_scale: float = 10.0) -> None:
        self.name = "small"
        self.origin = ModelOrigin(loader="edgeclip", name="small")
        self.encoder = EncoderSpec(preprocess=ENCODER.preprocess, embedding_dim=WIDTH, logit_scale=logit_scale)
        self.text = Letters()
        self.image = image.eval()

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Tensor:
        return self.image(images)

    def exportable(self) -> nn.Module:
        return self.image

    def image_modules(self) -> Sequence[nn.Module]:
        return (self.image,)


def vit(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return open_clip.transformer.VisionTransformer(
        image_size=SIZE, patch_size=16, width=64, layers=2, heads=4, mlp_ratio=4.0, output_dim=WIDTH
    ).eval()


def separable(*, spread: float, seed: int = 0) -> nn.Module:
    """Depthwise and pointwise convolutions with GELU, as MobileCLIP's blocks; channels differ in size by ``spread``."""
    torch.manual_seed(seed)
    parts: list[nn.Module] = [nn.Conv2d(3, 32, 3, 2, 1), nn.GELU()]
    for inner, outer, stride in ((32, 64, 2), (64, 64, 1), (64, 96, 2), (96, 96, 1)):
        depthwise, pointwise = nn.Conv2d(inner, inner, 3, stride, 1, groups=inner), nn.Conv2d(inner, outer, 1)
        parts += [depthwise, nn.GELU(), pointwise, nn.GELU()]
    network = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, WIDTH)).eval()
    chooser = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for part in network:
            if isinstance(part, nn.Conv2d):
                size = torch.exp(spread * torch.randn(len(part.weight), generator=chooser))
                part.weight.mul_(1.7 * size[:, None, None, None])
                part.bias.mul_(size)
    return network


def pictures(count: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


# --- LoRA -------------------------------------------------------------------------------------------------------


@pytest.fixture
def _peft() -> None:
    pytest.importorskip("peft")


@pytest.mark.usefixtures("_peft")
@pytest.mark.parametrize("make", [vit, lambda: separable(spread=0.0)], ids=["attention", "convolutions"])
def test_lora_begins_as_nothing_trains_few_and_merges_without_a_trace(make: object) -> None:
    assert callable(make)
    module, images = make(), pictures()
    before, names = module(images).detach(), sorted(module.state_dict())
    untouched = copy.deepcopy(module.state_dict())
    apply_lora(module, LoraOptions(rank=4, alpha=8.0))
    torch.testing.assert_close(module(images), before)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    assert 0 < sum(part.numel() for part in trained) < 0.4 * sum(value.numel() for value in untouched.values())
    optimizer = torch.optim.Adam(trained, lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        (module(images) - 1).square().mean().backward()
        optimizer.step()
    after = module(images).detach()
    assert not torch.allclose(after, before, atol=1e-3)
    assert merge_lora(module) is module
    assert sorted(module.state_dict()) == names
    torch.testing.assert_close(module(images), after, atol=1e-4, rtol=1e-4)
    changed = {name for name, value in module.state_dict().items() if not torch.equal(value, untouched[name])}
    assert changed
    assert all(name.endswith("weight") for name in changed)


@pytest.mark.usefixtures("_peft")
def test_lora_takes_the_layers_asked_for() -> None:
    module = vit()
    assert adaptable(module, ("attn",)) == ["transformer.resblocks.0.attn", "transformer.resblocks.1.attn"]
    with pytest.raises(TrainingError, match="nowhere"):
        apply_lora(module, LoraOptions(layers=("nowhere",)))
    with pytest.raises(TrainingError, match="rank"):
        apply_lora(module, LoraOptions(rank=0))
    with pytest.raises(TrainingError, match="apply_lora first"):
        merge_lora(module)


# --- WiSE-FT ----------------------------------------------------------------------------------------------------


def test_both_ends_are_the_models_themselves() -> None:
    first, second = Small(vit(0), logit_scale=10.0), Small(vit(1), logit_scale=40.0)
    images = pictures()
    for alpha, model in ((0.0, first), (1.0, second)):
        mixed = between(first, second, alpha)
        torch.testing.assert_close(mixed.encode_image(images), model.encode_image(images))
        np.testing.assert_allclose(mixed.encode_text(["cup"]), model.encode_text(["cup"]), atol=1e-5)
        assert mixed.encoder.logit_scale == pytest.approx(model.encoder.logit_scale)
    middle = between(first, second, 0.5)
    assert middle.encoder.logit_scale == pytest.approx(20.0)
    assert len({first.identity.id, second.identity.id, middle.identity.id}) == 3
    weight = "transformer.resblocks.0.mlp.c_fc.weight"
    expected = (first.image.state_dict()[weight] + second.image.state_dict()[weight]) / 2
    torch.testing.assert_close(middle.image_modules()[0].state_dict()[weight], expected)


def test_models_of_other_architectures_are_refused() -> None:
    first = Small(vit())
    with pytest.raises(ModelError, match="one architecture"):
        between(first, Small(separable(spread=0.0)), 0.5)
    with pytest.raises(ModelError, match="one architecture"):
        interpolate({"weight": torch.zeros(2)}, {"weight": torch.zeros(3)}, 0.5)
    with pytest.raises(ModelError, match="alpha"):
        between(first, first, 1.5)


def test_counts_are_not_averaged() -> None:
    first, second = nn.BatchNorm2d(2), nn.BatchNorm2d(2)
    second.num_batches_tracked += 7
    second.running_mean.fill_(2.0)  # type: ignore[union-attr]
    mixed = interpolate(first.state_dict(), second.state_dict(), 0.6)
    assert mixed["num_batches_tracked"].item() == 7
    torch.testing.assert_close(mixed["running_mean"], torch.full((2,), 1.2))


def test_the_curve_finds_the_middle_ground(tmp_path: Path) -> None:
    """Each model is best at being itself; the weights between them trade the one for the other."""
    images = pictures(16)
    first, second = Small(vit(0)), Small(vit(0))
    with torch.no_grad():
        second.image.proj.add_(0.1 * torch.randn(second.image.proj.shape))

    def like(target: Small):
        wanted = target.encode_image(images)
        return lambda model: float(nn.functional.cosine_similarity(model.encode_image(images), wanted).mean())

    points = wise_curve(first, second, like(second), like(first), alphas=(0.0, 0.5, 1.0))
    assert [point.alpha for point in points] == [0.0, 0.5, 1.0]
    assert points[0].accuracy < points[1].accuracy < points[2].accuracy
    assert points[0].robustness > points[1].robustness > points[2].robustness
    plot_wise(points, tmp_path / "wise.png", accuracy="tuned", robustness="before")
    assert (tmp_path / "wise.png").read_bytes().startswith(b"\x89PNG")


# --- quantization-aware training --------------------------------------------------------------------------------


def centred(network: nn.Module, images: FloatArray) -> nn.Module:
    """The network with its mean embedding taken off, so that embeddings of different images differ."""
    with torch.no_grad():
        mean = network(torch.from_numpy(images)).mean(dim=0)
        network[-1].bias.sub_(mean)  # type: ignore[index, union-attr, operator]
    return network


def crops_of_photographs(count: int, seed: int) -> FloatArray:
    from edgeclip.calibration.images import crops
    from edgeclip.export.photographs import photographs
    from edgeclip.export.proofs import preprocess

    views = crops([image for _, image in photographs()], count, seed=seed)
    return preprocess([(str(index), view) for index, view in enumerate(views)], ENCODER)


def test_a_quantizer_rounds_and_passes_gradients() -> None:
    from edgeclip.export.int8.qat import Quantizer

    quantizer = Quantizer(torch.tensor([0.1]), weight=False)
    values = torch.tensor([0.04, 0.06, -0.26, 20.0, -20.0], requires_grad=True)
    rounded = quantizer(values)
    torch.testing.assert_close(rounded.detach(), torch.tensor([0.0, 0.1, -0.3, 12.7, -12.8]))
    rounded.sum().backward()
    torch.testing.assert_close(values.grad, torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0]))
    assert quantizer.log_step.grad is not None
    channels = Quantizer(torch.tensor([0.1, 1.0]).reshape(2, 1), weight=True)
    torch.testing.assert_close(channels(torch.tensor([[0.26], [0.6]])).detach(), torch.tensor([[0.3], [1.0]]))


def test_a_rate_that_makes_an_encoder_worse_leaves_it_as_it_was() -> None:
    from edgeclip.export.int8.qat import QatOptions, Quantizer, train_quantized

    torch.manual_seed(0)
    images = torch.randn(24, 3, 4, 4).numpy()
    reference = nn.Sequential(nn.Flatten(), nn.Linear(48, 8))
    quantized = nn.Sequential(*copy.deepcopy(reference), Quantizer(torch.tensor([0.2]), weight=False))
    start = copy.deepcopy(quantized.state_dict())
    losses = train_quantized(quantized, reference, images, QatOptions(steps=12, batch_size=8, lr=0.02))
    assert losses[-1] > losses[0]
    for name, value in quantized.state_dict().items():
        torch.testing.assert_close(value, start[name], atol=0, rtol=0)
    train_quantized(quantized, reference, images, QatOptions(steps=60, batch_size=8, lr=1e-3))
    assert not torch.equal(quantized.state_dict()["2.log_step"], start["2.log_step"])


def test_what_cannot_be_trained_for_int8_is_refused(golden_bundle: Path) -> None:
    pytest.importorskip("nncf")
    from edgeclip import Bundle
    from edgeclip.export.int8.qat import insert_quantizers
    from edgeclip.export.int8.qat_bundle import train_int8
    from edgeclip.export.int8.quantization import QuantizationRecipe

    bundle, model = Bundle.open(golden_bundle), Small(separable(spread=0.0))
    images = pictures().numpy()
    with pytest.raises(InputError, match="was made from"):
        train_int8(bundle, model, images)
    with pytest.raises(InputError, match="int8-cpu"):
        train_int8(bundle, model, images, names=("fp16",))
    with pytest.raises(InputError, match="node_1"):
        insert_quantizers(model.image, images, QuantizationRecipe(keep_float=("node_1",)), transformer=False)


@pytest.mark.slow
def test_training_meets_a_budget_that_calibration_misses(tmp_path: Path) -> None:
    """Depthwise and pointwise convolutions whose channels differ in size: one range for all of them rounds too much."""
    pytest.importorskip("nncf")
    from edgeclip import Bundle
    from edgeclip.export.bundle import VariantOptions, export_bundle
    from edgeclip.export.int8.qat import QatOptions
    from edgeclip.export.int8.qat_bundle import train_int8
    from edgeclip.export.lint.lint import lint
    from edgeclip.export.photographs import photographs
    from edgeclip.runtime.engines.base import load_engine
    from edgeclip.runtime.proof.golden import golden_of
    from edgeclip.runtime.proof.parity import ParityLimits

    train = crops_of_photographs(256, seed=2)
    model = Small(centred(separable(spread=0.5), train))
    photos = photographs()
    # A mean that rounding alone misses, and most best classes; in so small a net single images may be far off.
    budget = ParityLimits(
        min_cosine=0.6, min_centred_cosine=0.6, mean_centred_cosine=0.97, agreement=0.7, margin_loss=10
    )
    calibrated = VariantOptions(("int8",), limits=budget)
    with pytest.raises(ParityError, match="mean of the mean-centred cosine"):
        export_bundle(model, tmp_path / "ptq.edgeclip", photos=photos, variants=calibrated)
    bundle = export_bundle(model, tmp_path / "qat.edgeclip", photos=photos)
    before = bundle.file("image_encoder/fp32.onnx").read_bytes()
    done = train_int8(
        bundle, model, train, names=("int8", "int8-cpu"), options=QatOptions(steps=200, lr=1e-4), limits=budget
    )
    assert np.mean(done.losses[-20:]) < 0.7 * np.mean(done.losses[:20])
    opened = Bundle.open(tmp_path / "qat.edgeclip")
    assert [variant.name for variant in opened.manifest.variants] == ["fp32", "int8", "int8-cpu"]
    assert opened.file("image_encoder/fp32.onnx").read_bytes() == before
    assert opened.manifest.model.id == model.identity.id  # tables of the model fit the trained variant
    assert not lint(opened.variant_path("int8"))
    golden = golden_of(opened)
    assert golden is not None
    with load_engine("onnxruntime", opened.variant_path("int8"), opened.manifest.encoder, precision="int8") as engine:
        report = golden.compare(engine)
    assert report.mean_cosine > 0.97
    assert list(opened.verify())
