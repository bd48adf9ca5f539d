"""An ONNX file in; what the linter's rules ask of it (constants, types, readers) out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from edgeclip.errors import ModelError
from edgeclip.export.half.ranges import infer_types
from edgeclip.extras import require
from edgeclip.onnx_graph import check_graph

Node = Any  # onnx_ir.Node
Value = Any  # onnx_ir.Value
Severity = Literal["error", "warning"]
Problem: TypeAlias = tuple[str, str, Severity]  # the node or value, what is wrong and what to do, how bad

# They move numbers and keep what they are: a Q/DQ pair may have them between, and they never round.
LAYOUT = {
    *("Concat", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice", "Split", "Squeeze", "Transpose"),
    *("Unsqueeze", "MaxPool"),
}


class Graph:
    """A loaded model; weights are read from the file only when a rule looks at them.

    Args:
        tensorrt: (major, minor) of the oldest TensorRT that has to take the graph.

    Raises:
        ModelError: not a readable ONNX file.
        IntegrityError: it asks for more than ``check_graph`` allows.
    """

    def __init__(self, path: Path, tensorrt: tuple[int, int]) -> None:
        ir = require("onnx_ir", purpose="lint a graph", extra="export")
        check_graph(path, error=ModelError)
        try:
            self.model = ir.load(path)
        except Exception as error:  # protobuf's and onnx_ir's exceptions share no base class
            raise ModelError(f"expected an ONNX file, got {path} ({error})") from error
        infer_types(self.model)
        self.tensorrt = tensorrt
        self.opset = int(self.model.opset_imports.get("", self.model.opset_imports.get("ai.onnx", 0)))
        self._constant = set(self.model.graph.initializers.values())
        for node in self.nodes():  # ONNX lists nodes in the order of computation
            if all(self.is_constant(value) for value in node.inputs if value is not None):
                self._constant.update(node.outputs)

    def nodes(self, *ops: str) -> Iterator[Node]:
        """Nodes of these operators, or all; subgraphs included."""
        return (node for node in self.model.graph.all_nodes() if not ops or node.op_type in ops)

    def is_constant(self, value: Value | None) -> bool:
        """Whether a value is an initializer, or computed from such alone."""
        return value is not None and (value in self._constant or value.const_value is not None)

    def array(self, value: Value | None) -> npt.NDArray[Any] | None:
        """The numbers of an initializer or Constant node, also behind a Cast or Identity; else None."""
        if value is None:
            return None
        if (producer := value.producer()) is not None and producer.op_type in {"Cast", "Identity"}:
            return self.array(producer.inputs[0])
        ir = require("onnx_ir", purpose="lint a graph", extra="export")
        tensor = ir.convenience.get_const_tensor(value)
        return None if tensor is None else np.asarray(tensor.numpy())


def dtype(value: Value | None) -> str | None:
    """ONNX's name of a value's type (``FLOAT16``), or None if it is absent or unknown."""
    return None if value is None or value.dtype is None else str(value.dtype.name)


def rank(value: Value | None) -> int | None:
    """How many dimensions a value has, or None if that is unknown."""
    return None if value is None or value.shape is None else len(value.shape)


def label(node: Node) -> str:
    """How a finding calls a node."""
    return node.name or f"{node.op_type} giving {node.outputs[0].name}"


def error(node: Node, message: str) -> Problem:
    """TensorRT refuses this, or computes something else."""
    return label(node), message, "error"


def warning(node: Node, message: str) -> Problem:
    """This costs speed, or depends on the version or the device."""
    return label(node), message, "warning"


def attribute(node: Node, name: str, default: Any) -> Any:
    """The value of a node's attribute; strings as ``str``."""
    return node.attributes[name].value if name in node.attributes else default
