"""A trade-off in; a table on the screen, a page and a picture out."""

from __future__ import annotations

from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeclip.devices.machine.probe import summary
from edgeclip.evaluation.html_page import Markup, element, page, table
from edgeclip.evaluation.tradeoff.records import Point, Tradeoff
from edgeclip.extras import require
from edgeclip.files import atomic_file, write_json, write_text

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito's, told apart by all
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
    sets = [Path(name).name or name for name in tradeoff.data]
    shown = Table("", "p50 ms", "±", "MB", *sets, "", box=None, header_style="bold", padding=(0, 2, 0, 0))
    for point in ordered(tradeoff):
        width = point.latency_ms.high - point.latency_ms.mean
        cells = [f"{point.latency_ms.mean:.2f}", f"{width:.2f}", _memory(point)]
        cells += [f"{each.top1:.3f}" for each in point.accuracies]
        chosen = point.label == tradeoff.decision.label
        shown.add_row(*map(Text, (point.label, *cells, standing(tradeoff, point))), style="bold" if chosen else None)
    console.print(shown, highlight=False)
    for label, why in tradeoff.refused:
        say(f"not measured: {label}: {why}", style="dim")
    say(measured_how(tradeoff), style="dim")


def ordered(tradeoff: Tradeoff) -> list[Point]:
    """The points, the fastest first."""
    return sorted(tradeoff.points, key=lambda point: point.latency_ms.mean)


def standing(tradeoff: Tradeoff, point: Point) -> str:
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
        MissingExtraError: matplotlib is not installed.
    """
    numbers, html, picture = (folder / f"tradeoff.{kind}" for kind in ("json", "html", "png"))
    plot_tradeoff(tradeoff, picture)
    write_text(html, tradeoff_page(tradeoff))
    write_json(numbers, tradeoff)
    return [html, picture, numbers]


def tradeoff_page(tradeoff: Tradeoff) -> Markup:
    """One self-contained page: the answer, a chart whose axes and limits can be changed, every figure."""
    script = (resources.files("edgeclip") / "evaluation" / "static" / "tradeoff.js").read_text(encoding="utf-8")
    first, *more = tradeoff.decision.why
    answer = element("section", element("h1", first), *(element("p", sentence, class_="quiet") for sentence in more))
    sections = [answer, _chart(), _figures(tradeoff), _dominated(tradeoff)]
    if tradeoff.refused:
        rows = [[label, why] for label, why in tradeoff.refused]
        sections.append(element("section", element("h2", "Not measured"), table(["", "why"], rows)))
    sections.append(element("footer", measured_how(tradeoff)))
    return page("Latency and accuracy", *sections, script=script, data=tradeoff)


def _chart() -> Markup:
    def control(title: str, kind: str, key: str, **more: object) -> Markup:
        return element("label", title, element(kind, id=key, **more))

    controls = element(
        "div",
        control("across", "select", "axis"),
        control("upwards: top-1 of", "select", "set"),
        control("at most ms", "input", "max-latency", type="number", min="0", step="any"),
        control("at least top-1", "input", "min-accuracy", type="number", min="0", max="1", step="0.01"),
        control("at most MB", "input", "max-memory", type="number", min="0", step="any"),
        class_="controls",
    )
    chart = Markup(
        '<svg id="chart" viewBox="0 0 920 430" role="img" aria-label="every point; see the table below"></svg>'
    )
    said = "Filled: on the front. Bars: 95 %. Ringed: what to run within the limits above; pale: outside them."
    key, empty = element("div", id="key", class_="key"), element("p", id="answer")
    return element(
        "section", element("h2", "The front"), controls, empty, chart, key, element("p", said, class_="quiet")
    )


def _figures(tradeoff: Tradeoff) -> Markup:
    heads = ["", "", "p50 ms", "95 %", "p99", "images/s", "MB", "J an image"]
    heads += [f"top-1, {Path(name).name or name}" for name in tradeoff.data]
    rows: list[list[object]] = []
    for point in ordered(tradeoff):
        low, high = point.latency_ms.low, point.latency_ms.high
        energy = "–" if point.energy_j is None else f"{point.energy_j[0]:.3f} ± {point.energy_j[1]:.3f}"
        cells = [f"{point.latency_ms.mean:.2f}", f"{low:.2f}–{high:.2f}", f"{point.p99_ms:.2f}"]
        cells += [f"{point.images_per_s:.0f}", _memory(point), energy]
        for each in point.accuracies:
            span = f" {each.ci95[0]:.3f}–{each.ci95[1]:.3f}"
            cells.append(element("span", f"{each.top1:.3f}", element("small", span)))
        rows.append([point.label, element("small", standing(tradeoff, point)), *cells])
    keys = [point.label for point in ordered(tradeoff)]
    figures = table(heads, rows, numbers=range(2, len(heads)), keys=keys)
    return element("section", element("h2", "Every figure"), figures)


def _dominated(tradeoff: Tradeoff) -> Markup:
    said = (
        "A point is beaten where another is worse in nothing and better in something, each beyond noise: latency over "
        "rounds that were run in turns, accuracy on the same images, memory beyond 5 %, energy beyond its error."
    )
    rows = [[label, ", ".join(by)] for label, by in tradeoff.decision.beaten_by.items()]
    content = table(["beaten", "by"], rows) if rows else element("p", "No point is beaten.", class_="none")
    return element("section", element("h2", "Dominated"), element("p", said, class_="quiet"), content)


def plot_tradeoff(tradeoff: Tradeoff, path: Path) -> None:
    """Draw accuracy over latency with both intervals; the suffix of ``path`` chooses the format.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figures: Any = require("matplotlib.figure", purpose="draw a plot", extra="train")
    figure = figures.Figure(figsize=(8.4, 5.0), layout="constrained")
    panel = figure.subplots()
    bundles = list(dict.fromkeys(point.bundle for point in tradeoff.points))
    engines = list(dict.fromkeys(point.engine for point in tradeoff.points))
    for point in tradeoff.points:
        colour = _COLOURS[bundles.index(point.bundle) % len(_COLOURS)]
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
    for name, colour in zip(bundles, _COLOURS * len(bundles), strict=False):
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
    panel.set_ylabel(f"top-1, {Path(tradeoff.data[0]).name or tradeoff.data[0]}")
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8, loc="best")
    panel.set_title(tradeoff.decision.why[0], fontsize=8.5, wrap=True)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=120)


def _memory(point: Point) -> str:
    return "–" if point.memory_mb is None else f"{point.memory_mb:.0f}"
