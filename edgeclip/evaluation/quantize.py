"""A bundle and a largest loss in, INT8 variants that keep within it out, with the search that found their recipe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from edgeclip.bundle import Bundle
from edgeclip.calibration.images import sample_images
from edgeclip.devices.machine.probe import describe_machine
from edgeclip.errors import InputError
from edgeclip.evaluation.data.class_sets import class_prompts
from edgeclip.export.accuracy import (
    BUDGET_S,
    INT8,
    MAX_DROP,
    REPORT,
    LabelledImages,
    QuantizationReport,
    make_bounded,
    require_enough,
    split_in_halves,
    worst_layout,
)
from edgeclip.export.bundle import extended
from edgeclip.export.images import crops_to_calibrate_on, to_calibrate_on
from edgeclip.export.int8.quantization import read_recipe
from edgeclip.export.int8.search import GraphLoss, Search
from edgeclip.export.photographs import photographs
from edgeclip.export.prompt_table import table_for_bundle
from edgeclip.export.variants import Materials, make_variants
from edgeclip.files import write_json
from edgeclip.printable import counted
from edgeclip.prompts import load_templates
from edgeclip.runtime.engines.base import load_engine
from edgeclip.runtime.images import list_labelled
from edgeclip.runtime.proof.golden import GoldenImages, golden_of

MAX_COSINE_DROP = 0.01


@dataclass(frozen=True)
class QuantizeOptions:
    """How to quantize a bundle.

    Attributes:
        names: of the variants to make.
        calibration: folder of images to measure ranges on; None for crops of photographs.
        count: how many of them.
        max_drop: largest loss. With ``data`` in percentage points of top-1, of which the upper bound (95 %) has to be
            below it on two halves of the images: on one the recipe is searched, on the other its loss is stated. Else
            1 − cosine. None for 0.3 points or 0.01, and with a recipe for no limit.
        data, class_names, templates: labelled images and how their classes are asked for; see
            ``evaluate_folder``.
        recipe: file of a recipe to replay; None to search for one.
        budget_s: no new trial is begun after that many seconds.
        seed: of the choice of calibration images.
    """

    names: tuple[str, ...] = INT8
    calibration: Path | None = None
    count: int = 128
    max_drop: float | None = None
    data: Path | None = None
    class_names: Path | None = None
    templates: str = "simple"
    recipe: Path | None = None
    budget_s: float = BUDGET_S
    seed: int = 0


@dataclass(frozen=True)
class Quantized:
    """The bundle with its new variants, and how they came about."""

    bundle: Bundle
    report: QuantizationReport

    def lines(self) -> list[str]:
        """What happened, for people."""
        return [*self.report.lines(), f"written: {self.bundle.path}, recipe in {REPORT}"]


def quantize_bundle(
    bundle: Bundle, options: QuantizeOptions, *, progress: Callable[[str], None] | None = None
) -> Quantized:
    """Make INT8 variants from a bundle's FP32 graph and put them into the bundle; on failure it stays as it was.

    Raises:
        InputError: an option is out of range, the bundle has no golden images, or the labelled images cannot bound the
            loss: too few, or labels that FP32 does not know.
        ParityError: no recipe keeps within the loss, on the images that it is searched on and on the others, or a
            variant within its precision's limits.
        ModelError, LintError: the graph cannot be quantized.
    """
    say = progress or (lambda _: None)
    if not options.names or set(options.names) - set(INT8):
        raise InputError(f"expected variants out of {', '.join(INT8)}, got {', '.join(options.names) or 'none'}")
    max_drop = options.max_drop
    if max_drop is None and not options.recipe:
        max_drop = MAX_DROP if options.data else MAX_COSINE_DROP
    if options.count < 1 or not (max_drop is None or max_drop >= 0):
        raise InputError(f"expected count of at least 1 and `max_drop` of at least 0, got {options.count}, {max_drop}")
    golden = golden_of(bundle)
    if golden is None:
        raise InputError(f"{bundle.path} has no golden images to compare on: export the bundle again")
    encoder, fp32 = bundle.manifest.encoder, bundle.variant_path("fp32")
    if options.calibration:
        chosen = sample_images(options.calibration, options.count, seed=options.seed)
        images, calibrated = to_calibrate_on(chosen, encoder, golden=golden)
    else:
        images, calibrated = crops_to_calibrate_on(photographs(), encoder, origin="stand-ins", count=options.count)
    recipe = read_recipe(options.recipe) if options.recipe else None
    labelled = _labelled(bundle, options, max_drop, say) if options.data else None
    halves = None
    if labelled is not None:
        say(f"top-1 of fp32 on {counted(len(labelled), 'image')}")
        halves = split_in_halves(labelled, fp32, calibrated_on=images, max_drop=max_drop)
    with extended(bundle, names=options.names) as (folder, made):
        materials = Materials(fp32, encoder, golden, images, calibrated=calibrated)
        if halves is not None:
            more, report = make_bounded(
                options.names,
                folder,
                materials,
                halves,
                max_drop=max_drop,
                recipe=recipe,
                budget_s=options.budget_s,
                progress=say,
            )
        else:
            search = None
            if recipe is None:
                assert max_drop is not None
                loss = worst_layout(_cosine_loss(golden, bundle), options.names)
                searching = Search(fp32, images, loss, unit="1 - cosine", budget_s=options.budget_s, progress=say)
                search = searching.run(max_drop)
                recipe = search.best.recipe
            more = make_variants(options.names, folder, replace(materials, recipe=recipe), progress=say)
            report = QuantizationReport(
                unit="1 - cosine", max_drop=max_drop, recipe=recipe, search=search, machine=describe_machine()
            )
        made += more
        write_json(folder / REPORT, report)
    return Quantized(Bundle.open(bundle.path), report)


def _labelled(
    bundle: Bundle, options: QuantizeOptions, max_drop: float | None, say: Callable[[str], None]
) -> LabelledImages:
    assert options.data is not None
    files, folders = list_labelled(options.data)
    require_enough(len(files), max_drop)  # before an image is read
    classes = class_prompts(folders, options.class_names)
    table = table_for_bundle(bundle, classes, load_templates(options.templates), name=options.data.name or "data")
    return LabelledImages(
        files, table, bundle.manifest.encoder, progress=lambda done, total: say(f"reading image {done} of {total}")
    )


def _cosine_loss(golden: GoldenImages, bundle: Bundle) -> Callable[[Path], GraphLoss]:
    encoder = bundle.manifest.encoder

    def loss(path: Path) -> GraphLoss:
        with load_engine("onnxruntime", path, encoder, precision="int8") as engine:
            report = golden.compare(engine, dynamic_batch=False)
        found = 1 - (report.mean_cosine if report.mean_centred_cosine is None else report.mean_centred_cosine)
        return GraphLoss(bound=found, estimate=found)

    return loss
