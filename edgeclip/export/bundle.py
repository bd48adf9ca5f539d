"""A ContrastiveModel in, a verified bundle out: FP32 proved equal to the model, variants proved against FP32.

``extended`` adds variants to a bundle that is there, or changes nothing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgeclip.bundle import STAGING, Bundle, create_bundle
from edgeclip.calibration.images import sample_images
from edgeclip.class_names import TemplatesLike, split_names
from edgeclip.devices.catalogue.profile import load_profile
from edgeclip.devices.machine.probe import installed_versions
from edgeclip.devices.plan.plan import variants_for
from edgeclip.errors import BundleError, InputError
from edgeclip.export.accuracy import INT8, AccuracyOptions, accuracy_options, make_accurate
from edgeclip.export.cost import graph_cost
from edgeclip.export.images import (
    CALIBRATION_IMAGES,
    ImageReport,
    crops_to_calibrate_on,
    report_of,
    split_images,
    to_calibrate_on,
)
from edgeclip.export.images import REPORT as IMAGES
from edgeclip.export.int8.quantization import QuantizationRecipe, default_recipe
from edgeclip.export.merge_tokens.model import REPORT, MergedModel
from edgeclip.export.onnx import OPSET, compact, export_onnx
from edgeclip.export.photographs import Photograph, photographs
from edgeclip.export.proofs import check_parity, class_rows, make_golden
from edgeclip.export.variants import TOOLS, Materials, check_variant_names, make_variants, write_report
from edgeclip.files import atomic_folder, write_json
from edgeclip.manifest import visible_files, write_manifest
from edgeclip.printable import counted
from edgeclip.prompts import FloatArray
from edgeclip.runtime.images import Image
from edgeclip.runtime.proof.basis import basis_on
from edgeclip.runtime.proof.golden import FILE as GOLDEN
from edgeclip.runtime.proof.parity import LIMITS, ParityLimits
from edgeclip.spec import NO_OPTIONS, EncoderSpec, Manifest, ModelOptions, Variant
from edgeclip.training.load import load_model
from edgeclip.training.model import ContrastiveModel


def export(
    model: ContrastiveModel | str,
    path: str | os.PathLike[str],
    *,
    variants: str | Sequence[str] = (),
    images: str | os.PathLike[str] | Sequence[Image] | None = None,
    calibration: str | os.PathLike[str] | Sequence[Image] | None = None,
    pretrained: str | None = None,
    options: ModelOptions = NO_OPTIONS,
    target: str | None = None,
    merge_tokens: int = 0,
    max_drop: float | None = None,
    class_names: Mapping[str, str | Sequence[str]] | None = None,
    templates: TemplatesLike = "simple",
    seed: int = 0,
    overwrite: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Bundle:
    """Turn a model into a bundle: ONNX image encoders, each proved equal to the model on real photographs.

    ```python
    model = edgeclip.load_model("ViT-B-32", pretrained="laion2b_s34b_b79k")
    bundle = edgeclip.export(model, "shop.edgeclip", variants=["fp16", "int8"], images="frames/")
    ```

    Args:
        model: what ``load_model`` gave, or a name that it takes.
        path: folder to make.
        variants: beside ``fp32``: ``fp16``, ``bf16``, ``int8`` (for device compilers), ``int8-cpu``. A list, or
            ``"fp16, int8"``.
        images: photographs or camera footage of yours: a folder, searched recursively, or (H, W, 3) uint8 RGB arrays.
            They are split by their content: up to 64 to prove on, up to 128 to measure ranges on, and of a folder with
            one folder a class the others to evaluate on. None for stand-ins, nine photographs that scikit-image ships
            and crops of them: what is proved on those is provisional.
        calibration: a chosen set to measure ranges on (what ``edgeclip calibrate images`` wrote is taken whole, of
            another folder a seeded sample), or arrays; what of ``images`` is in it is not proved on. None for a part of
            ``images``.
        pretrained: with an open_clip name, its tag or a file of weights.
        options: with an open_clip name, what is known of the model beside: its preprocessing, say.
        target: a device's name: the variants that pay there are made too.
        merge_tokens: tokens of a ViT that are merged in each block (ToMe): faster, less exact.
        max_drop: what INT8 may lose on labelled ``images``, in percentage points of top-1: the recipe is searched on
            one half of those to evaluate on, and the upper bound (95 %) of its loss has to be below this on both. If
            none keeps it, that is an error for variants asked for by name; those that come with ``target`` are left
            out. None for 0.3 where the images are enough for it: 2,554 to evaluate on.
        class_names: what the classes of labelled ``images`` are called, by the names of their folders; None for these.
        templates: ``simple``, ``imagenet`` (CLIP's 80), a file with one a line, or templates, ``{}`` for the name.
        seed: of random weights, and of the choice of images.
        overwrite: replace a bundle at ``path``.
        progress: called with a short sentence before each step.

    Raises:
        InputError: ``path`` exists already, an unknown variant or device, calibration with nothing to calibrate, or a
            limit that the labelled images cannot show to be kept.
        SourceError: too few images.
        ModelError: the model cannot be loaded or exported.
        ParityError: a graph disagrees with the model, or a variant with FP32, or INT8 loses more than it may; nothing
            is left behind.
        LintError: a variant that TensorRT would refuse.
        MissingExtraError: the libraries for it are not installed.
    """
    say = progress or (lambda _: None)
    if not isinstance(model, str | ContrastiveModel):
        raise InputError(f"expected a model that load_model gave, or a model's name, got {type(model).__name__}")
    names = split_names(variants)
    check_variant_names(names)
    by_name = bool(names) or not target
    if target:
        names = variants_for(load_profile(target), names)
    if calibration is not None and not names:
        raise InputError("expected variants with calibration images, got none: fp32 needs no ranges")
    path = Path(path)
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists already: choose another output or overwrite it")
    chosen: Sequence[Image] = ()
    if isinstance(calibration, str | os.PathLike):
        chosen = sample_images(Path(calibration), CALIBRATION_IMAGES, seed=seed)
    elif calibration is not None:
        chosen = calibration
        if not len(chosen):
            raise InputError("expected images to calibrate on, got none: give some, or leave calibration out")
    split = None
    if images is not None:
        split = split_images(
            Path(images) if isinstance(images, str | os.PathLike) else images,
            calibration=CALIBRATION_IMAGES if names and calibration is None else 0,
            seed=seed,
            calibrated=chosen,
        )
        if calibration is None:
            chosen = split.calibration.pixels()
    accuracy = accuracy_options(
        names,
        split.evaluation if split else (),
        max_drop=max_drop,
        class_names=class_names,
        templates=templates,
        by_name=by_name,
    )
    photos = split.golden if split else photographs()
    if isinstance(model, str):
        say("loading the model")
        model = load_model(model, pretrained=pretrained, seed=seed, options=options)
    elif pretrained is not None or options != NO_OPTIONS:
        raise InputError("expected pretrained and options with a name, got them with a loaded model: leave them out")
    if merge_tokens:
        model = MergedModel(model, merge_tokens)
    made = VariantOptions(tuple(names), chosen, accuracy=accuracy)
    return export_bundle(
        model,
        path,
        photos=photos,
        variants=made,
        images=report_of(split) if split else None,
        overwrite=overwrite,
        progress=progress,
    )


@dataclass(frozen=True)
class VariantOptions:
    """Which variants to make beside FP32, and how.

    Attributes:
        names: of ``VARIANTS``.
        calibration: images to measure ranges on, of which golden ones are left out; without any, random crops of the
            photographs.
        recipe: how to quantize; None for ``default_recipe``, or with ``accuracy`` to search for one.
        limits: of the comparison with FP32, in place of each precision's own.
        accuracy: how INT8 is held to labelled images, which its recipe is then searched on; None if it is not.
    """

    names: tuple[str, ...] = ()
    calibration: Sequence[Image] = ()
    recipe: QuantizationRecipe | None = None
    limits: ParityLimits | None = None
    accuracy: AccuracyOptions | None = None


def export_bundle(
    model: ContrastiveModel,
    path: Path,
    *,
    photos: Sequence[Photograph],
    variants: VariantOptions = VariantOptions(),
    images: ImageReport | None = None,
    overwrite: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Bundle:
    """Export, compare and write a bundle; a failure leaves nothing behind, nor harms a bundle that was there.

    Args:
        photos: real photographs for the comparison: different ones, or the stand-ins of ``photographs``.
        variants: what to make beside FP32.
        images: how the photographs were chosen; None for stand-ins.
        overwrite: replace a bundle at ``path``.
        progress: called with a short sentence before each step.

    Raises:
        ModelError: the model cannot be exported.
        ParityError: a graph disagrees with the model, or a variant with FP32.
        LintError: a variant that TensorRT would refuse.
        InputError: ``path`` exists already or cannot be written.
    """
    say = progress or (lambda _: None)
    check_variant_names(variants.names)
    with create_bundle(path, overwrite=overwrite) as folder:
        say(f"exporting {model.name} to ONNX")
        fp32 = folder / "image_encoder" / "fp32.onnx"
        written = export_onnx(
            model.exportable(), model.encoder, fp32, metadata=onnx_metadata(model.name, model.identity.id, "fp32")
        )
        classes = class_rows(model.text, model.encoder.embedding_dim)
        say(f"comparing fp32 with the model on {counted(len(photos), 'photograph')}")
        parity = check_parity(model, fp32, photos, classes=classes)
        graph_cost(fp32).save(folder)
        made = [
            Variant(
                name="fp32",
                file="image_encoder/fp32.onnx",
                data_files=tuple(file.relative_to(folder).as_posix() for file in written[1:]),
                precision="fp32",
                opset=OPSET,
            )
        ]
        say("encoding the golden images")
        golden = make_golden(fp32, model.encoder, photos, classes, origin="images" if images else "stand-ins")
        golden.save(folder / GOLDEN)
        if images:
            write_json(folder / IMAGES, images)
        if isinstance(model, MergedModel):
            say("comparing with the model before its tokens were merged")
            write_json(folder / REPORT, model.report(photos, golden.classes))
        if variants.names:
            inputs, calibrated = (
                to_calibrate_on(variants.calibration, model.encoder, golden=golden)
                if len(variants.calibration)
                else crops_to_calibrate_on(photos, model.encoder, origin=golden.origin)
            )
            recipe = variants.recipe or default_recipe(fp32)
            materials = Materials(fp32, model.encoder, golden, inputs, recipe, variants.limits, calibrated=calibrated)
            bounded = [name for name in variants.names if name in INT8 and variants.accuracy]
            others = [name for name in variants.names if name not in bounded]
            made += make_variants(others, folder, materials, progress=say)
            if bounded and variants.accuracy:
                made += make_accurate(
                    bounded, folder, materials, model.text, variants.accuracy, recipe=variants.recipe, progress=say
                )
        if len(written) == 1 and compact(fp32):
            say("comparing fp32 again, its weights stored in 8 bits")
            parity = check_parity(model, fp32, photos, classes=classes)
        basis = basis_on(golden, "fp32", None)
        write_report(folder, "fp32", parity, limits=LIMITS["fp32"], basis=basis)
        write_manifest(
            folder,
            Manifest(
                model=model.identity, encoder=model.encoder, variants=tuple(made), tools=installed_versions(TOOLS)
            ),
            scan=True,
        )
    return Bundle.open(path)


def calibration_inputs(
    images: Sequence[Image], photos: Sequence[Photograph], encoder: EncoderSpec, *, count: int = CALIBRATION_IMAGES
) -> FloatArray:
    """Images, or without any ``count`` random crops of the photographs, preprocessed: (N, 3, H, W) float32."""
    if len(images):
        return to_calibrate_on(images, encoder, golden=None).inputs
    return crops_to_calibrate_on(photos, encoder, origin="stand-ins", count=count).inputs


def onnx_metadata(model_name: str, model_id: str, variant: str) -> dict[str, str]:
    """What an ONNX file of ours says of itself in its ``metadata_props``."""
    return {"edgeclip.model": model_name, "edgeclip.model_id": model_id, "edgeclip.variant": variant}


@contextmanager
def extended(bundle: Bundle, *, names: Sequence[str]) -> Iterator[tuple[Path, list[Variant]]]:
    """Yield a copy of the bundle's folder, and a list to add variants to; what is new in it is added on success.

    Args:
        names: of the variants that will be made; those of the bundle that are called so are left out of the copy.

    Raises:
        BundleError: the bundle cannot be written to; see ``Bundle.require_writable``.
        IntegrityError: a file of the bundle does not match its hash.
    """
    bundle.require_writable()
    manifest = bundle.manifest
    dropped = _files_of(manifest, names)
    with ExitStack() as stack:
        with atomic_folder(bundle.path / STAGING, overwrite=True) as folder:
            linked = {}
            for relative in bundle.verify():
                if relative not in dropped:
                    _link(bundle.path / relative, folder / relative)
                    linked[relative] = (folder / relative).stat().st_ino
            made: list[Variant] = []
            yield folder, made
            # Others may have written meanwhile: what they did stays, and this is added to it.
            changes = stack.enter_context(bundle.writing())
        if bundle.manifest.model != manifest.model:
            raise BundleError(f"{bundle.path} was replaced by another model's meanwhile: run this again")
        new = changes.folder
        added = [name for name in visible_files(new) if linked.get(name) != (new / name).stat().st_ino]
        changes.commit(
            added,
            dropped=_files_of(bundle.manifest, names),
            variants=(*(variant for variant in bundle.manifest.variants if variant.name not in names), *made),
            tools={**bundle.manifest.tools, **installed_versions(TOOLS)},
        )


def _files_of(manifest: Manifest, names: Sequence[str]) -> set[str]:
    """The files of the variants that are called so, and their reports."""
    return {
        file
        for variant in manifest.variants
        if variant.name in names
        for file in (variant.file, *variant.data_files, f"reports/parity-{variant.name}.json")
    }


def _link(source: Path, target: Path) -> None:
    """The same file under another name, where the file system can: a bundle may hold gigabytes, and files are never
    written in place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
