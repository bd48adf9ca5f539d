"""A graph in, the same function in fewer nodes out; the weights are neither copied nor looked at."""

from __future__ import annotations

from edgeclip.export.qdq import Model
from edgeclip.extras import require

_LARGE = 1024  # numbers; smaller constants may be axes and shapes, which simplifying has to see


def simplify(model: Model) -> Model:
    """Fold constants and shapes and drop what does nothing, with onnxslim; outputs keep their names.

    Large weights stand aside as inputs meanwhile: a graph of several GiB is simplified in the memory of a small one.
    """
    ir = require("onnx_ir", purpose="simplify ONNX graphs")
    onnxslim = require("onnxslim", purpose="simplify ONNX graphs")
    graph = model.graph
    weights = {
        name: value
        for name, value in graph.initializers.items()
        if value.const_value is not None and value.const_value.size > _LARGE
    }
    for name, value in weights.items():
        del graph.initializers[name]
        graph.inputs.append(value)
    tensors = {name: value.const_value for name, value in weights.items()}
    for value in weights.values():
        value.const_value = None
    slim = ir.from_proto(onnxslim.slim(ir.to_proto(model), skip_optimizations=["graph_fusion"]))
    for value in [value for value in slim.graph.inputs if value.name in tensors]:
        slim.graph.inputs.remove(value)
        value.const_value = tensors.pop(value.name)
        slim.graph.register_initializer(value)
    slim.ir_version = model.ir_version
    slim.metadata_props.update(model.metadata_props)
    return slim
