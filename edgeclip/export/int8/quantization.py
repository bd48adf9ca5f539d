"""An FP32 graph, images and a recipe in, the ``int8`` graph out: explicit Q/DQ as TensorRT and OpenVINO take it.

NNCF places the quantizers and measures the ranges. Activations are signed, symmetric and per tensor, weights symmetric
and per channel, so every zero-point is zero. Weights use all 8 bits: the compilers that this graph is for, and CPUs
with VNNI, add the products in 32 bits.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from edgeclip.documents import decode_json, read_bytes
from edgeclip.errors import InputError, ModelError
from edgeclip.export import onnx
from edgeclip.export.int8 import qdq
from edgeclip.export.int8.qdq import Model, Value, array, fold_scales, is_weight, pairs, prune, requantize, widen
from edgeclip.export.onnx import save_graph
from edgeclip.export.result_cache import find_result, keep_result, result_key
from edgeclip.extras import require
from edgeclip.files import atomic_file, external_data, workshop
from edgeclip.printable import counted
from edgeclip.prompts import FloatArray
from edgeclip.training.towers.quiet import silent

RangeEstimator = Literal["minmax", "mean-minmax", "percentile", "mse"]
ESTIMATORS: tuple[RangeEstimator, ...] = ("minmax", "mean-minmax", "percentile", "mse")
_LIBRARIES = ("nncf", "onnx", "onnx-ir")  # whose versions decide the graph, too
_OF_NNCF = {"minmax": "MINMAX", "mean-minmax": "MEAN_MINMAX", "percentile": "MEAN_QUANTILE", "mse": "HISTOGRAM"}


class QuantizationRecipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What decides an INT8 graph, beside the weights and the images; stored with the graph, and can be replayed.

    Attributes:
        range_estimator: how an activation's range follows from its values: the extremes, the mean over images of the
            extremes, the mean of quantiles, or the range with the least squared rounding error on a histogram.
        smooth_alpha: SmoothQuant's α: how much of the activations' spread goes into the weights; None for none.
        bias_correction: whether biases make up for the mean shift that rounding causes.
        keep_float: names of nodes that stay in FP32.
    """

    range_estimator: RangeEstimator = "mse"
    smooth_alpha: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = 0.5
    bias_correction: bool = True
    keep_float: tuple[str, ...] = ()


DEFAULT_RECIPE = QuantizationRecipe()


def default_recipe(fp32: Path) -> QuantizationRecipe:
    """What to begin with: ``DEFAULT_RECIPE``, without SmoothQuant where NNCF cannot apply it."""
    return DEFAULT_RECIPE if can_smooth(fp32) else msgspec.structs.replace(DEFAULT_RECIPE, smooth_alpha=None)


def can_smooth(fp32: Path) -> bool:
    """Whether NNCF can apply SmoothQuant: it puts changed weights into the graph itself, which holds 2 GiB at most."""
    return not external_data(fp32).exists()


def read_recipe(path: Path) -> QuantizationRecipe:
    """Read a recipe: its own JSON, or a bundle's ``reports/quantization.json``, which holds one under ``recipe``.

    Raises:
        InputError: it cannot be read, or is not a recipe.
    """

    class _Report(msgspec.Struct):
        recipe: QuantizationRecipe

    try:
        raw = read_bytes(path)
    except InputError as error:
        raise InputError(f"expected a quantization recipe, {error}") from error
    with contextlib.suppress(InputError):
        return decode_json(raw, _Report, where=str(path)).recipe
    try:
        return decode_json(raw, QuantizationRecipe, where=str(path))
    except InputError as error:
        raise InputError(f"{path} is not a quantization recipe ({error}): see docs/quantization.md") from error


