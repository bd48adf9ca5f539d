"""A bundle and the model that it was made from in, the bundle with INT8 variants trained to be INT8 out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from torch import nn

from edgeclip.bundle import Bundle
from edgeclip.calibration.images import sample_images
from edgeclip.devices.machine.probe import describe_machine
from edgeclip.errors import InputError
from edgeclip.export.bundle import extended, onnx_metadata
from edgeclip.export.images import to_calibrate_on
from edgeclip.export.int8.qat import QatOptions, freeze, insert_quantizers, train_quantized
from edgeclip.export.int8.qdq import Model, array, constant, fold_scales, prune
from edgeclip.export.int8.quantization import QuantizationRecipe, default_recipe, is_transformer
from edgeclip.export.onnx import export_onnx, save_graph
from edgeclip.export.variants import Materials, make_variants
from edgeclip.extras import require
from edgeclip.files import workshop, write_json
from edgeclip.prompts import FloatArray
from edgeclip.runtime.proof.basis import CalibratedOn
from edgeclip.runtime.proof.golden import golden_of
from edgeclip.runtime.proof.parity import ParityLimits
from edgeclip.spec import EncoderSpec
from edgeclip.training.load import load_again
from edgeclip.training.model import ContrastiveModel

REPORT = "reports/qat.json"


@dataclass(frozen=True)
class QatReport:
    """The bundle with its new variants, the loss of every step, and how many images were trained on."""

    bundle: Bundle
    losses: list[float]
    images: int


def train_int8_on(
    bundle: Bundle,
    folder: Path,
    *,
    names: Sequence[str] = ("int8",),
    count: int = 256,
    options: QatOptions = QatOptions(),  # noqa: B008 - frozen
    progress: Callable[[str], None] | None = None,
) -> QatReport:
    """``train_int8`` of the model that the bundle was made from, on a seeded sample of a folder's images.

    What of them is golden is left out.

    Args:
        folder: of images like those that the device will see; no labels.
        count: how many of them to train on.

    Raises:
        InputError: fewer than two images, and as ``train_int8``.
        BundleError: a bundle that cannot be written to.
        ModelError: the model cannot be loaded again.
    """
    if count < 2:
        raise InputError(f"expected a count of 2 images or more, got {count}")
    bundle.require_writable()
    if progress:
        progress("loading the model")
    model = load_again(bundle.manifest.model.origin)
    inputs, calibrated = to_calibrate_on(
        sample_images(folder, count, seed=options.seed), model.encoder, golden=golden_of(bundle)
    )
    return train_int8(bundle, model, inputs, calibrated=calibrated, names=names, options=options, progress=progress)


def train_int8(
    bundle: Bundle,
    model: ContrastiveModel,
    images: FloatArray,
    *,
    calibrated: CalibratedOn | None = None,
    names: Sequence[str] = ("int8",),
    recipe: QuantizationRecipe | None = None,
    options: QatOptions = QatOptions(),  # noqa: B008 - frozen
    limits: ParityLimits | None = None,
    progress: Callable[[str], None] | None = None,
) -> QatReport:
    """Fine-tune the model's image encoder for INT8 and put the result into the bundle, linted and proved as any other.

    The model itself, the FP32 variant and the prompt tables stay as they are: the INT8 encoder is trained to give the
    FP32 encoder's embeddings.

    Args:
        model: the one that the bundle was exported from.
        images: preprocessed, (N, 3, H, W) float32; neither labels nor captions are needed.
        calibrated: which photographs they are; without it the proof is provisional.
        names: ``int8``, ``int8-cpu`` or both.
        recipe: how ranges are measured at the start; None for the default of this graph.
        limits: of the proof, in place of INT8's own.

    Raises:
        InputError: another model, other variants, no golden images, or a recipe that keeps nodes in FP32.
        ParityError: trained so, it still misses the limits.
        TrainingError: the loss is not finite.
        ModelError, LintError: the encoder cannot be quantized.
    """
    say = progress or (lambda _: None)
    if not names or set(names) - {"int8", "int8-cpu"}:
        raise InputError(f"expected variants out of int8, int8-cpu, got {', '.join(names) or 'none'}")
    if model.identity.id != bundle.manifest.model.id:
        raise InputError(
            f"expected the model {bundle.manifest.model.id} that {bundle.path.name} was made from, got "
            f"{model.identity.id} ({model.name})"
        )
    golden = golden_of(bundle)
    if golden is None:
        raise InputError(f"{bundle.path} has no golden images to compare on: export the bundle again")
    fp32, encoder = bundle.variant_path("fp32"), bundle.manifest.encoder
    recipe = recipe or default_recipe(fp32)
    ir = require("onnx_ir", purpose="quantize", extra="export")
    say("placing quantizers")
    reference = model.exportable()
    quantized = insert_quantizers(reference, images, recipe, transformer=is_transformer(ir.load(str(fp32))))

    def watch(done: int, loss: float) -> None:
        say(f"step {done} of {options.steps}, loss {loss:.5f}")

    losses = train_quantized(quantized, reference, images, options, progress=watch)
    with workshop() as scratch, extended(bundle, names=names) as (folder, made):
        graph = scratch / "int8.onnx"
        write_quantized(quantized, encoder, graph, onnx_metadata(model.name, model.identity.id, "int8"))
        materials = Materials(fp32, encoder, golden, images, recipe, limits, graph, calibrated=calibrated)
        made += make_variants(names, folder, materials, progress=say)
        report = {
            "recipe": recipe,
            "options": options,
            "images": len(images),
            "losses": [round(loss, 6) for loss in losses],
            "machine": describe_machine(),
        }
        write_json(folder / REPORT, msgspec.to_builtins(report))
    return QatReport(Bundle.open(bundle.path), losses, len(images))


def write_quantized(quantized: nn.Module, encoder: EncoderSpec, target: Path, metadata: dict[str, str]) -> None:
    """Write a trained module as an explicit Q/DQ graph with 8-bit weights.

    Raises:
        ModelError: torch cannot export it.
    """
    ir = require("onnx_ir", purpose="quantize", extra="export")
    common = require("onnx_ir.passes.common", purpose="quantize", extra="export")
    with workshop() as scratch:
        export_onnx(freeze(quantized), encoder, scratch / "float.onnx", metadata=metadata)
        model = ir.load(str(scratch / "float.onnx"))
        store_levels(model)
        fold_scales(model)
        common.DeduplicateInitializersPass(size_limit=16)(model)
        prune(model)
        save_graph(model, target)


def store_levels(model: Model) -> int:
    """Replace QuantizeLinear on a constant by the levels that it gives, in place: 8-bit weights. Returns how many."""
    stored = 0
    for node in list(model.graph):
        if node.op_type != "QuantizeLinear" or (weight := array(node.inputs[0])) is None:
            continue
        step = array(node.inputs[1])
        assert step is not None  # a constant, as the exporter writes it
        shape = [1] * weight.ndim
        if step.size > 1:
            shape[int(node.attributes["axis"].as_int()) % weight.ndim] = step.size
        levels = np.clip(np.rint(weight / step.reshape(shape)), -127, 127).astype(np.int8)
        value = constant(model, f"{node.inputs[0].name}.levels", levels)
        users = list(node.outputs[0].consumers())
        if [user.op_type for user in users] == ["Clip"]:  # to the limits of INT8: nothing is beyond them
            users[0].outputs[0].replace_all_uses_with(value)
        else:
            node.outputs[0].replace_all_uses_with(value)
        stored += 1
    prune(model)
    return stored
