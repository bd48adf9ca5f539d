"""An FP32 graph and labelled images in; INT8 variants whose loss of top-1 is bounded, or why there are none, out.

The images are split in two by what is in them. The recipe is searched on one half, and its loss is stated on the other,
which it was not chosen on. On both it is the upper bound of the loss that has to keep the limit, not what was measured.
"""

from __future__ import annotations

import copy
import logging
import math
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgeclip.bundle import Bundle
from edgeclip.class_names import TemplatesLike, as_templates
from edgeclip.devices.machine.probe import describe_machine
from edgeclip.documents import read_json
from edgeclip.errors import BundleError, EdgeclipError, InputError, ModelError, ParityError, SourceError
from edgeclip.export.int8.cpu_layout import lay_out_for_cpu
from edgeclip.export.int8.quantization import QuantizationRecipe
from edgeclip.export.int8.search import GraphLoss, Search, SearchResult
from edgeclip.export.variants import Materials, make_variants
from edgeclip.files import workshop, write_json
from edgeclip.hits import Z95, Hits, lost_and_won
from edgeclip.printable import counted
from edgeclip.prompts import FloatArray, PromptClass, PromptTable, TextEncoder, encode_table, make_classes, unit_rows
from edgeclip.runtime.engines.base import load_engine
from edgeclip.runtime.images import Image, read_image
from edgeclip.runtime.preprocess.preprocess import Preprocessor
from edgeclip.runtime.proof.distinct import Different, look_at
from edgeclip.spec import EncoderSpec, Precision, PreprocessSpec, Variant

INT8 = ("int8", "int8-cpu")
MAX_DROP = 0.3  # points of top-1, where nobody says otherwise
BUDGET_S = 1800.0
REPORT = "reports/quantization.json"
UNIT = "points of top-1"

_log = logging.getLogger("edgeclip")


def top1_loss(reference: Hits, candidate: Hits) -> GraphLoss:
    """What a candidate loses in points of top-1: its hits (N,) are of the same images, in the same order, as the
    reference's.

    Raises:
        InputError: no image, or numbers that differ.
    """
    n, lost, won = lost_and_won(reference, candidate)
    return GraphLoss(bound=100 * loss_bound(lost, won, n), estimate=100 * (lost - won) / n, n=n, lost=lost, won=won)


def loss_bound(lost: int, won: int, n: int) -> float:
    """The upper end of the 95 % score interval (Tango 1998) of the share of images lost less the share won.

    The interval of Agresti and Min (``evaluation/statistics/paired.py``) is too short for this: where few images change
    and those that do are lost, the loss lies below its end 86 times in 100 only. Below this end it lies 97 times.
    """
    low, high = (lost - won) / n, 1.0
    for _ in range(50):  # halves the interval down to rounding
        loss = (low + high) / 2
        # The share won that is likeliest if that were the loss; the share lost is then as much larger.
        b = (2 * n - lost + won) * loss - lost - won
        share_won = (math.sqrt(b * b + 8 * n * won * loss * (1 - loss)) - b) / (4 * n)
        variance = n * (2 * share_won + loss * (1 - loss))
        if (lost - won - n * loss) ** 2 < Z95**2 * variance:
            low = loss
        else:
            high = loss
    return high


def images_needed(max_drop: float) -> int:
    """How many labelled images can bound a loss at ``max_drop`` points: those that do if no label changes, twice.

    Raises:
        InputError: no number of images can.
    """
    if not max_drop > 0:
        raise InputError(
            f"expected `max_drop` above 0 {UNIT}, got {max_drop:g}: no number of images shows that nothing is lost"
        )
    return 2 * max(1, math.ceil(Z95**2 * (100 / max_drop - 1)))