def quantize(
    fp32: Path,
    target: Path,
    images: FloatArray,
    recipe: QuantizationRecipe,
    *,
    progress: Callable[[str], None] | None = None,
) -> tuple[Path, ...]:
    """Write the INT8 graph.

    A finished graph is kept in the cache, unless its weights lie beside it (2 GB): the same FP32 graph, images and
    recipe give the same bytes again, and NNCF is not run.

    Args:
        images: preprocessed, (N, 3, H, W) float32; ranges are measured on them one by one.
        progress: called with a short sentence before NNCF is run.

    Returns:
        The files written, the graph first.

    Raises:
        InputError: the recipe names a node that the graph does not have, or smooths a graph too large for that.
        ModelError: NNCF cannot quantize the graph.
    """
    if recipe.smooth_alpha is not None and not can_smooth(fp32):
        raise InputError(
            f"expected a recipe with smooth_alpha null, got {recipe.smooth_alpha:g}: NNCF cannot smooth {fp32.name}, "
            "whose weights take more than 2 GB"
        )
    key = result_key((Path(__file__), Path(qdq.__file__), Path(onnx.__file__)), fp32, images, recipe, _LIBRARIES)
    if kept := find_result(key):
        with atomic_file(target) as temporary:
            temporary.write_bytes(kept)
        external_data(target).unlink(missing_ok=True)  # of a larger graph that was there before
        return (target,)
    if progress:
        progress(f"measuring ranges on {counted(len(images), 'image')}")
    files = save_graph(_quantized(fp32, images, recipe), target)
    if files == (target,):
        keep_result(key, target.read_bytes())
    return files


def _quantized(fp32: Path, images: FloatArray, recipe: QuantizationRecipe) -> Model:
    """The INT8 graph: NNCF's, made signed and freed of what nothing reads."""
    ir = require("onnx_ir", purpose="quantize", extra="export")
    model = ir.load(str(fp32))
    unpack_weights(model)
    known = {node.name for node in model.graph}
    if unknown := [name for name in recipe.keep_float if name not in known]:
        raise InputError(f"the recipe keeps {unknown[0]!r} in FP32, which is no node of {fp32.name}: make a new recipe")
    quantized = _run_nncf(model, images, recipe, fp32)
    for node in quantized.graph:
        node.metadata_props.clear()
    fold_scales(quantized)
    _make_signed(quantized)
    common = require("onnx_ir.passes.common", purpose="quantize", extra="export")
    common.DeduplicateInitializersPass(size_limit=16)(quantized)
    prune(quantized)
    quantized.metadata_props.clear()
    quantized.metadata_props.update({**model.metadata_props, "edgeclip.variant": "int8"})
    quantized.ir_version = model.ir_version
    return quantized


def unpack_weights(model: Model) -> None:
    """Turn weights that are stored as INT8 but computed with in FP32 (see ``export/onnx.py``) into FP32."""
    for node in list(model.graph):
        for index, value in enumerate(node.inputs):
            if value is not None and value.producer() is not None and is_weight(value.producer()):
                widen(model, node, index)
    prune(model)


def is_transformer(model: Model) -> bool:
    """Whether attention is in the graph: a softmax followed by a product of two computed values."""
    return any(
        user.op_type == "MatMul" and array(user.inputs[1]) is None
        for node in model.graph
        if node.op_type == "Softmax"
        for user in node.outputs[0].consumers()
    )


def merging_products(model: Model) -> list[str]:
    """Names of the products that merge tokens (``export/merge_tokens/blocks.py``): which are alike, and their mean.

    They are left in FP32: one would round the residual stream itself, the other change which tokens are merged, and
    together they are a few of a hundred products.
    """
    products = [node for node in model.graph if node.op_type == "MatMul"]
    return [
        node.name
        for node in products
        if _is_choice(node.inputs[0]) or any(user.op_type == "ArgMax" for user in node.outputs[0].consumers())
    ]


def _is_choice(value: Value) -> bool:
    """Whether a value is made of a comparison for equality, weighted or not."""
    node = value.producer()
    while node is not None and node.op_type in {"Cast", "Mul", "Div"}:
        node = node.inputs[0].producer()
    return node is not None and node.op_type == "Equal"


