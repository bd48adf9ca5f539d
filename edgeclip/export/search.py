"""An FP32 graph, a loss and a budget in; the recipe that quantizes most of the graph within the budget, out.

What is tried, in this order, and only as far as needed:

1. everything quantized, with each range estimator, then with each strength of SmoothQuant;
2. blocks left in FP32, the most sensitive first (:mod:`edgeclip.export.sensitivity`), as few as will do: the number is
   found by bisection, each trial a real quantization.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from edgeclip.errors import ParityError
from edgeclip.export.quantization import (
    ESTIMATORS,
    QuantizationRecipe,
    can_smooth,
    default_recipe,
    is_transformer,
    quantize,
)
from edgeclip.export.sensitivity import Sensitivity, sensitivities
from edgeclip.extras import require
from edgeclip.prompts import FloatArray

ALPHAS: tuple[float | None, ...] = (0.5, 0.8, 0.95, None)


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One recipe, its loss and how long it took to make and measure."""

    recipe: QuantizationRecipe
    blocks_in_fp32: tuple[str, ...]
    loss: float
    seconds: float


class SearchResult(msgspec.Struct, frozen=True, kw_only=True):
    """The recipe found and the way to it.

    Attributes:
        unit: of the losses, for people.
        max_loss: what was asked for.
        best: the trial chosen.
        trials: all, in order.
        blocks: each block's sensitivity, the most sensitive first; empty if blocks were not looked at.
        stopped: whether the time ran out before the search was over.
    """

    unit: str
    max_loss: float
    best: Trial
    trials: tuple[Trial, ...]
    blocks: tuple[Sensitivity, ...]
    stopped: bool


class Search:
    """One search; see the module's docstring.

    Args:
        fp32: the graph.
        images: preprocessed (N, 3, H, W) float32, to measure ranges on.
        loss: against FP32 of a graph that :func:`edgeclip.export.quantization.quantize` wrote; lower is better.
        unit: what the loss counts, e.g. "points of top-1".
        budget_s: no new trial is begun after that long.
        progress: called with a short sentence before each trial.
    """

    def __init__(
        self,
        fp32: Path,
        images: FloatArray,
        loss: Callable[[Path], float],
        *,
        unit: str,
        budget_s: float = 1800.0,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        self._fp32, self._images, self._loss, self._unit = fp32, images, loss, unit
        self._deadline = time.perf_counter() + budget_s
        self._say = progress or (lambda _: None)
        self._trials: list[Trial] = []
        self._stopped = False

    def run(self, max_loss: float, *, start: QuantizationRecipe | None = None) -> SearchResult:
        """Search until a recipe's loss is at most ``max_loss``.

        Args:
            start: tried first; None for :func:`edgeclip.export.quantization.default_recipe`.

        Raises:
            ParityError: no recipe tried is good enough; says how near the best one came.
        """
        found: tuple[Sensitivity, ...] = ()
        best = self._whole(start or default_recipe(self._fp32), max_loss)
        if best.loss > max_loss and not self._out_of_time():
            found = self._sensitivities(best.recipe)
            best = self._fewest_in_fp32(best, found, max_loss)
        if not best.loss <= max_loss:
            why = "in the time allowed; allow more" if self._stopped else "with any recipe; allow a larger loss"
            raise ParityError(
                f"expected INT8 within {max_loss:g} {self._unit} of FP32, got {best.loss:.3g} at best after "
                f"{len(self._trials)} trials {why}, give better calibration images, or stay with fp16"
            )
        return SearchResult(
            unit=self._unit,
            max_loss=max_loss,
            best=best,
            trials=tuple(self._trials),
            blocks=found,
            stopped=self._stopped,
        )

    def _whole(self, start: QuantizationRecipe, max_loss: float) -> Trial:
        """The best recipe that quantizes everything, or the first that is good enough."""
        ir = require("onnx_ir", purpose="read ONNX graphs", extra="export")
        smooths = can_smooth(self._fp32) and is_transformer(ir.load(str(self._fp32)))
        best = self._try(start)
        for field, values in (("range_estimator", ESTIMATORS), ("smooth_alpha", ALPHAS if smooths else ())):
            for value in values:
                if best.loss <= max_loss or self._out_of_time():
                    return best
                recipe = msgspec.structs.replace(best.recipe, **{field: value})
                if all(recipe != trial.recipe for trial in self._trials):
                    best = min(best, self._try(recipe), key=lambda trial: trial.loss)
        return best

    def _sensitivities(self, recipe: QuantizationRecipe) -> tuple[Sensitivity, ...]:
        with tempfile.TemporaryDirectory() as scratch:
            int8 = Path(scratch) / "int8.onnx"
            quantize(self._fp32, int8, self._images, recipe)

            def progress(done: int, total: int) -> None:
                self._say(f"sensitivity of block {done} of {total}")

            return tuple(sensitivities(self._fp32, int8, self._loss, progress=progress))

    def _fewest_in_fp32(self, whole: Trial, found: tuple[Sensitivity, ...], max_loss: float) -> Trial:
        """Bisection over how many of the most sensitive blocks stay in FP32."""
        best, too_few, enough = whole, 0, len(found)
        while enough - too_few > 1 and not self._out_of_time():
            count = (too_few + enough) // 2
            names = tuple(name for item in found[:count] for name in item.nodes)
            recipe = msgspec.structs.replace(whole.recipe, keep_float=names)
            trial = self._try(recipe, tuple(item.block for item in found[:count]))
            if trial.loss <= max_loss:
                best, enough = trial, count
            else:
                best, too_few = min(best, trial, key=lambda trial: trial.loss), count
        return best

    def _try(self, recipe: QuantizationRecipe, kept: tuple[str, ...] = ()) -> Trial:
        alpha = "no smoothing" if recipe.smooth_alpha is None else f"alpha {recipe.smooth_alpha:g}"
        trial = f"trial {len(self._trials) + 1}: {recipe.range_estimator}, {alpha}, {len(kept)} blocks in fp32"
        self._say(trial)
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as scratch:
            int8 = Path(scratch) / "int8.onnx"
            quantize(self._fp32, int8, self._images, recipe, progress=lambda text: self._say(f"{trial}, {text}"))
            loss = self._loss(int8)
        seconds = round(time.perf_counter() - start, 1)
        self._trials.append(Trial(recipe=recipe, blocks_in_fp32=kept, loss=loss, seconds=seconds))
        return self._trials[-1]

    def _out_of_time(self) -> bool:
        self._stopped = self._stopped or time.perf_counter() > self._deadline
        return self._stopped