def require_enough(count: int, max_drop: float | None) -> None:
    """Refuse before anything is searched for that cannot be found.

    Args:
        count: labelled images.
        max_drop: points of top-1; None for no limit.

    Raises:
        InputError: they are too few.
    """
    if max_drop is None or count >= (needed := images_needed(max_drop)):
        return
    half = count // 2
    within = f", or allow {math.ceil(1e4 * loss_bound(0, 0, half)) / 100:g}" if half else ""
    raise InputError(
        f"expected at least {needed:,} labelled images to bound a loss at {max_drop:g} {UNIT} (one half chooses the "
        f"recipe; if no label of the other n changes, at most 384/n points are lost), got {count:,}: give more{within}"
    )


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

    def __len__(self) -> int:
        return len(self._images)

    def hits(self, path: Path, *, precision: Precision = "fp32") -> Hits:
        """Which of the decoded images (N,) a graph labels right, on ONNX Runtime's CPU provider."""
        return self._hits(self._scores(path, precision))

    def reference_hits(self, fp32: Path) -> Hits:
        """Hits (N,) of the graph that others are compared with.

        Raises:
            InputError: no more than if its labels were dealt out anew: with such labels no loss can be seen.
        """
        scores = self._scores(fp32, "fp32")
        hits, n, classes = self._hits(scores), len(self), len(self._rows)
        dealt = np.bincount(self._truth, minlength=classes) @ np.bincount(scores.argmax(axis=1), minlength=classes) / n
        if hits.sum() <= dealt + Z95 * math.sqrt(dealt * (1 - dealt / n)):
            raise InputError(
                f"expected labels that the model knows, got {hits.sum():,} of {n:,} images in {len(set(self._truth))} "
                f"classes that fp32 labels right, where chance gives {dealt:,.0f}: give images of several classes, in "
                "folders that are called as what they show, or name the classes"
            )
        return hits

    def different(self, *, without: FloatArray) -> LabelledImages:
        """Those that differ, in an order that only their content decides; what is left out is told in a warning.

        Args:
            without: preprocessed images (M, 3, H, W) float32; they, and what is nearly the same, are left out.

        Raises:
            SourceError: none is left.
        """
        different = Different()
        for image in without:
            different.add(look_at(_as_resized(image, self._encoder.preprocess)))
        used = len(different)
        looks = [look_at(image) for image in self._images]
        order = sorted(range(len(looks)), key=lambda index: looks[index].digest)
        found = [(index, *different.add(looks[index])) for index in order]
        labels = defaultdict[int, set[int]](set)
        for index, _, number in found:
            labels[number].add(int(self._truth[index]))
        why = Counter[str]()
        kept = []
        for index, verdict, number in found:
            if verdict == "flat":
                why["of one colour"] += 1
            elif number < used:
                why["among the calibration images, or nearly"] += 1
            elif len(labels[number]) > 1:
                why["the same, or nearly, in folders of several classes"] += 1
            elif verdict != "new":
                why["the same as another, or nearly"] += 1
            else:
                kept.append(index)
        if why:
            told = ", ".join(f"{count:,} {what}" for what, count in why.items())
            _log.warning("of %d labelled images these are left out: %s", len(self), told)
        if not kept:
            raise SourceError(f"expected labelled images that can be used, got none of {len(self)}: give others")
        return self._part(kept)

    def halves(self) -> tuple[LabelledImages, LabelledImages]:
        """Every second image from the first, and from the second."""
        return self._part(range(0, len(self), 2)), self._part(range(1, len(self), 2))

    def _part(self, indices: Sequence[int]) -> LabelledImages:
        part = copy.copy(self)
        part._images = [self._images[index] for index in indices]
        part._truth = self._truth[list(indices)]
        return part

    def _scores(self, path: Path, precision: Precision) -> FloatArray:
        with load_engine("onnxruntime", path, self._encoder, precision=precision) as engine:
            rows = [engine.infer(self._preprocess.normalise(image)[None]) for image in self._images]  # (1, D) each
        scores: FloatArray = unit_rows(np.concatenate(rows)) @ self._rows.T  # (N, C)
        return scores

    def _hits(self, scores: FloatArray) -> Hits:
        of_truth = scores[np.arange(len(scores)), self._truth]
        hits: Hits = (scores >= of_truth[:, None]).sum(axis=1) == 1  # a tie is no hit
        return hits


