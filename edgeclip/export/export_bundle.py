"""A ContrastiveModel in, a verified bundle out: the FP32 graph with the proof that it agrees with its model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from edgeclip.bundle import Bundle, create_bundle, write_manifest
from edgeclip.devices.probe import describe_machine, installed_versions
from edgeclip.errors import InputError
from edgeclip.export.compact import compact
from edgeclip.export.onnx_export import OPSET, export_onnx
from edgeclip.export.parity import ParityReport, check_parity
from edgeclip.export.photographs import Photograph
from edgeclip.files import write_json
from edgeclip.spec import Manifest, Variant
from edgeclip.training.model import ContrastiveModel

# (the fp32 graph, the bundle's folder, photographs) -> what was written: the variant's files go under
# ``image_encoder/``, its report under ``reports/`` (see write_parity_report). It raises ParityError for a bad one.
VariantMaker: TypeAlias = Callable[[Path, Path, Sequence[Photograph]], Variant]

_TOOLS = ("edgeclip", "torch", "onnx", "onnxscript", "onnxruntime", "open_clip_torch", "timm", "transformers")


def export_bundle(
    model: ContrastiveModel,
    path: Path,
    *,
    photos: Sequence[Photograph],
    extra_variants: Sequence[VariantMaker] = (),
    overwrite: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Bundle:
    """Export, compare and write a bundle; a failure leaves nothing behind, nor harms a bundle that was there.

    Args:
        photos: real photographs for the comparison (:func:`edgeclip.export.photographs.photographs`).
        extra_variants: makers of further variants, called in order once the FP32 graph is proved.
        overwrite: replace a bundle at ``path``.
        progress: called with a short sentence before each step.

    Raises:
        ModelError: the model cannot be exported.
        ParityError: a graph disagrees with the model.
        InputError: ``path`` exists already or cannot be written.
    """
    say = progress or (lambda _: None)
    with create_bundle(path, overwrite=overwrite) as folder:
        say(f"exporting {model.name} to ONNX")
        fp32 = folder / "image_encoder" / "fp32.onnx"
        written = export_onnx(
            model.exportable(), model.encoder, fp32, metadata=onnx_metadata(model.name, model.identity.id, "fp32")
        )
        say(f"comparing fp32 with the model on {len(photos)} photographs")
        write_parity_report(folder, "fp32", check_parity(model, fp32, photos))
        variants = [
            Variant(
                name="fp32",
                file="image_encoder/fp32.onnx",
                data_files=tuple(file.relative_to(folder).as_posix() for file in written[1:]),
                precision="fp32",
                opset=OPSET,
            )
        ]
        for make in extra_variants:
            variants.append(make(fp32, folder, photos))
            say(f"made {variants[-1].name}")
        if len(written) == 1 and compact(fp32):
            say("comparing fp32 again, its weights stored in 8 bits")
            write_parity_report(folder, "fp32", check_parity(model, fp32, photos))
        if len({variant.name for variant in variants}) < len(variants):
            raise InputError(f"expected variants of different names, got {[variant.name for variant in variants]}")
        write_manifest(
            folder,
            Manifest(
                model=model.identity, encoder=model.encoder, variants=tuple(variants), tools=installed_versions(_TOOLS)
            ),
            scan=True,
        )
    return Bundle.open(path)


def onnx_metadata(model_name: str, model_id: str, variant: str) -> dict[str, str]:
    """What an ONNX file of ours says of itself in its ``metadata_props``."""
    return {"edgeclip.model": model_name, "edgeclip.model_id": model_id, "edgeclip.variant": variant}


def write_parity_report(folder: Path, variant: str, report: ParityReport) -> None:
    """Write ``reports/parity-<variant>.json``: the figures and the machine that they were taken on."""
    content = {"variant": variant, "parity": report, "machine": describe_machine(), "tools": installed_versions(_TOOLS)}
    write_json(folder / "reports" / f"parity-{variant}.json", content)
