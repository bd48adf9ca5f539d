"""An FP32 graph, a loss and a budget in; the recipe that quantizes most of the graph within the budget, out.

What is tried, in this order, and only as far as needed:

1. everything quantized, with each range estimator, then with each strength of SmoothQuant;
2. blocks left in FP32, the most sensitive first (``export/int8/search.py``), as few as will do: the number is
   found by bisection, each trial a real quantization.

A quantized graph in; for each of its blocks, how much of the error would go if that block stayed in FP32, out.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from edgeclip.errors import ParityError
from edgeclip.export.int8.qdq import Model, Node, array, bypass, constant, dequantized, pair_of, prune, weight_of
from edgeclip.export.int8.quantization import (
    ESTIMATORS,
    QuantizationRecipe,
    can_smooth,
    default_recipe,
    is_transformer,
    quantize,
    unpack_weights,
)
from edgeclip.export.onnx import save_graph
from edgeclip.extras import require
from edgeclip.files import workshop
from edgeclip.printable import counted
from edgeclip.prompts import FloatArray

_SAME_WEIGHT = 0.05  # rounding to 8 bits changes a weight by less than this, smoothing by more
# "encoder.visual.transformer.resblocks.3.attn.out_proj.bias" is of the block "…resblocks.3".
_BLOCK = re.compile(r"^(?P<block>.*\.\d+)\.")


class GraphLoss(msgspec.Struct, frozen=True, order=True, kw_only=True):
    """What a graph loses against FP32; of two the smaller is that with the lower bound.

    Attributes:
        bound: what is held below the limit: no more than it is lost, as far as the images can tell.
        estimate: what was measured; negative if the graph is better.
        n: images of known class, where hits were counted.
        lost, won: those that only FP32, or only the graph, labels right.
    """

    bound: float
    estimate: float
    n: int = 0
    lost: int = 0
    won: int = 0

    def text(self, unit: str) -> str:
        """For people, the bound first."""
        if not self.n:
            return f"{self.bound:.4g} {unit}"
        counts = f"{self.lost} lost, {self.won} won"
        measured = f"measured {self.estimate:+.2f} on {counted(self.n, 'image')}: {counts}"
        return f"at most {self.bound:.2f} {unit} (95 %; {measured})"


class Sensitivity(msgspec.Struct, frozen=True):
    """One block: its nodes, and the loss when all blocks but this one are quantized."""

    block: str
    nodes: tuple[str, ...]
    loss_without: GraphLoss


def blocks(fp32: Path) -> dict[str, tuple[str, ...]]:
    """Nodes of a graph by the block of the model that they belong to, in the order of computation.

    A block is what the model numbers (``resblocks.3``, ``layer2.0``), known from the names of weights; a node without
    such a weight belongs to the block of the node before it. What comes before, between and after the numbered blocks
    (patch embedding, final projection) is called after its own weight.
    """
    ir = require("onnx_ir", purpose="read ONNX graphs", extra="export")
    found: dict[str, list[str]] = {}
    current = "input"
    model = ir.load(str(fp32))
    unpack_weights(model)
    for node in model.graph:
        current = _block_of(node) or current
        found.setdefault(current, []).append(node.name)
    return {block: tuple(nodes) for block, nodes in found.items()}


def sensitivities(
    fp32: Path,
    int8: Path,
    loss: Callable[[Path], GraphLoss],
    *,
    progress: Callable[[int, int], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> list[Sensitivity]:
    """Take each block's rounding out of ``int8`` in turn, and measure the loss that is left; the most sensitive first.

    Nothing is calibrated anew. Weights into which SmoothQuant moved a spread stay rounded; those of all other
    nodes become what they are in ``fp32``.

    Args:
        loss: of a graph, measured against FP32; called once a block.
        progress: called with (blocks done, blocks in all).
        stop: asked before each block; where it says so the rest is left out.
    """
    ir = require("onnx_ir", purpose="rewrite ONNX graphs", extra="export")
    model = ir.load(str(fp32))
    unpack_weights(model)
    originals = {node.name: array(node.inputs[1]) for node in model.graph if len(node.inputs) > 1}
    quantized = {node.name for node in ir.load(str(int8)).graph if _is_quantized(node)}
    concerned = {block: nodes for block, nodes in blocks(fp32).items() if quantized & set(nodes)}
    measured = []
    with workshop() as scratch:
        for done, (block, nodes) in enumerate(concerned.items()):
            if stop():
                break
            model = ir.load(str(int8))
            for node in list(model.graph):
                if node.name in nodes:
                    _restore(model, node, originals.get(node.name))
            prune(model)
            path, *_ = save_graph(model, scratch / "without.onnx")
            measured.append(Sensitivity(block, nodes, loss(path)))
            if progress:
                progress(done + 1, len(concerned))
    return sorted(measured, key=lambda item: item.loss_without)


def _block_of(node: Node) -> str | None:
    names = [value.name for value in node.inputs if value is not None and value.is_initializer()]
    for name in names:
        if match := _BLOCK.match(name):
            return match["block"]
    scoped = [name for name in names if "." in name]
    return scoped[0].removesuffix(".float").removesuffix(".levels").rpartition(".")[0] if scoped else None


def _is_quantized(node: Node) -> bool:
    return node.op_type not in {"QuantizeLinear", "DequantizeLinear"} and any(
        pair_of(value) or weight_of(value) for value in node.inputs
    )


def _restore(model: Model, node: Node, original: np.typing.NDArray[np.float32] | None) -> None:
    if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
        return
    for index, value in enumerate(node.inputs):
        bypass(node, index)
        stored = weight_of(value)
        if stored is None:
            continue
        weight = dequantized(stored)
        if index == 1 and original is not None and original.shape == weight.shape:
            change = np.linalg.norm(weight - original) / max(float(np.linalg.norm(original)), 1e-30)
            weight = original if change < _SAME_WEIGHT else weight
        node.replace_input_with(index, constant(model, f"{stored.inputs[0].name}.float", weight))


ALPHAS: tuple[float | None, ...] = (0.5, 0.8, 0.95, None)


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One recipe, its loss and how long it took to make and measure."""

    recipe: QuantizationRecipe
    blocks_in_fp32: tuple[str, ...]
    loss: GraphLoss
    seconds: float


