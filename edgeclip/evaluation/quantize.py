"""A bundle and a largest loss in, INT8 variants that keep within it out, with the search that found their recipe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeclip.bundle import Bundle
from edgeclip.calibration.images import sample_images
from edgeclip.devices.machine.probe import describe_machine
from edgeclip.errors import InputError, SourceError
from edgeclip.evaluation.data.class_sets import class_prompts
from edgeclip.evaluation.statistics.paired import Hits, PairedDifference, paired_difference
from edgeclip.export.bundle import extended
from edgeclip.export.images import crops_to_calibrate_on, to_calibrate_on
from edgeclip.export.int8.cpu_layout import lay_out_for_cpu
from edgeclip.export.int8.quantization import QuantizationRecipe, read_recipe
from edgeclip.export.int8.search import Search, SearchResult
from edgeclip.export.photographs import photographs
from edgeclip.export.prompt_table import table_for_bundle
from edgeclip.export.variants import Materials, make_variants
from edgeclip.files import workshop, write_json
from edgeclip.prompts import PromptTable, load_templates, unit_rows
from edgeclip.runtime.engines.base import load_engine
from edgeclip.runtime.images import Image, list_labelled, read_image
from edgeclip.runtime.preprocess.preprocess import Preprocessor
from edgeclip.runtime.proof.golden import GoldenImages, golden_of
from edgeclip.spec import EncoderSpec, Precision

REPORT = "reports/quantization.json"
_INT8 = ("int8", "int8-cpu")


@dataclass(frozen=True)
class QuantizeOptions:
    """How to quantize a bundle.

    Attributes:
        names: of the variants to make.
        calibration: folder of images to measure ranges on; None for crops of photographs.
        count: how many of them.
        max_drop: largest loss: percentage points of top-1 with ``data``, else 1 − cosine.
        data, class_names, templates: labelled images and how their classes are asked for; see
            ``evaluate_folder``.
        recipe: file of a recipe to replay; None to search for one.
        budget_s: no new trial is begun after that many seconds.
        seed: of the choice of calibration images.
    """

    names: tuple[str, ...] = _INT8
    calibration: Path | None = None
    count: int = 128
    max_drop: float = 0.01
    data: Path | None = None
    class_names: Path | None = None
    templates: str = "simple"
    recipe: Path | None = None
    budget_s: float = 1800.0
    seed: int = 0


@dataclass(frozen=True)
class Quantized:
    """The bundle with its new variants, the search (None for a replayed recipe) and accuracies beside FP32's."""

    bundle: Bundle
    recipe: QuantizationRecipe
    search: SearchResult | None
    differences: dict[str, PairedDifference]

    def lines(self) -> list[str]:
        """What happened, for people."""
        said = []
        if self.search:
            for number, trial in enumerate(self.search.trials, 1):
                alpha = "none" if trial.recipe.smooth_alpha is None else f"{trial.recipe.smooth_alpha:g}"
                kept = f", fp32: {', '.join(trial.blocks_in_fp32)}" if trial.blocks_in_fp32 else ""
                said.append(
                    f"trial {number}: {trial.recipe.range_estimator}, smoothing {alpha}{kept}: "
                    f"loss {trial.loss:.4g} {self.search.unit} ({trial.seconds:.0f} s)"
                )
            ended = "; the time ran out before the search was over" if self.search.stopped else ""
            said.append(f"kept: loss {self.search.best.loss:.4g} of {self.search.max_loss:g} allowed{ended}")
        said += [f"{name}: top-1 {difference} beside fp32" for name, difference in self.differences.items()]
        return [*said, f"written: {self.bundle.path}, recipe in {REPORT}"]