def _as_resized(image: FloatArray, spec: PreprocessSpec) -> Image:
    """What ``Preprocessor.normalise`` made (3, H, W) float32 of, again."""
    pixels: Image = np.rint((image.transpose(1, 2, 0) * spec.std + spec.mean) * 255).astype(np.uint8)
    return pixels


class QuantizationReport(msgspec.Struct, frozen=True, kw_only=True):
    """How a bundle's INT8 variants were found, or why there are none.

    Attributes:
        max_drop: the limit of the loss in ``unit``; None if none was set.
        recipe: how they were quantized.
        search: how the recipe was found; None where it was given.
        losses: of each variant, on labelled images that the recipe was not chosen on.
        fp32_top1: how many of these FP32 labels right, in percent.
        left_out: why there is no INT8; empty if there is.
    """

    unit: str
    max_drop: float | None
    recipe: QuantizationRecipe | None = None
    search: SearchResult | None = None
    losses: dict[str, GraphLoss] = {}
    fp32_top1: float | None = None
    left_out: str = ""
    machine: Any = None

    def lines(self) -> list[str]:
        """What happened, for people."""
        said = []
        if self.search:
            for number, trial in enumerate(self.search.trials, 1):
                alpha = "none" if trial.recipe.smooth_alpha is None else f"{trial.recipe.smooth_alpha:g}"
                kept = f", fp32: {', '.join(trial.blocks_in_fp32)}" if trial.blocks_in_fp32 else ""
                said.append(
                    f"trial {number}: {trial.recipe.range_estimator}, smoothing {alpha}{kept}: "
                    f"loss {trial.loss.text(self.unit)} ({trial.seconds:.0f} s)"
                )
            ended = "; the time ran out before the search was over" if self.search.stopped else ""
            said.append(
                f"chosen: loss {self.search.best.loss.text(self.unit)}, {self.search.max_loss:g} allowed{ended}"
            )
        said += [
            f"{name}: loss {loss.text(self.unit)}, none of which chose the recipe" for name, loss in self.losses.items()
        ]
        if self.fp32_top1 is not None:
            said.append(f"fp32: top-1 {self.fp32_top1:.1f} % on the same images")
        return [*said, f"int8 is left out: {self.left_out}"] if self.left_out else said


def quantization_report(bundle: Bundle) -> QuantizationReport | None:
    """What ``REPORT`` of a bundle says; None where it has none.

    Raises:
        IntegrityError: it is altered.
        BundleError: it is not what the export writes.
    """
    if REPORT not in bundle.manifest.files:
        return None
    return read_json(bundle.file(REPORT), QuantizationReport, error=BundleError)


@dataclass(frozen=True)
class Halves:
    """Labelled images that a recipe is chosen on and others that its loss is stated on, with FP32's hits on both."""

    chosen_on: LabelledImages
    stated_on: LabelledImages
    known: Hits
    expected: Hits


def split_in_halves(
    labelled: LabelledImages, fp32: Path, *, calibrated_on: FloatArray, max_drop: float | None
) -> Halves:
    """Split labelled images by what is in them; each counts once, and none that ranges are measured on.

    Args:
        calibrated_on: preprocessed (M, 3, H, W) float32.
        max_drop: what they have to be enough for, in points of top-1; None for nothing.

    Raises:
        InputError: too few different images, or labels that FP32 does not know.
    """
    labelled = labelled.different(without=calibrated_on)
    require_enough(len(labelled), max_drop)
    hits = labelled.reference_hits(fp32)
    return Halves(*labelled.halves(), hits[::2], hits[1::2])


