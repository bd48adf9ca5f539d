"""A quantized graph in; for each of its blocks, how much of the error would go if that block stayed in FP32, out."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from edgeclip.export.onnx_export import save_graph
from edgeclip.export.qdq import Model, Node, array, bypass, constant, dequantized, pair_of, prune, weight_of
from edgeclip.export.quantization import unpack_weights
from edgeclip.extras import require

_SAME_WEIGHT = 0.05  # rounding to 8 bits changes a weight by less than this, smoothing by more
# "encoder.visual.transformer.resblocks.3.attn.out_proj.bias" is of the block "…resblocks.3".
_BLOCK = re.compile(r"^(?P<block>.*\.\d+)\.")


class Sensitivity(msgspec.Struct, frozen=True):
    """One block: its nodes, and the loss when all blocks but this one are quantized."""

    block: str
    nodes: tuple[str, ...]
    loss_without: float


def blocks(fp32: Path) -> dict[str, tuple[str, ...]]:
    """Nodes of a graph by the block of the model that they belong to, in the order of computation.

    A block is what the model numbers (``resblocks.3``, ``layer2.0``), known from the names of weights; a node without
    such a weight belongs to the block of the node before it. What comes before, between and after the numbered blocks
    (patch embedding, final projection) is called after its own weight.
    """
    ir = require("onnx_ir", purpose="read ONNX graphs", extra="export")
    found: dict[str, list[str]] = {}
    current = "input"
    model = ir.load(str(fp32))
    unpack_weights(model)
    for node in model.graph:
        current = _block_of(node) or current
        found.setdefault(current, []).append(node.name)
    return {block: tuple(nodes) for block, nodes in found.items()}


def sensitivities(
    fp32: Path, int8: Path, loss: Callable[[Path], float], *, progress: Callable[[int, int], None] | None = None
) -> list[Sensitivity]:
    """Take each block's rounding out of ``int8`` in turn, and measure the loss that is left; the most sensitive first.

    Nothing is calibrated anew. Weights into which SmoothQuant moved a spread stay rounded; those of all other
    nodes become what they are in ``fp32``.

    Args:
        loss: of a graph, measured against FP32; called once a block.
        progress: called with (blocks done, blocks in all).
    """
    ir = require("onnx_ir", purpose="rewrite ONNX graphs", extra="export")
    model = ir.load(str(fp32))
    unpack_weights(model)
    originals = {node.name: array(node.inputs[1]) for node in model.graph if len(node.inputs) > 1}
    quantized = {node.name for node in ir.load(str(int8)).graph if _is_quantized(node)}
    concerned = {block: nodes for block, nodes in blocks(fp32).items() if quantized & set(nodes)}
    measured = []
    with tempfile.TemporaryDirectory() as scratch:
        for done, (block, nodes) in enumerate(concerned.items()):
            model = ir.load(str(int8))
            for node in list(model.graph):
                if node.name in nodes:
                    _restore(model, node, originals.get(node.name))
            prune(model)
            path, *_ = save_graph(model, Path(scratch) / "without.onnx")
            measured.append(Sensitivity(block, nodes, loss(path)))
            if progress:
                progress(done + 1, len(concerned))
    return sorted(measured, key=lambda item: item.loss_without)


def _block_of(node: Node) -> str | None:
    names = [value.name for value in node.inputs if value is not None and value.is_initializer()]
    for name in names:
        if match := _BLOCK.match(name):
            return match["block"]
    scoped = [name for name in names if "." in name]
    return scoped[0].removesuffix(".float").removesuffix(".levels").rpartition(".")[0] if scoped else None


def _is_quantized(node: Node) -> bool:
    return node.op_type not in {"QuantizeLinear", "DequantizeLinear"} and any(
        pair_of(value) or weight_of(value) for value in node.inputs
    )


def _restore(model: Model, node: Node, original: np.typing.NDArray[np.float32] | None) -> None:
    if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
        return
    for index, value in enumerate(node.inputs):
        bypass(node, index)
        stored = weight_of(value)
        if stored is None:
            continue
        weight = dequantized(stored)
        if index == 1 and original is not None and original.shape == weight.shape:
            change = np.linalg.norm(weight - original) / max(float(np.linalg.norm(original)), 1e-30)
            weight = original if change < _SAME_WEIGHT else weight
        node.replace_input_with(index, constant(model, f"{stored.inputs[0].name}.float", weight))
