"""A graph with per-channel multiplications (as SmoothQuant inserts them) in, the same function without them out.

SmoothQuant moves the spread of an activation's channels into the weights that follow: it multiplies the activation
by a vector and divides the weights by it (Xiao et al., "SmoothQuant", 2022). Where the activation is the output of a
LayerNormalization, the vector belongs into that operator's scale and bias, and costs nothing at run time.
"""

from __future__ import annotations

import numpy as np

from edgeclip.export.qdq import Model, Node, Value, array, constant, prune


def fold_scales(model: Model) -> int:
    """Fold every ``Mul`` by a vector over the last axis into the LayerNormalization that it follows, in place.

    A transposition that leaves the last axis alone may stand between the two. Multiplications whose
    LayerNormalization feeds anything else stay as they are.

    Returns:
        How many were folded.
    """
    folded = 0
    for node in list(model.graph):
        vector = _vector(node)
        if vector is None:
            continue
        norm = _normalisation(node.inputs[0])
        if norm is None or not _fits(norm, vector):
            continue
        for index in range(1, len(norm.inputs)):
            value = norm.inputs[index]
            part = array(value)
            assert part is not None  # _fits
            norm.replace_input_with(index, constant(model, f"{value.name}.smooth", (part * vector).astype(np.float32)))
        node.outputs[0].replace_all_uses_with(node.inputs[0])
        folded += 1
    if folded:
        prune(model)
    return folded


def _vector(node: Node) -> np.typing.NDArray[np.float32] | None:
    """What a ``Mul`` multiplies the last axis by, or None."""
    if node.op_type != "Mul" or node.outputs[0].is_graph_output():
        return None
    factor = array(node.inputs[1])
    if factor is None or factor.size <= 1 or factor.size != factor.shape[-1]:
        return None
    return factor.reshape(-1)


def _normalisation(value: Value) -> Node | None:
    """The LayerNormalization whose output, used nowhere else, ``value`` is."""
    node = value.producer()
    while node is not None and len(node.outputs[0].uses()) == 1:
        if node.op_type == "LayerNormalization":
            return node
        if node.op_type != "Transpose" or not _keeps_last(node):
            return None
        node = node.inputs[0].producer()
    return None


def _keeps_last(transpose: Node) -> bool:
    if "perm" not in transpose.attributes:
        return False
    order: list[int] = list(transpose.attributes["perm"].as_ints())
    return bool(order[-1] == len(order) - 1)


def _fits(norm: Node, vector: np.typing.NDArray[np.float32]) -> bool:
    parts = [array(value) for value in norm.inputs[1:]]
    return all(part is not None and part.shape == vector.shape for part in parts)
