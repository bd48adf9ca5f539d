"""A cached TensorRT plan in, a deserialized engine out, its weights put back if they were left out; and its layers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from edgeclip.devices.cuda import require_gpu
from edgeclip.errors import EngineError
from edgeclip.runtime.plan_cache import read_record
from edgeclip.runtime.tensorrt_api import Library, load_library, parser_errors


@dataclass(frozen=True)
class LoadedPlan:
    """An engine and the runtime that must outlive it."""

    engine: Any
    runtime: Any


@dataclass(frozen=True)
class Layer:
    """One layer of a plan.

    Attributes:
        name: as the library names it, often after the graph's nodes that were fused in it.
        kind: of layer; empty when the plan was built without details.
        outputs: data type and layout of each output; empty likewise.
    """

    name: str
    kind: str = ""
    outputs: tuple[str, ...] = ()


def load_plan(library: Library, path: Path, onnx: Path | None = None) -> LoadedPlan:
    """Deserialize a plan that :func:`edgeclip.runtime.plan_cache.find` gave.

    Args:
        onnx: the graph to read left-out weights from; None to leave them out.

    Raises:
        EngineError: the library refuses the plan or the weights.
    """
    trt = library.trt
    record = read_record(path)
    options = record.key.options if record else {}
    runtime = library.make(lambda: trt.Runtime(library.log), "a runtime")
    if options.get("version_compatible"):
        # Such a plan holds the code of the runtime that it was built with; the cache has checked that it is ours.
        runtime.engine_host_code_allowed = True
    plan = path.read_bytes()
    engine = library.make(lambda: runtime.deserialize_cuda_engine(plan), f"an engine of {path} (build it again)")
    if options.get("strip") and onnx is not None:
        _refit(library, engine, onnx)
    return LoadedPlan(engine, runtime)


def layers(engine: str, path: Path) -> list[Layer]:
    """The layers of a plan; kinds and types are there if it was built with ``detailed_layers``.

    Args:
        engine: ``"tensorrt"`` or ``"tensorrt-rtx"``.
        path: of the plan.

    Raises:
        EngineError: there is no GPU here, which reading a plan takes, or the library refuses the plan.
    """
    require_gpu("read the layers of a plan")
    library = load_library(engine)
    loaded = load_plan(library, path)
    inspector = library.make(loaded.engine.create_engine_inspector, "an engine inspector")
    return parse_layers(inspector.get_engine_information(library.trt.LayerInformationFormat.JSON))


def parse_layers(text: str) -> list[Layer]:
    """Layers out of an engine inspector's JSON: objects in a detailed plan, else names alone.

    Raises:
        EngineError: it is not of that form.
    """
    try:
        entries = msgspec.json.decode(text)["Layers"]
        return [
            Layer(entry)
            if isinstance(entry, str)
            else Layer(
                entry["Name"],
                entry.get("LayerType", ""),
                tuple(output.get("Format/Datatype", "") for output in entry.get("Outputs", ())),
            )
            for entry in entries
        ]
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError) as error:
        raise EngineError(f"the engine inspector gave no list of layers ({error!r})") from error


def _refit(library: Library, engine: Any, onnx: Path) -> None:
    trt = library.trt
    refitter = library.make(lambda: trt.Refitter(engine, library.log), "a refitter")
    parser = trt.OnnxParserRefitter(refitter, library.log)
    if not parser.refit_from_file(str(onnx)):
        refused = parser_errors(parser) or library.log.shown()
        raise EngineError("\n  ".join([f"{library.title} cannot read the weights of {onnx}: build again", *refused]))
    if not refitter.refit_cuda_engine():
        raise library.failure(f"{library.title} cannot put the weights of {onnx} into its plan: build again")