def make_bounded(
    names: Sequence[str],
    folder: Path,
    materials: Materials,
    halves: Halves,
    *,
    max_drop: float | None,
    recipe: QuantizationRecipe | None = None,
    budget_s: float = BUDGET_S,
    progress: Callable[[str], None] | None = None,
) -> tuple[list[Variant], QuantizationReport]:
    """Write INT8 variants that lose at most so much top-1 into a bundle's folder; where it fails nothing is added.

    Args:
        names: out of ``INT8``; each of them has to keep the limit.
        materials: the recipe in them is not used.
        max_drop: what the bound of the loss may be on either half, in percentage points; None only with a recipe, whose
            loss is then told and no more.
        recipe: None to search for one.
        budget_s: no new trial is begun after that many seconds.
        progress: called with a short sentence before each step.

    Raises:
        InputError: neither a limit nor a recipe.
        ParityError: no recipe keeps the limit on the images that it is searched on, the one found does not on the
            others, or a variant differs from FP32 by more than its precision may.
    """
    say = progress or (lambda _: None)
    search = None
    if recipe is None:
        if max_drop is None:
            raise InputError("expected `max_drop` or a recipe, got neither")

        def loss(int8: Path) -> GraphLoss:
            return top1_loss(halves.known, halves.chosen_on.hits(int8, precision="int8"))

        worst = worst_layout(loss, names)
        searching = Search(materials.fp32, materials.images, worst, unit=UNIT, budget_s=budget_s, progress=say)
        search = searching.run(max_drop)
        recipe = search.best.recipe
    with workshop(folder) as draft:
        (draft / "image_encoder").mkdir()
        made = make_variants(names, draft, replace(materials, recipe=recipe), progress=say)
        losses: dict[str, GraphLoss] = {}
        for variant in made:
            say(f"top-1 of {variant.name} on the images that its recipe was not chosen on")
            hits = halves.stated_on.hits(draft / variant.file, precision="int8")
            losses[variant.name] = top1_loss(halves.expected, hits)
        limit = math.inf if max_drop is None else max_drop
        if beyond := [f"{name} {loss.text(UNIT)}" for name, loss in losses.items() if not loss.bound <= limit]:
            raise ParityError(
                f"expected INT8 within {limit:g} {UNIT} of FP32 on images that its recipe was not chosen on, got "
                f"{', '.join(beyond)}: give more images, allow a larger loss (`max_drop`), or stay with fp16 or fp32"
            )
        for file in [path for path in draft.rglob("*") if path.is_file()]:
            target = folder / file.relative_to(draft)
            target.parent.mkdir(parents=True, exist_ok=True)
            file.replace(target)
    return made, QuantizationReport(
        unit=UNIT,
        max_drop=max_drop,
        recipe=recipe,
        search=search,
        losses=losses,
        fp32_top1=100 * float(halves.expected.mean()),
        machine=describe_machine(),
    )


@dataclass(frozen=True)
class AccuracyOptions:
    """How INT8 is held to labelled images while a bundle is made.

    Attributes:
        files: (file, index of its class) of each image.
        classes: what they show.
        templates: prompts of their names.
        max_drop: what the bound of the loss may be, in percentage points of top-1.
        required: whether images that cannot bound it are an error; otherwise that is told, and INT8 is proved on the
            golden images alone.
        left_out: whether INT8 is left out where no recipe keeps the limit; otherwise that is an error.
    """

    files: Sequence[tuple[Path, int]]
    classes: Sequence[PromptClass]
    templates: Sequence[str]
    max_drop: float = MAX_DROP
    required: bool = True
    left_out: bool = False


