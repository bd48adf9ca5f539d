"""An ONNX file whose weights lie on an 8-bit grid in, the same graph with those weights stored in 8 bits out."""

from __future__ import annotations

from pathlib import Path

import torch

from edgeclip.extras import require
from edgeclip.files import atomic_file
from edgeclip.training.grid import pack

_SMALLEST = 1024  # weights fewer than this are not worth a node


def compact(path: Path) -> int:
    """Store every weight that lies on the grid of :mod:`edgeclip.training.grid` as INT8 levels and FP32 scales.

    A ``DequantizeLinear`` gives back the very same float32 values, so the graph computes what it did. Other weights,
    and so nearly every model that was not made for this, stay as they are.

    Returns:
        How many weights were stored so; the file is rewritten only if there was one.
    """
    onnx = require("onnx", purpose="store weights")
    model = onnx.load(str(path))
    graph = model.graph
    packed_nodes, packed_tensors, replaced = [], [], set()
    for tensor in graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) < 2:
            continue
        weight = torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
        found = _pack_along_some_axis(weight)
        if found is None:
            continue
        levels, scale, axis = found
        names = f"{tensor.name}.levels", f"{tensor.name}.scale"
        packed_tensors += [
            onnx.numpy_helper.from_array(levels.numpy(), names[0]),
            onnx.numpy_helper.from_array(scale.numpy(), names[1]),
        ]
        packed_nodes.append(onnx.helper.make_node("DequantizeLinear", names, [tensor.name], axis=axis))
        replaced.add(tensor.name)
    if not replaced:
        return 0
    kept = [tensor for tensor in graph.initializer if tensor.name not in replaced]
    nodes = [*packed_nodes, *graph.node]
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend([*kept, *packed_tensors])
    graph.node.extend(nodes)
    onnx.checker.check_model(model)
    with atomic_file(path) as temporary:
        onnx.save(model, str(temporary))
    return len(replaced)


def _pack_along_some_axis(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int] | None:
    """Levels, scales and axis, or None. Linear layers may come transposed: (out, in) or (in, out)."""
    if weight.numel() < _SMALLEST:
        return None
    for axis in (0, 1) if weight.dim() == 2 else (0,):
        try:
            levels, scale = pack(weight.movedim(axis, 0).contiguous())
        except ValueError:
            continue
        return levels.movedim(0, axis).contiguous(), scale, axis
    return None
