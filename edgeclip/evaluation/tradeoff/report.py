"""A trade-off in; a table on the screen, a page and a picture out."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeclip.devices.machine.probe import summary
from edgeclip.evaluation.charts import COLOURS, new_figure, save_figure
from edgeclip.evaluation.html_page import render_page, static
from edgeclip.evaluation.tradeoff.decide import answers
from edgeclip.evaluation.tradeoff.records import Tradeoff, TradeoffPoint
from edgeclip.files import write_json, write_text

_MARKERS = ("o", "s", "D", "^")
_STAGES = {
    "engine": "a preprocessed image to its embedding",
    "end-to-end": "a frame of {} to its label",
    "pipelined": "resized frames to embeddings, several under way",
}


def print_tradeoff(tradeoff: Tradeoff, console: Console) -> None:
    """Print what to do and why, every point, and what could not run."""
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    first, *more = tradeoff.decision.why
    say(first, style="bold")
    for sentence in more:
        say(sentence)
    shown = Table("", "p50 ms", "±", "MB", *_sets(tradeoff), "", box=None, header_style="bold", padding=(0, 2, 0, 0))
    for point in ordered(tradeoff):
        width = point.latency_ms.high - point.latency_ms.mean
        memory = "–" if point.memory_mb is None else f"{point.memory_mb:.0f}"
        cells = [f"{point.latency_ms.mean:.2f}", f"{width:.2f}", memory]
        cells += [f"{each.top1:.3f}" for each in point.accuracies]
        chosen = point.label == tradeoff.decision.label
        shown.add_row(*map(Text, (point.label, *cells, standing(tradeoff, point))), style="bold" if chosen else None)
    console.print(shown, highlight=False)
    for label, why in tradeoff.refused:
        say(f"not measured: {label}: {why}", style="dim")
    say(measured_how(tradeoff), style="dim")


def ordered(tradeoff: Tradeoff) -> list[TradeoffPoint]:
    """The points, the fastest first."""
    return sorted(tradeoff.points, key=lambda point: point.latency_ms.mean)


def standing(tradeoff: Tradeoff, point: TradeoffPoint) -> str:
    """What became of a point: shipped, outside the limits, beaten, or on the front."""
    decision = tradeoff.decision
    if point.label == decision.label:
        return "ship this"
    if missed := decision.misses.get(point.label):
        return "; ".join(missed)
    return "beaten" if point.label in decision.beaten_by else "on the front"


def measured_how(tradeoff: Tradeoff) -> str:
    """What the times and accuracies are of, and the machine, in one line."""
    frame = "×".join(map(str, (tradeoff.frame or ())[::-1]))
    what = _STAGES[tradeoff.stage].format(frame)
    prompts = f"{len(tradeoff.templates)} prompts a class" if len(tradeoff.templates) > 1 else "one prompt a class"
    return f"times: {what}; top-1 zero-shot, {prompts}; on {summary(tradeoff.machine)}; {tradeoff.conditions}"


def save_tradeoff(tradeoff: Tradeoff, folder: Path) -> list[Path]:
    """Write ``tradeoff.json``, ``.html`` and ``.png`` into a folder; returns the paths.

    Raises:
        MissingExtraError: matplotlib or Jinja2 is not installed.
    """
    numbers, html, picture = (folder / f"tradeoff.{kind}" for kind in ("json", "html", "png"))
    plot_tradeoff(tradeoff, picture)
    write_text(html, tradeoff_page(tradeoff))
    write_json(numbers, tradeoff)
    return [html, picture, numbers]


def tradeoff_page(tradeoff: Tradeoff) -> str:
    """One self-contained page: the answer, a chart whose axes and limits can be changed, every figure.

    The page's script decides nothing: it looks up what ``answers`` found.

    Raises:
        MissingExtraError: Jinja2 is not installed.
    """
    data = {
        "points": tradeoff.points,
        "sets": _sets(tradeoff),
        "colours": COLOURS,
        "limits": tradeoff.limits,
        "beaten": list(tradeoff.decision.beaten_by),
        "answers": answers(tradeoff.points, tradeoff.pairs),
    }
    return render_page(
        "tradeoff.html.j2",
        script=static("tradeoff.js"),
        data=data,
        tradeoff=tradeoff,
        points=ordered(tradeoff),
        headings=[f"top-1, {name}" for name in _sets(tradeoff)],
        standing=standing,
        beaten=[(label, ", ".join(by)) for label, by in tradeoff.decision.beaten_by.items()],
        how=measured_how(tradeoff),
    )


def plot_tradeoff(tradeoff: Tradeoff, path: Path) -> None:
    """Draw accuracy over latency with both intervals; the suffix of ``path`` chooses the format.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = new_figure(8.4, 5.0)
    panel = figure.subplots()
    bundles = list(dict.fromkeys(point.bundle for point in tradeoff.points))
    engines = list(dict.fromkeys(point.engine for point in tradeoff.points))
    for point in tradeoff.points:
        colour = COLOURS[bundles.index(point.bundle) % len(COLOURS)]
        at, top1, (low, high) = point.latency_ms, point.top1, point.accuracies[0].ci95
        front = point.label not in tradeoff.decision.beaten_by
        alpha = 0.35 if point.label in tradeoff.decision.misses else 1.0
        panel.plot([at.low, at.high], [top1, top1], color=colour, lw=1, alpha=0.6 * alpha)
        panel.plot([at.mean, at.mean], [low, high], color=colour, lw=1, alpha=0.6 * alpha)
        marker = _MARKERS[engines.index(point.engine) % len(_MARKERS)]
        panel.plot(at.mean, top1, marker, color=colour, mfc=colour if front else "white", ms=7, alpha=alpha)
        if point.label == tradeoff.decision.label:
            panel.plot(at.mean, top1, "o", mfc="none", mec="black", ms=15)
        if front:
            panel.annotate(point.variant, (at.mean, top1), (6, 6), textcoords="offset points", fontsize=8)
    for name, colour in zip(bundles, COLOURS * len(bundles), strict=False):
        panel.plot([], [], "o", color=colour, label=name)
    for name, marker in zip(engines, _MARKERS * len(engines), strict=False):
        panel.plot([], [], marker, color="0.4", mfc="none", label=name)
    limits = tradeoff.limits
    if limits.max_latency_ms is not None:
        panel.axvline(limits.max_latency_ms, color="0.4", lw=0.8, ls="--")
    if limits.min_accuracy is not None:
        panel.axhline(limits.min_accuracy, color="0.4", lw=0.8, ls="--")
    panel.set_xlim(left=0)
    frame = f", {tradeoff.frame[1]}×{tradeoff.frame[0]} frames" if tradeoff.frame else ""
    panel.set_xlabel(f"median latency, ms ({tradeoff.stage}{frame}; bars: 95 %)")
    panel.set_ylabel(f"top-1, {_sets(tradeoff)[0]}")
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8, loc="best")
    panel.set_title(tradeoff.decision.why[0], fontsize=8.5, wrap=True)
    save_figure(figure, path, dpi=120)


def _sets(tradeoff: Tradeoff) -> list[str]:
    """Names of the labelled sets without their folders."""
    return [Path(name).name or name for name in tradeoff.data]
