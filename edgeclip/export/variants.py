"""The proved FP32 graph in; further variants of it, each held against FP32 on the golden images, out.

To add a variant: write a function ``(folder, materials) -> Made`` and add it to ``VARIANTS``.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from edgeclip.devices.machine.probe import describe_machine, installed_versions
from edgeclip.errors import InputError
from edgeclip.export.half.plan import LowPrecision
from edgeclip.export.half.precision import convert_precision
from edgeclip.export.half.rounding import emulate
from edgeclip.export.int8.cpu_layout import lay_out_for_cpu
from edgeclip.export.int8.quantization import DEFAULT_RECIPE, QuantizationRecipe, quantize
from edgeclip.export.lint.lint import require_legal
from edgeclip.extras import require
from edgeclip.files import workshop, write_json
from edgeclip.printable import counted
from edgeclip.prompts import FloatArray
from edgeclip.runtime.engines.base import load_engine
from edgeclip.runtime.proof.basis import Basis, CalibratedOn, basis_on
from edgeclip.runtime.proof.golden import GoldenImages
from edgeclip.runtime.proof.parity import LIMITS, ParityLimits, ParityReport
from edgeclip.spec import EncoderSpec, Precision, Variant

TOOLS = ("edgeclip", "torch", "onnx", "onnxscript", "onnxruntime", "nncf", "open_clip_torch", "timm", "transformers")


@dataclass(frozen=True)
class Materials:
    """What variants are made from.

    Attributes:
        fp32: the proved FP32 graph.
        encoder: what the graph takes and returns.
        golden: the images, and what FP32 makes of them, that every variant is held against.
        images: preprocessed images (N, 3, H, W) float32 to measure ranges on.
        recipe: how to quantize.
        limits: in place of the precision's own, where given.
        int8: the INT8 graph, where it was made otherwise than by ``recipe`` on ``fp32`` (quantization-aware training).
        progress: called with a short sentence before an image is run.
        calibrated: which photographs ``images`` are; None where nobody knows: the proof is then provisional.
    """

    fp32: Path
    encoder: EncoderSpec
    golden: GoldenImages
    images: FloatArray
    recipe: QuantizationRecipe = DEFAULT_RECIPE
    limits: ParityLimits | None = None
    int8: Path | None = None
    progress: Callable[[str], None] | None = None
    calibrated: CalibratedOn | None = None


@dataclass(frozen=True)
class Made:
    """Files written, the graph first, and what to remember of how they were made."""

    files: tuple[Path, ...]
    precision: Precision
    notes: dict[str, Any]


Maker: TypeAlias = Callable[[Path, Materials], Made]


def make_variants(
    names: Sequence[str], folder: Path, materials: Materials, *, progress: Callable[[str], None] | None = None
) -> list[Variant]:
    """Write variants into a bundle's folder, each with its report; stop at the first that is not good.

    Args:
        names: of ``VARIANTS``.
        folder: the bundle's; graphs go to ``image_encoder/``, reports to ``reports/``.
        progress: called with a short sentence before each step.

    Raises:
        InputError: an unknown name, or one given twice.
        LintError: a graph that TensorRT would refuse.
        ParityError: a graph that disagrees with FP32.
        ModelError: a graph that cannot be converted.
    """
    say = progress or (lambda _: None)
    check_variant_names(names)
    made = []
    for name in [known for known in VARIANTS if known in names]:  # int8 before int8-cpu, which is made from it
        say(f"making {name}")
        result = VARIANTS[name](folder, replace(materials, progress=progress))
        say(f"comparing {name} with fp32 on {counted(len(materials.golden.files), 'image')}")
        report = prove(result.files[0], result.precision, materials, name=name)
        calibrated = materials.calibrated
        write_report(
            folder,
            name,
            report,
            limits=materials.limits or LIMITS[result.precision],
            basis=basis_on(materials.golden, result.precision, calibrated),
            notes={**result.notes, "calibration": calibrated},
        )
        made.append(describe(name, result, folder))
    return made


def check_variant_names(names: Sequence[str]) -> None:
    """Refuse names that are not of ``VARIANTS``, and names given twice.

    Raises:
        InputError: as said.
    """
    unknown = [name for name in names if name not in VARIANTS]
    if unknown or len(set(names)) < len(names):
        raise InputError(f"expected different variants out of {', '.join(VARIANTS)}, got {', '.join(names)}")


def prove(path: Path, precision: Precision, materials: Materials, *, name: str) -> ParityReport:
    """Hold a graph against FP32 on the golden images.

    FP16 and BF16 are run in float32 with every result rounded as a device would round it: ONNX Runtime's CPU
    provider would otherwise compute in float32 and hide an overflow.

    Raises:
        ParityError: below the precision's limits, with the worst images.
        EngineError: the graph does not run, or gives values that are not finite.
    """
    with workshop() as scratch:
        low = precision in {"fp16", "bf16"}
        graph = emulate(path, scratch / path.name)[0] if low else path
        with load_engine("onnxruntime", graph, materials.encoder, precision="fp32" if low else precision) as engine:
            report = materials.golden.compare(engine)
    return report.require(materials.limits or LIMITS[precision], what=f"{name} differs from fp32")


def write_report(
    folder: Path,
    variant: str,
    report: ParityReport,
    *,
    limits: ParityLimits,
    basis: Basis,
    notes: dict[str, Any] | None = None,
) -> None:
    """Write ``reports/parity-<variant>.json``: the figures, what became of each limit, what they were taken on, where.

    Args:
        notes: how the variant was made.
    """
    content = {
        "variant": variant,
        "basis": {**msgspec.structs.asdict(basis), "provisional": basis.provisional},
        "checks": [{**msgspec.structs.asdict(check), "status": check.status} for check in report.checks(limits)],
        "parity": report,
        "machine": describe_machine(),
        "tools": installed_versions(TOOLS),
    }
    write_json(folder / "reports" / f"parity-{variant}.json", content | ({"made": notes} if notes is not None else {}))


def describe(name: str, made: Made, folder: Path) -> Variant:
    """The manifest's entry of a variant whose files lie in ``folder``."""
    ir = require("onnx_ir", purpose="read ONNX graphs", extra="export")
    graph, *data = [file.relative_to(folder).as_posix() for file in made.files]
    opset = ir.load(str(made.files[0])).graph.opset_imports[""]
    return Variant(name=name, file=graph, data_files=tuple(data), precision=made.precision, opset=opset)