def nncf_options(
    recipe: QuantizationRecipe, *, transformer: bool, bias_correction: bool | None = None
) -> dict[str, Any]:
    """Arguments of ``nncf.quantize`` that place the quantizers and measure ranges, the same for ONNX and torch.

    Args:
        transformer: whether attention is in the graph.
        bias_correction: in place of the recipe's.
    """
    nncf = require("nncf", purpose="quantize")
    advanced = require("nncf.quantization.advanced_parameters", purpose="quantize")
    ranges = require("nncf.quantization.range_estimator", purpose="quantize").RangeEstimatorParametersSet
    alpha = -1 if recipe.smooth_alpha is None else recipe.smooth_alpha
    corrected = recipe.bias_correction if bias_correction is None else bias_correction
    return {
        "preset": nncf.QuantizationPreset.PERFORMANCE,
        "target_device": nncf.TargetDevice.GPU,  # zero zero-points; its other targets may give other ones
        "model_type": nncf.ModelType.TRANSFORMER if transformer else None,
        "advanced_parameters": advanced.AdvancedQuantizationParameters(
            overflow_fix=advanced.OverflowFix.DISABLE,
            disable_bias_correction=not corrected,
            activations_quantization_params=advanced.QuantizationParameters(per_channel=False),
            activations_range_estimator_params=getattr(ranges, _OF_NNCF[recipe.range_estimator]),
            smooth_quant_alphas=advanced.AdvancedSmoothQuantParameters(matmul=alpha),
        ),
    }


def _make_signed(model: Model) -> None:
    """NNCF takes unsigned levels for what cannot be negative; TensorRT takes signed ones only."""
    for quantize, _ in list(pairs(model)):
        scale, zero = array(quantize.inputs[1]), array(quantize.inputs[2])
        if scale is not None and zero is not None and zero.dtype == np.uint8 and not zero.any():
            requantize(model, quantize, scale=scale * (255 / 127), zero=np.zeros(zero.shape, np.int8))


def _run_nncf(model: Model, images: FloatArray, recipe: QuantizationRecipe, fp32: Path) -> Model:
    """Quantize with ranges measured on ``images``."""
    ir = require("onnx_ir", purpose="quantize", extra="export")
    with _weights_apart(model, fp32) as (light, weights), silent():
        nncf = require("nncf", purpose="quantize")
        nncf.set_log_level(logging.ERROR)
        options = nncf_options(recipe, transformer=is_transformer(model))
        options["advanced_parameters"].backend_params["external_data_dir"] = str(weights.parent)
        try:
            quantized = nncf.quantize(
                ir.to_proto(light),
                nncf.Dataset([{"image": image[None]} for image in images]),
                subset_size=len(images),
                ignored_scope=nncf.IgnoredScope(names=[*recipe.keep_float, *merging_products(model)]),
                **options,
            )
        except Exception as error:  # NNCF and ONNX Runtime raise a dozen unrelated types
            reason = str(error).strip().partition("\n")[0]
            raise ModelError(f"NNCF {nncf.__version__} cannot quantize this graph ({reason})") from error
    result = ir.from_proto(quantized)
    ir.external_data.set_base_dir(result.graph, weights.parent)
    return result


@contextlib.contextmanager
def _weights_apart(model: Model, fp32: Path) -> Iterator[tuple[Model, Path]]:
    """The graph with its weights in a file of their own, and that file.

    NNCF copies the graph and infers its shapes some ten times, and each time serialises the weights that are in it.
    """
    ir = require("onnx_ir", purpose="quantize", extra="export")
    weights = external_data(fp32).absolute()  # NNCF takes no other
    if weights.exists():
        yield model, weights
        return
    with workshop() as folder:
        graph = folder / "graph.onnx"
        ir.save(model, graph, external_data="weights")
        yield ir.load(graph), graph.with_name("weights")