def quantize_bundle(
    bundle: Bundle, options: QuantizeOptions, *, progress: Callable[[str], None] | None = None
) -> Quantized:
    """Make INT8 variants from a bundle's FP32 graph and put them into the bundle; on failure it stays as it was.

    Raises:
        InputError: an option is out of range, or the bundle has no golden images.
        ParityError: no recipe keeps within the loss, or a variant within its precision's limits.
        ModelError, LintError: the graph cannot be quantized.
    """
    say = progress or (lambda _: None)
    if not options.names or set(options.names) - set(_INT8):
        raise InputError(f"expected variants out of {', '.join(_INT8)}, got {', '.join(options.names) or 'none'}")
    if options.count < 1 or not options.max_drop >= 0:
        raise InputError(
            f"expected count of at least 1 and `max_drop` of at least 0, got {options.count}, {options.max_drop}"
        )
    golden = golden_of(bundle)
    if golden is None:
        raise InputError(f"{bundle.path} has no golden images to compare on: export the bundle again")
    encoder, fp32 = bundle.manifest.encoder, bundle.variant_path("fp32")
    if options.calibration:
        chosen = sample_images(options.calibration, options.count, seed=options.seed)
        images, calibrated = to_calibrate_on(chosen, encoder, golden=golden)
    else:
        images, calibrated = crops_to_calibrate_on(photographs(), encoder, origin="stand-ins", count=options.count)
    labelled = _labelled(bundle, options, say) if options.data else None
    hits = labelled.hits(fp32) if labelled else None
    search = None
    if options.recipe:
        recipe = read_recipe(options.recipe)
    else:
        loss = _accuracy_loss(labelled, hits) if labelled and hits is not None else _cosine_loss(golden, bundle)
        unit = "points of top-1" if labelled else "1 - cosine"
        search = Search(
            fp32, images, _worst(loss, options.names), unit=unit, budget_s=options.budget_s, progress=say
        ).run(options.max_drop)
        recipe = search.best.recipe
    with extended(bundle, names=options.names) as (folder, made):
        materials = Materials(fp32, encoder, golden, images, recipe, calibrated=calibrated)
        made += make_variants(options.names, folder, materials, progress=say)
        differences = {}
        if labelled and hits is not None:
            for variant in made:
                say(f"top-1 of {variant.name}")
                found = labelled.hits(folder / variant.file, precision="int8")
                differences[variant.name] = paired_difference(hits, found)
        report = {"recipe": recipe, "search": search, "top1_beside_fp32": differences, "machine": describe_machine()}
        write_json(folder / REPORT, report)
    return Quantized(Bundle.open(bundle.path), recipe, search, differences)


def _labelled(bundle: Bundle, options: QuantizeOptions, say: Callable[[str], None]) -> LabelledImages:
    assert options.data is not None
    files, folders = list_labelled(options.data)
    classes = class_prompts(folders, options.class_names)
    table = table_for_bundle(bundle, classes, load_templates(options.templates), name=options.data.name or "data")
    return LabelledImages(
        files, table, bundle.manifest.encoder, progress=lambda done, total: say(f"reading image {done} of {total}")
    )


def _worst(loss: Callable[[Path], float], names: Sequence[str]) -> Callable[[Path], float]:
    """The larger loss of the layouts asked for: their ranges are the same, their levels are not."""

    def worst(int8: Path) -> float:
        losses = [loss(int8)] if "int8" in names else []
        if "int8-cpu" in names:
            with workshop() as scratch:
                losses.append(loss(lay_out_for_cpu(int8, scratch / "int8-cpu.onnx")[0]))
        return max(losses)

    return worst


def _accuracy_loss(labelled: LabelledImages, reference: np.typing.NDArray[np.bool_]) -> Callable[[Path], float]:
    def loss(path: Path) -> float:
        return -paired_difference(reference, labelled.hits(path, precision="int8")).points

    return loss


def _cosine_loss(golden: GoldenImages, bundle: Bundle) -> Callable[[Path], float]:
    encoder = bundle.manifest.encoder

    def loss(path: Path) -> float:
        with load_engine("onnxruntime", path, encoder, precision="int8") as engine:
            report = golden.compare(engine, dynamic_batch=False)
        return 1 - (report.mean_cosine if report.mean_centred_cosine is None else report.mean_centred_cosine)

    return loss


class LabelledImages:
    """Images of known class, kept small in memory, on which graphs are compared by their zero-shot hits.

    Args:
        files: (path, index of its class) of each image.
        table: the classes.
        encoder: of the model.
        progress: called with (images read, images in all).

    Raises:
        SourceError: none can be decoded.
    """

    def __init__(
        self,
        files: Sequence[tuple[Path, int]],
        table: PromptTable,
        encoder: EncoderSpec,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._rows, self._encoder = table.embeddings, encoder
        self._preprocess = Preprocessor(encoder.preprocess)
        self._images: list[Image] = []
        truth: list[int] = []
        for done, (path, index) in enumerate(files):
            with suppress(SourceError):  # what cannot be decoded is left out, as in evaluate_folder
                # (H, W, 3) uint8: a quarter of its floats
                self._images.append(self._preprocess.resize(read_image(path)))
                truth.append(index)
            if progress:
                progress(done + 1, len(files))
        if not truth:
            raise SourceError(f"none of the {len(files)} images can be decoded: check one by hand")
        self._truth = np.array(truth)

    def hits(self, path: Path, *, precision: Precision = "fp32") -> Hits:
        """Which of the decoded images (N,) a graph labels right, on ONNX Runtime's CPU provider."""
        found = np.zeros(len(self._images), np.bool_)
        with load_engine("onnxruntime", path, self._encoder, precision=precision) as engine:
            for index, image in enumerate(self._images):
                embedding = unit_rows(engine.infer(self._preprocess.normalise(image)[None]))  # (1, D)
                scores = (embedding @ self._rows.T)[0]  # (C,)
                found[index] = (scores >= scores[self._truth[index]]).sum() == 1  # a tie is no hit
        return found