def _low(precision: LowPrecision) -> Maker:
    def make(folder: Path, materials: Materials) -> Made:
        target = folder / "image_encoder" / f"{precision}.onnx"
        files, report = convert_precision(materials.fp32, target, precision, materials.images)
        require_legal(target)
        notes = {"low_nodes": report.low_nodes, "casts": report.casts, "kept_in_fp32": report.reasons()}
        return Made(files, precision, notes)

    return make


def _int8(folder: Path, materials: Materials) -> Made:
    target = folder / "image_encoder" / "int8.onnx"
    files = _quantized(target, materials)
    require_legal(target)
    return Made(files, "int8", {"recipe": materials.recipe, "calibration_images": len(materials.images)})


def _quantized(target: Path, materials: Materials) -> tuple[Path, ...]:
    if materials.int8 is None:
        return quantize(materials.fp32, target, materials.images, materials.recipe, progress=materials.progress)
    shutil.copyfile(materials.int8, target)
    return (target,)


def _int8_cpu(folder: Path, materials: Materials) -> Made:
    """Ranges and weights are those of ``int8``: taken from it where it is there, measured once where it is not."""
    present = folder / "image_encoder" / "int8.onnx"
    target = folder / "image_encoder" / "int8-cpu.onnx"
    with workshop(folder) as scratch:
        source = present if present.is_file() else scratch / "int8.onnx"
        if source != present:
            _quantized(source, materials)
        files = lay_out_for_cpu(source, target)
    return Made(files, "int8", {"recipe": materials.recipe, "calibration_images": len(materials.images)})


# In the order in which they are made.
VARIANTS: dict[str, Maker] = {"fp16": _low("fp16"), "bf16": _low("bf16"), "int8": _int8, "int8-cpu": _int8_cpu}