def accuracy_options(
    names: Sequence[str],
    files: Sequence[tuple[Path, str]],
    *,
    max_drop: float | None,
    class_names: Mapping[str, str | Sequence[str]] | None,
    templates: TemplatesLike,
    by_name: bool,
) -> AccuracyOptions | None:
    """How the variants asked for are to be held to labelled images; None where they are not.

    Args:
        names: of variants.
        files: (file, name of its class folder).
        max_drop: None for ``MAX_DROP`` where the images are enough for it.
        class_names: what each folder's class is called; None for the folder's name.
        by_name: whether somebody asked for these variants, rather than for a device.

    Raises:
        InputError: nothing is labelled or nothing is INT8, where somebody gave a limit; too few images for it; or a
            folder without a name.
    """
    asked, has_int8 = max_drop is not None or class_names is not None, bool(set(INT8) & set(names))
    if asked and not files:
        raise InputError("expected `images` with one folder a class, for `max_drop` or `class_names`, got no labels")
    if asked and not has_int8:
        if by_name:
            raise InputError(
                f"expected {' or '.join(INT8)} in `variants`, for `max_drop` or `class_names`, got neither"
            )
        _log.warning("`max_drop` and `class_names` are of no use: no INT8 is made for that device")
    if not files or not has_int8:
        return None
    limit = MAX_DROP if max_drop is None else max_drop
    folders = sorted({folder for _, folder in files})
    named = {unicodedata.normalize("NFC", folder): given for folder, given in (class_names or {}).items()}
    if class_names is None:
        named = {folder: folder.replace("_", " ") for folder in folders}
    if missing := [folder for folder in folders if folder not in named]:
        raise InputError(f"expected `class_names` of every folder, got none of {', '.join(missing[:5])}: add them")
    try:
        require_enough(len(files), limit)
    except InputError as error:
        if max_drop is not None:
            raise
        _tell_unbounded(error)
        return None
    row = {folder: index for index, folder in enumerate(named)}
    return AccuracyOptions(
        [(path, row[folder]) for path, folder in files],
        make_classes(named),
        as_templates(templates),
        limit,
        required=max_drop is not None,
        left_out=not by_name,
    )


def make_accurate(
    names: Sequence[str],
    folder: Path,
    materials: Materials,
    text: TextEncoder,
    options: AccuracyOptions,
    *,
    recipe: QuantizationRecipe | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[Variant]:
    """Write INT8 variants into a bundle's folder, with ``REPORT``, whose loss of top-1 is bounded.

    Args:
        materials: the recipe in them is used only where the images cannot bound a loss.
        recipe: None to search for one.

    Returns:
        None of them where no recipe keeps the limit and ``options`` has them left out.

    Raises:
        InputError, ModelError: the images cannot bound a loss, and ``options`` requires it.
        ParityError: no recipe keeps the limit, and ``options`` does not have INT8 left out.
    """
    say = progress or (lambda _: None)
    try:
        table = encode_table(text, options.classes, options.templates, name="evaluation", model_id="")
        labelled = LabelledImages(
            options.files,
            table,
            materials.encoder,
            progress=lambda done, total: say(f"reading image {done} of {total}"),
        )
        say(f"top-1 of fp32 on {counted(len(labelled), 'image')}")
        halves = split_in_halves(labelled, materials.fp32, calibrated_on=materials.images, max_drop=options.max_drop)
    except (InputError, ModelError) as error:
        if options.required:
            raise
        _tell_unbounded(error)
        return make_variants(names, folder, materials, progress=progress)
    try:
        made, report = make_bounded(
            names, folder, materials, halves, max_drop=options.max_drop, recipe=recipe, progress=progress
        )
    except ParityError as error:
        if not options.left_out:
            raise
        _log.warning("INT8 is left out: %s", error)
        made, report = [], QuantizationReport(unit=UNIT, max_drop=options.max_drop, left_out=str(error))
    write_json(folder / REPORT, report)
    return made


def _tell_unbounded(error: EdgeclipError) -> None:
    _log.warning("INT8 is proved on the golden images alone, and what it costs in top-1 is not bounded: %s", error)


def worst_layout(loss: Callable[[Path], GraphLoss], names: Sequence[str]) -> Callable[[Path], GraphLoss]:
    """The larger loss of the layouts asked for: their ranges are the same, their levels are not."""

    def worst(int8: Path) -> GraphLoss:
        losses = [loss(int8)] if "int8" in names else []
        if "int8-cpu" in names:
            with workshop() as scratch:
                losses.append(loss(lay_out_for_cpu(int8, scratch / "int8-cpu.onnx")[0]))
        return max(losses)

    return worst
