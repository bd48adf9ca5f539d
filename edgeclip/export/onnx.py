"""A torch image encoder in, one ONNX file out: input ``image`` (N, 3, H, W), output ``embedding`` (N, D), N free.

A graph in, the same function in fewer nodes out; the weights are neither copied nor looked at.

An ONNX file whose weights lie on an 8-bit grid in, the same graph with those weights stored in 8 bits out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgeclip.errors import InputError, ModelError
from edgeclip.export.int8.qdq import Model
from edgeclip.extras import require
from edgeclip.files import atomic_file, external_data, workshop
from edgeclip.spec import EncoderSpec
from edgeclip.training.checkpoint.weight_grid import pack
from edgeclip.training.towers.quiet import silent

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


# The exporter's native opset: the oldest that it writes without converting, hence what most device parsers take.
OPSET = 18
IR_VERSION = 8  # that of the ONNX release which brought opset 18; onnxruntime 1.17 refuses the exporter's 10
_PROTOBUF_LIMIT_BYTES = 2**31 - 2**20  # protobuf's 2 GiB, less room for the graph itself


class EncoderModule(nn.Module):
    """Names the graph's input and output, and keeps both float32."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) float32 → embedding (N, D) float32, not normalised."""
        embedding: Tensor = self.encoder(image)
        return embedding.float()


def export_onnx(
    module: nn.Module, encoder: EncoderSpec, path: Path, *, metadata: dict[str, str], opset: int = OPSET
) -> tuple[Path, ...]:
    """Write ``module`` as an ONNX graph with dynamic batch; whole or not at all.

    Weights are inside the file, unless they pass protobuf's limit of 2 GiB: then in one ``<name>.onnx.data`` beside it.

    Args:
        module: in eval mode, (N, 3, H, W) float32 → (N, D) float32.
        metadata: the file's ``metadata_props``, e.g. the model's identity.

    Returns:
        The files written, the graph first.

    Raises:
        ModelError: torch cannot export the module, or the graph does not have the inputs and outputs promised.
        InputError: the folder cannot be written.
    """
    require("onnxscript", purpose="export to ONNX")
    size = encoder.preprocess
    example = torch.zeros(2, 3, size.height, size.width)  # a batch of 1 would be taken for a constant
    with silent(), torch.no_grad():
        try:
            program: Any = torch.onnx.export(
                EncoderModule(module).eval(),
                (example,),
                dynamo=True,
                input_names=["image"],
                output_names=["embedding"],
                dynamic_shapes={"image": {0: torch.export.Dim("N", min=1)}},
                opset_version=opset,
            )
        except (torch.onnx.OnnxExporterError, RuntimeError, ValueError, TypeError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ModelError(f"torch {torch.__version__} cannot export this model to ONNX ({reason})") from error
    _free_names(program.model)
    model = simplify(program.model)
    _tidy(model, metadata)
    _check(model, encoder, opset)
    return save_graph(model, path)


def _free_names(model: Any) -> None:
    """Rename inner values called as an input or output is: the exporter names them after operators (``embedding``)."""
    public = {*model.graph.inputs, *model.graph.outputs}
    taken = {value.name for value in public}
    made = [value for node in model.graph.all_nodes() for value in node.outputs]
    inner = [value for value in (*made, *model.graph.initializers.values()) if value not in public]
    for count, value in enumerate(value for value in inner if value.name in taken):
        value.name = f"inner_{value.name}_{count}"


def _tidy(model: Any, metadata: dict[str, str]) -> None:
    """Keep our metadata; drop the exporter's (stack traces with paths of this machine, on every node)."""
    model.ir_version = IR_VERSION
    model.metadata_props.clear()
    model.metadata_props.update(metadata)
    model.graph.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in [*model.graph.inputs, *model.graph.initializers.values()]:
        value.metadata_props.clear()


def _check(model: Any, encoder: EncoderSpec, opset: int) -> None:
    """Hold the graph against its contract.

    Raises:
        ModelError: another opset, or other inputs or outputs than promised.
    """
    size = encoder.preprocess
    described = [
        (value.name, value.dtype.name, [dim if isinstance(dim, int) else "N" for dim in value.shape])
        for value in (*model.graph.inputs, *model.graph.outputs)
    ]
    expected = [
        ("image", "FLOAT", ["N", 3, size.height, size.width]),
        ("embedding", "FLOAT", ["N", encoder.embedding_dim]),
    ]
    if described != expected or model.opset_imports.get("") != opset:
        raise ModelError(
            f"expected a graph of opset {opset} with {expected}, got opset {model.opset_imports.get('')} "
            f"with {described}: this model cannot be exported"
        )


def save_graph(model: Any, path: Path) -> tuple[Path, ...]:
    """Write to a temporary folder beside ``path``, then move: external data is found by its file name."""
    ir = require("onnx_ir", purpose="write ONNX files", extra="export")
    weights = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    data = external_data(path)
    external = data.name if weights > _PROTOBUF_LIMIT_BYTES else None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with workshop(path.parent, path.stem) as folder:
            ir.save(model, folder / path.name, external_data=external)
            data.unlink(missing_ok=True)
            if external:
                (folder / external).replace(data)
            (folder / path.name).replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path} ({error.strerror or error}): choose another place") from error
    return (path, data) if external else (path,)


_SMALLEST = 1024  # weights fewer than this are not worth a node


def compact(path: Path) -> int:
    """Store every weight on the grid of ``training/checkpoint/weight_grid.py`` as INT8 levels and FP32 scales.

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
