"""Bundles and labelled images in; which variant to ship on this machine, with the evidence, out."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from edgeclip.bundle import Bundle, BundleLike, open_bundles
from edgeclip.errors import InputError
from edgeclip.evaluation.bench.bench import BenchOptions
from edgeclip.evaluation.data.class_sets import set_templates
from edgeclip.evaluation.data.dataset import open_labelled
from edgeclip.evaluation.data.shift_sets import names_of, open_shift_set
from edgeclip.evaluation.tradeoff.measure import measure_tradeoff, recommendation_of, reusable
from edgeclip.evaluation.tradeoff.records import Tradeoff, TradeoffLimits
from edgeclip.evaluation.tradeoff.report import save_tradeoff
from edgeclip.files import write_json
from edgeclip.runtime.proof.choose import add_recommendation


def tradeoff(
    bundles: BundleLike | Sequence[BundleLike],
    data: str | os.PathLike[str],
    *,
    output: str | os.PathLike[str] | None = None,
    max_latency_ms: float | None = None,
    min_accuracy: float | None = None,
    max_memory_mb: float | None = None,
    options: BenchOptions | None = None,
    shift: Sequence[str | os.PathLike[str]] = (),
    classes: str = "",
    names: str | os.PathLike[str] | None = None,
    templates: str = "",
    again: bool = False,
    apply: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
    notice: Callable[[str], None] | None = None,
) -> Tradeoff:
    """Measure latency, accuracy and memory of every variant here, and decide which one to ship.

    Args:
        bundles: of different models, opened or as paths.
        data: labelled images that decide, as for ``evaluate``.
        output: folder for the report (HTML, PNG, JSON) and for the times, which a later run uses again.
        max_latency_ms: at most so long, the median.
        min_accuracy: at least this top-1, a share; then the fastest is recommended.
        max_memory_mb: at most so much memory.
        options: of the benchmark: one stage, one batch size; by default a frame to its label, one at a time.
        shift: other labelled images, whose accuracy is told too.
        classes, names, templates: as for ``evaluate``.
        again: take new times even where the folder's would do.
        apply: write the recommendation into its bundle, so that ``edgeclip.open`` runs it on this machine.
        progress: called with (what is done, steps done, steps in all).
        notice: called with what was written, and why earlier times are not used.

    Raises:
        InputError: nothing that runs here, a bundle without a table for end-to-end times, or ``output`` is a file.
        BundleError: with ``apply``, a bundle that cannot be written to.
    """
    say = notice or (lambda _: None)
    limits = TradeoffLimits(max_latency_ms=max_latency_ms, min_accuracy=min_accuracy, max_memory_mb=max_memory_mb)
    opened, options = open_bundles(bundles), options or BenchOptions(stages=("end-to-end",))
    folder = None if output is None else Path(output)
    if folder and folder.exists() and not folder.is_dir():
        raise InputError(f"expected a folder for the report, got the file {folder}")
    for bundle in opened if apply else ():
        bundle.require_writable()  # now, not after minutes of measuring
    bare = [bundle.path.name for bundle in opened if not bundle.manifest.tables]
    if "end-to-end" in options.stages and bare:
        raise InputError(
            f"expected a prompt table in {', '.join(bare)} to label frames with, got none: edgeclip prompts build, or "
            "time the stage engine"
        )
    prompts, named = set_templates(templates, classes), None if names is None else Path(names)
    sets = [open_labelled(os.fspath(data), named, class_set=classes)]
    sets += [open_shift_set(Path(each), names_of(Path(each), named)) for each in shift]
    kept = folder / "bench.json" if folder else None
    report = measure_tradeoff(
        opened,
        sets,
        options,
        limits,
        templates=prompts,
        timed=reusable(kept, opened, options, notice=say) if kept and not again else None,
        progress=progress,
        timing_done=lambda result: write_json(kept, result) if kept else None,
    )
    if folder:
        for path in save_tradeoff(report, folder):
            say(str(path))
    if apply:
        _apply(report, opened, say)
    return report


def _apply(report: Tradeoff, bundles: Sequence[Bundle], say: Callable[[str], None]) -> None:
    """Write the recommendation, where there is one, into the bundle that it is of."""
    found = recommendation_of(report)
    if found is None or report.decision.label is None:
        return
    model = report.point(report.decision.label).model
    target = next(bundle for bundle in bundles if bundle.manifest.model.id == model)
    add_recommendation(target, found)
    say(f"written into {target.path}: edgeclip label runs it on this machine")