class SearchResult(msgspec.Struct, frozen=True, kw_only=True):
    """The recipe found and the way to it.

    Attributes:
        unit: of the losses, for people.
        max_loss: what was asked for; no bound is to be above it.
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
        loss: against FP32 of a graph that ``quantize`` wrote; a lower bound of it is better.
        unit: what the loss counts, e.g. "points of top-1".
        budget_s: no new trial is begun, nor another block looked at, after that long.
        progress: called with a short sentence before each trial.
    """

    def __init__(
        self,
        fp32: Path,
        images: FloatArray,
        loss: Callable[[Path], GraphLoss],
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
        """Search until the bound of a recipe's loss is at most ``max_loss``.

        Args:
            start: tried first; None for ``default_recipe``.

        Raises:
            ParityError: no recipe tried is good enough; says how near the best one came.
        """
        found: tuple[Sensitivity, ...] = ()
        best = self._whole(start or default_recipe(self._fp32), max_loss)
        if not best.loss.bound <= max_loss and not self._out_of_time():
            found = self._sensitivities(best.recipe)
            best = self._fewest_in_fp32(best, found, max_loss)
        if not best.loss.bound <= max_loss:
            why = (
                "in the time allowed; allow more"
                if self._stopped
                else "with any recipe; allow a larger loss (`max_drop`)"
            )
            nearest = best.loss.text(self._unit)
            raise ParityError(
                f"expected INT8 within {max_loss:g} {self._unit} of FP32, got {nearest} at best after "
                f"{len(self._trials)} trials {why}, give better calibration images, or stay with fp16 or fp32"
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
                if best.loss.bound <= max_loss or self._out_of_time():
                    return best
                recipe = msgspec.structs.replace(best.recipe, **{field: value})
                if all(recipe != trial.recipe for trial in self._trials):
                    best = min(best, self._try(recipe), key=lambda trial: trial.loss)
        return best

    def _sensitivities(self, recipe: QuantizationRecipe) -> tuple[Sensitivity, ...]:
        with workshop() as scratch:
            int8 = scratch / "int8.onnx"
            quantize(self._fp32, int8, self._images, recipe)

            def progress(done: int, total: int) -> None:
                self._say(f"sensitivity of block {done} of {total}")

            return tuple(sensitivities(self._fp32, int8, self._loss, progress=progress, stop=self._out_of_time))

    def _fewest_in_fp32(self, whole: Trial, found: tuple[Sensitivity, ...], max_loss: float) -> Trial:
        """Bisection over how many of the most sensitive blocks stay in FP32."""
        best, too_few, enough = whole, 0, len(found)
        while enough - too_few > 1 and not self._out_of_time():
            count = (too_few + enough) // 2
            names = tuple(name for item in found[:count] for name in item.nodes)
            recipe = msgspec.structs.replace(whole.recipe, keep_float=names)
            trial = self._try(recipe, tuple(item.block for item in found[:count]))
            if trial.loss.bound <= max_loss:
                best, enough = trial, count
            else:
                best, too_few = min(best, trial, key=lambda trial: trial.loss), count
        return best

    def _try(self, recipe: QuantizationRecipe, kept: tuple[str, ...] = ()) -> Trial:
        alpha = "no smoothing" if recipe.smooth_alpha is None else f"alpha {recipe.smooth_alpha:g}"
        trial = (
            f"trial {len(self._trials) + 1}: {recipe.range_estimator}, {alpha}, {counted(len(kept), 'block')} in fp32"
        )
        self._say(trial)
        start = time.perf_counter()
        with workshop() as scratch:
            int8 = scratch / "int8.onnx"
            quantize(self._fp32, int8, self._images, recipe, progress=lambda text: self._say(f"{trial}, {text}"))
            loss = self._loss(int8)
        seconds = round(time.perf_counter() - start, 1)
        self._trials.append(Trial(recipe=recipe, blocks_in_fp32=kept, loss=loss, seconds=seconds))
        return self._trials[-1]

    def _out_of_time(self) -> bool:
        self._stopped = self._stopped or time.perf_counter() > self._deadline
        return self._stopped
