"""The FP32 graph and photographs in, an INT8 variant laid out for ONNX Runtime's CPU kernels out."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path

from edgeclip.calibration.images import crops
from edgeclip.errors import ModelError
from edgeclip.export.export_bundle import VariantMaker, write_parity_report
from edgeclip.export.onnx_export import OPSET
from edgeclip.export.parity import ParityReport, compare_embeddings, preprocess, run_onnx, worst_of
from edgeclip.export.photographs import Photograph
from edgeclip.extras import require
from edgeclip.files import atomic_file
from edgeclip.prompts import FloatArray
from edgeclip.runtime.images import Image
from edgeclip.spec import EncoderSpec, Variant
from edgeclip.training.quiet import quiet

NAME = "int8-cpu"
MIN_COSINE = 0.95
CALIBRATION_IMAGES = 128


class _Reader:
    """Feeds preprocessed images to ONNX Runtime's calibrator one by one."""

    def __init__(self, images: FloatArray) -> None:
        self._images = iter(images)

    def get_next(self) -> dict[str, FloatArray] | None:
        """The next input, or None after the last."""
        image = next(self._images, None)
        return None if image is None else {"image": image[None]}


def int8_cpu_maker(encoder: EncoderSpec, calibration: Sequence[Image] = ()) -> VariantMaker:
    """A maker of the variant ``int8-cpu`` for :func:`edgeclip.export.export_bundle.export_bundle`."""

    def make(fp32: Path, folder: Path, photos: Sequence[Photograph]) -> Variant:
        target = folder / "image_encoder" / f"{NAME}.onnx"
        write_parity_report(folder, NAME, quantize_int8_cpu(fp32, target, encoder, photos, calibration))
        return Variant(name=NAME, file=f"image_encoder/{NAME}.onnx", precision="int8", opset=OPSET)

    return make


def quantize_int8_cpu(
    fp32: Path, target: Path, encoder: EncoderSpec, photos: Sequence[Photograph], calibration: Sequence[Image] = ()
) -> ParityReport:
    """Write a static INT8 graph: Q/DQ, unsigned activations, signed weights per channel.

    Weights use all 8 bits: with ONNX Runtime's ``reduce_range`` (7 bits) the starter's worst cosine fell from 0.998 to
    0.90. The price is that x86 CPUs without VNNI, which add pairs of products in 16 bits, can overflow silently; the
    runtime refuses INT8 there.

    Args:
        photos: for the comparison with FP32, and for calibration where ``calibration`` is empty; then random crops of
            them are used.
        calibration: images to measure activation ranges on.

    Raises:
        ParityError: the cosine to FP32 falls below ``MIN_COSINE`` on a photograph.
        ModelError: ONNX Runtime cannot quantize the graph.
    """
    quantization = require("onnxruntime.quantization", purpose="quantize", extra="export")
    views = calibration or crops([image for _, image in photos], CALIBRATION_IMAGES)
    images = preprocess([(str(index), view) for index, view in enumerate(views)], encoder)
    with quiet(), contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        try:
            quantization.quant_pre_process(str(fp32), str(prepared), skip_symbolic_shape=True)
            quantization.quantize_static(
                str(prepared),
                str(target),
                _Reader(images),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                calibrate_method=quantization.CalibrationMethod.MinMax,
            )
        except (ValueError, RuntimeError, KeyError, TypeError) as error:
            raise ModelError(f"onnxruntime cannot quantize {fp32.name} ({error})") from error
    _tidy(target)
    inputs = preprocess(photos, encoder)
    names = [name for name, _ in photos]
    ((_, reference),) = run_onnx(fp32, inputs, encoder, dynamic_batch=False)
    reports = [
        compare_embeddings(reference, candidate, names, batch_size=size)
        for size, candidate in run_onnx(target, inputs, encoder, precision="int8")
    ]
    return worst_of(reports).require(min_cosine=MIN_COSINE, what=f"{NAME} differs from fp32")


def _tidy(path: Path) -> None:
    """Say in the metadata which variant this is; drop the quantizer's shape notes and the domains that no node uses."""
    onnx = require("onnx", purpose="write ONNX files")
    model = onnx.load(str(path))
    ours = {item.key: item.value for item in model.metadata_props if item.key.startswith("edgeclip.")}
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {**ours, "edgeclip.variant": NAME})
    used = {node.domain for node in model.graph.node} | {""}
    kept = [item for item in model.opset_import if item.domain in used]
    del model.opset_import[:], model.graph.value_info[:]
    model.opset_import.extend(kept)
    onnx.checker.check_model(model)
    with atomic_file(path) as temporary:
        onnx.save(model, str(temporary))
