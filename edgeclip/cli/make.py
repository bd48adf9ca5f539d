"""The commands that make things: a model, a bundle, INT8 variants, a device's engine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
import typer

from edgeclip.bundle import Bundle
from edgeclip.class_names import split_names
from edgeclip.cli.common import BundleArgument, TemplatesHelp, console, notices, output_folder, progress_bars
from edgeclip.engine_list import built_engines
from edgeclip.errors import InputError
from edgeclip.extras import require
from edgeclip.spec import ModelOptions

_CALIBRATION_HELP = "Folder of images to measure ranges on; golden ones are left out. \\[crops of stand-in photographs]"

_Number = TypeVar("_Number", int, float)


def export(
    model: Annotated[
        str,
        typer.Argument(help="open_clip name, hf:NAME, hf-hub:NAME, a local folder, a checkpoint, or starter."),
    ],
    pretrained: Annotated[
        str | None, typer.Option(help="open_clip tag or a file of weights; none for random weights.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Bundle to make. \\[MODEL.edgeclip]", callback=output_folder)
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            help="Folder of photographs or camera footage of yours, searched recursively: different ones are taken to "
            "prove on (64), others to measure ranges on (128), and where there is one folder a class the rest to "
            "evaluate on. \\[nine stand-in photographs: what they prove is provisional]"
        ),
    ] = None,
    variants: Annotated[
        str, typer.Option(help='Forms to make beside fp32, e.g. "fp16, int8, int8-cpu": fp16, bf16, int8, int8-cpu.')
    ] = "",
    target: Annotated[
        str | None, typer.Option(help="Device to export for: makes the forms that pay there, and plans for it.")
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Chosen images to measure ranges on, not proved on. \\[a part of --images]")
    ] = None,
    merge_tokens: Annotated[
        int,
        typer.Option(metavar="R", help="Merge R alike tokens in each block of a ViT (ToMe): faster, less exact."),
    ] = 0,
    max_drop: Annotated[
        float | None,
        typer.Option(
            help="With labelled --images: what INT8 may lose, points of top-1. Its recipe is searched on one half of "
            "those to evaluate on, and the upper bound (95 %) of its loss has to be below this on both. If none keeps "
            "it, that is an error for --variants asked for by name; those that come with --target are left out. "
            "\\[0.3, if the images are enough for it]"
        ),
    ] = None,
    names: Annotated[
        Path | None, typer.Option(help="With labelled --images, JSON: folder name → class name or names.")
    ] = None,
    templates: Annotated[str, typer.Option(help="With labelled --images. " + TemplatesHelp)] = "simple",
    seed: Annotated[int, typer.Option(help="Seed of random weights, and of the choice of images.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing bundle.")] = False,
    image_size: Annotated[
        str | None,
        typer.Option(metavar="N or H,W", help="Side of an open_clip model's input, pixels. \\[as in its weights]"),
    ] = None,
    context_length: Annotated[
        int | None, typer.Option(help="Tokens of an open_clip model's texts. \\[as in its weights]")
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option(metavar="R,G,B", help="Mean of an open_clip model's images, 0 to 1. \\[as its tags have it]"),
    ] = None,
    std: Annotated[str | None, typer.Option(metavar="R,G,B", help="Standard deviation; as --mean.")] = None,
    interpolation: Annotated[str | None, typer.Option(help="Of the resize: bicubic or bilinear; as --mean.")] = None,
    resize_mode: Annotated[
        str | None, typer.Option(help="shortest (side, then the centre) or squash; as --mean.")
    ] = None,
    init_logit_bias: Annotated[
        float | None, typer.Option(help="SigLIP's bias of the scores, for open_clip weights that hold none.")
    ] = None,
) -> None:
    """Turn a model into a bundle: ONNX image encoder, proved equal to the model on real photographs.

    What is only provisionally proved is told as that, and the exit code is 0; it is 2 where a variant disagrees.
    """
    require("torch", purpose="export a model")
    require("onnxscript", purpose="export a model")
    from edgeclip.cli.bundle import print_card
    from edgeclip.cli.plan import print_plan
    from edgeclip.devices.catalogue.profile import load_profile
    from edgeclip.devices.plan.plan import plan
    from edgeclip.evaluation.data.class_sets import class_prompts
    from edgeclip.export.accuracy import quantization_report
    from edgeclip.export.bundle import export as export_model
    from edgeclip.export.cost import cost_of_bundle
    from edgeclip.export.images import image_report
    from edgeclip.export.merge_tokens.model import merge_report
    from edgeclip.runtime.images import list_labelled
    from edgeclip.training.load import short_name

    options = {
        "image_size": _numbers("--image-size", image_size, int, 2),
        "context_length": context_length,
        "mean": _numbers("--mean", mean, float, 3),
        "std": _numbers("--std", std, float, 3),
        "interpolation": interpolation,
        "resize_mode": resize_mode,
        "init_logit_bias": init_logit_bias,
    }
    try:
        known = msgspec.convert({key: value for key, value in options.items() if value is not None}, ModelOptions)
    except msgspec.ValidationError as error:
        raise InputError(f"expected what --help says of the model's options, got: {error}") from error
    class_names = None
    if names:
        if images is None:
            raise InputError("expected --images with one folder a class, for --names, got none")
        class_names = {item.label: item.names for item in class_prompts(list_labelled(images)[1], names)}
    with console.status("reading images") as status:
        bundle = export_model(
            model,
            output or Path(f"{short_name(model)}.edgeclip"),
            variants=split_names(variants),
            calibration=calibration,
            images=images,
            pretrained=pretrained,
            options=known,
            target=target,
            merge_tokens=merge_tokens,
            max_drop=max_drop,
            class_names=class_names,
            templates=templates,
            seed=seed,
            overwrite=overwrite,
            progress=status.update,
        )
    print_card(bundle, console)
    if chosen := image_report(bundle):
        console.print(chosen.line(), markup=False, highlight=False, soft_wrap=True)
    if report := merge_report(bundle):
        console.print(report.line(), markup=False, highlight=False, soft_wrap=True)
    if quantized := quantization_report(bundle):
        for line in quantized.lines():
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    if target:
        console.print()
        print_plan(plan(cost_of_bundle(bundle), load_profile(target)), console)


def _numbers(flag: str, text: str | None, kind: type[_Number], count: int) -> tuple[_Number, ...] | None:
    """One number for all, or ``count`` with commas between them, as that many."""
    if text is None:
        return None
    try:
        found = [kind(part) for part in text.split(",")]
    except ValueError:
        found = []
    if len(found) not in (1, count):
        raise InputError(f"expected {flag} as one or {count} numbers with commas between them, got {text!r}")
    return tuple(found if len(found) == count else found * count)


def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe, e.g. recipes/scratch-vit.yaml.")],
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one value.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the run. \\[runs/NAME]", callback=output_folder)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the state saved last, if there is one.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing run.")] = False,
) -> None:
    """Train a contrastive image–text model from a recipe; the result can be exported.

    With several GPUs or machines: torchrun --nproc-per-node N -m edgeclip train …
    """
    require("torch", purpose="train a model", extra="train")
    require("yaml", purpose="read a recipe")
    from edgeclip.training.adapt.recipe import FewShotRecipe
    from edgeclip.training.loop.trainer import train_recipe
    from edgeclip.training.recipe_file import load_recipe

    loaded = load_recipe(recipe, overrides=set_ or [])
    target = output or Path("runs") / loaded.name
    if isinstance(loaded, FewShotRecipe):
        from edgeclip.evaluation.fewshot import run_recipe

        run_recipe(loaded, target, console=console, overwrite=overwrite)
        return
    train_recipe(loaded, target, console=console, overwrite=overwrite, resume=resume)
    console.print(f"trained: {target}\nnext: edgeclip export {target}", highlight=False)


def quantize(
    bundle: BundleArgument,
    variants: Annotated[str, typer.Option(help="Which to make: int8, int8-cpu or both.")] = "int8, int8-cpu",
    calibration: Annotated[Path | None, typer.Option(help=_CALIBRATION_HELP)] = None,
    count: Annotated[int, typer.Option(help="Calibration images.")] = 128,
    max_drop: Annotated[
        float | None,
        typer.Option(
            help="Largest loss. With --data in points of top-1: the upper bound (95 %) has to be below it on the half "
            "of the images that the recipe is searched on, and on the other, which is reported. Else 1 - cosine "
            "(mean-centred, mean). \\[0.3 points or 0.01; none with --recipe]"
        ),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Labelled images, one folder a class, to measure top-1 on.")] = None,
    names: Annotated[Path | None, typer.Option(help="With --data, JSON: folder name → class name or names.")] = None,
    templates: Annotated[str, typer.Option(help="With --data. " + TemplatesHelp)] = "simple",
    recipe: Annotated[
        Path | None, typer.Option(help="Replay a recipe (or a report that holds one); no search.")
    ] = None,
    budget: Annotated[float, typer.Option(help="Seconds after which no new trial is begun.")] = 1800.0,
    seed: Annotated[int, typer.Option(help="Seed of the choice of calibration images.")] = 0,
) -> None:
    """Add INT8 variants to a bundle: search for the recipe that quantizes most within a loss, or replay one."""
    require("nncf", purpose="quantize")
    from edgeclip.evaluation.quantize import QuantizeOptions, quantize_bundle

    options = QuantizeOptions(
        names=tuple(split_names(variants)),
        calibration=calibration,
        count=count,
        max_drop=max_drop,
        data=data,
        class_names=names,
        templates=templates,
        recipe=recipe,
        budget_s=budget,
        seed=seed,
    )
    opened = Bundle.open(bundle)
    opened.require_writable()
    with notices.status("reading images") as status:
        done = quantize_bundle(opened, options, progress=status.update)
    for line in done.lines():
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def build(
    bundle: BundleArgument,
    variant: Annotated[str | None, typer.Option(help="Form of the encoder. \\[all that the engine is for]")] = None,
    engine: Annotated[
        str | None, typer.Option(help=f"One of {', '.join(built_engines())}. \\[the best one here]")
    ] = None,
    batch: Annotated[str, typer.Option(metavar="MIN,OPT,MAX", help="Batches of a TensorRT plan.")] = "1,1,8",
    workspace: Annotated[
        int | None, typer.Option(help="TensorRT's scratch memory, MiB. \\[half of what is free]")
    ] = None,
    compute_capability: Annotated[
        str | None, typer.Option(help="Build for another GPU, e.g. 8.6 (tensorrt-rtx only). \\[the one here]")
    ] = None,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="A plan that later TensorRT versions load (tensorrt only).")
    ] = False,
    hardware_compatible: Annotated[
        bool, typer.Option("--hardware-compatible", help="A plan for every GPU from compute capability 8.0 on.")
    ] = False,
    strip: Annotated[bool, typer.Option("--strip", help="Leave the weights out; they are read at load.")] = False,
    layers: Annotated[bool, typer.Option("--layers", help="Print the layers of a TensorRT plan.")] = False,
    unproved: Annotated[
        bool, typer.Option("--unproved", help="Build for a bundle without golden images to prove it on.")
    ] = False,
) -> None:
    """Compile a bundle's variants for this device, and prove each against FP32 on the golden images.

    What is built is kept in a cache and found there by label; a changed variant, library, GPU or option builds anew.
    """
    from edgeclip.cli.build import build_and_prove
    from edgeclip.runtime.engines.build import best_engine, suitable
    from edgeclip.runtime.engines.tensorrt_options import BuildOptions

    try:
        smallest, best, largest = (int(size) for size in batch.split(","))
    except ValueError:
        raise InputError(f"expected --batch MIN,OPT,MAX, such as 1,1,8, got {batch!r}") from None
    options = BuildOptions(
        min_batch=smallest,
        opt_batch=best,
        max_batch=largest,
        workspace_bytes=None if workspace is None else workspace << 20,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        strip=strip,
        compute_capability=compute_capability,
        detailed_layers=layers,
    )
    opened = Bundle.open(bundle)
    chosen = engine or best_engine()
    with progress_bars() as bars:
        build_and_prove(
            opened,
            [variant] if variant else suitable(opened, chosen),
            chosen,
            options,
            unproved=unproved,
            console=console,
            bars=bars,
        )
