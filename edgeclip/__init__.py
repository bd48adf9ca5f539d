"""edgeclip: CLIP-style models on the edge, every variant proved.

::

    import edgeclip

    model = edgeclip.load_model("ViT-B-32", pretrained="laion2b_s34b_b79k")
    bundle = edgeclip.export(model, "shop.edgeclip", variants=["fp16", "int8-cpu"])
    bundle.build_table("shelf", ["mug | cup", "bottle", "book"])
    with edgeclip.open(bundle) as labeller:
        print(labeller.classify("photo.jpg").label)
        for frame in labeller.stream("rtsp://camera/stream"):
            print(frame.time_s, frame.label, frame.score)

Importing this loads no library: what needs one is imported when it is asked for.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from edgeclip.errors import EdgeclipError
from edgeclip.extras import require as _require
from edgeclip.version import __version__

if _TYPE_CHECKING:
    from edgeclip.bundle import Bundle
    from edgeclip.class_names import PromptClass, load_templates, make_classes, parse_classes
    from edgeclip.evaluation.accuracy.evaluate import evaluate
    from edgeclip.evaluation.bench.bench import BenchOptions, bench
    from edgeclip.evaluation.tradeoff.run import tradeoff
    from edgeclip.export.bundle import export
    from edgeclip.prompts import PromptTable
    from edgeclip.runtime.decision import DecisionOptions
    from edgeclip.runtime.labeller import Classification, Labeller, open
    from edgeclip.runtime.proof.renew import Renewal, prove
    from edgeclip.runtime.records import Event, LabelledFrame
    from edgeclip.runtime.sinks.base import Sink
    from edgeclip.runtime.sources.base import Source, SourceOptions
    from edgeclip.runtime.stream import Stream, StreamOptions
    from edgeclip.spec import EncoderSpec, Manifest, ModelIdentity, ModelOptions, ModelOrigin, PreprocessSpec, Variant
    from edgeclip.training.load import load_model
    from edgeclip.training.model import ContrastiveModel

# Where each name is that is imported when it is first asked for.
_HERE = {
    "Bundle": "bundle",
    "Classification": "runtime.labeller",
    "DecisionOptions": "runtime.decision",
    "EncoderSpec": "spec",
    "Event": "runtime.records",
    "LabelledFrame": "runtime.records",
    "Labeller": "runtime.labeller",
    "Manifest": "spec",
    "ModelIdentity": "spec",
    "ModelOptions": "spec",
    "ModelOrigin": "spec",
    "PreprocessSpec": "spec",
    "PromptClass": "class_names",
    "PromptTable": "prompts",
    "Renewal": "runtime.proof.renew",
    "Sink": "runtime.sinks.base",
    "Source": "runtime.sources.base",
    "SourceOptions": "runtime.sources.base",
    "Stream": "runtime.stream",
    "StreamOptions": "runtime.stream",
    "Variant": "spec",
    "load_templates": "class_names",
    "make_classes": "class_names",
    "open": "runtime.labeller",
    "parse_classes": "class_names",
    "prove": "runtime.proof.renew",
}
_WORKSTATION = {
    "BenchOptions": "evaluation.bench.bench",
    "ContrastiveModel": "training.model",
    "bench": "evaluation.bench.bench",
    "evaluate": "evaluation.accuracy.evaluate",
    "export": "export",  # the room itself, which can be called
    "load_model": "training.load",
    "tradeoff": "evaluation.tradeoff.run",
}

__all__ = [
    "BenchOptions",
    "Bundle",
    "Classification",
    "ContrastiveModel",
    "DecisionOptions",
    "EdgeclipError",
    "EncoderSpec",
    "Event",
    "LabelledFrame",
    "Labeller",
    "Manifest",
    "ModelIdentity",
    "ModelOptions",
    "ModelOrigin",
    "PreprocessSpec",
    "PromptClass",
    "PromptTable",
    "Renewal",
    "Sink",
    "Source",
    "SourceOptions",
    "Stream",
    "StreamOptions",
    "Variant",
    "__version__",
    "bench",
    "evaluate",
    "export",
    "load_model",
    "load_templates",
    "make_classes",
    "open",
    "parse_classes",
    "prove",
    "tradeoff",
]


def __getattr__(name: str) -> _Any:
    if name in _HERE:
        module = _import_module(f"edgeclip.{_HERE[name]}")
    elif name in _WORKSTATION:
        module = _require(f"edgeclip.{_WORKSTATION[name]}", purpose=f"use edgeclip.{name}", extra="export")
    else:
        raise AttributeError(f"module 'edgeclip' has no attribute {name!r}")
    value = module if name == "export" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
