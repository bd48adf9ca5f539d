"""Figures in, charts out: PNG files for documents, and ``<svg>`` inside pages whose text has the page's colour."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeclip.evaluation.html_page import safe
from edgeclip.extras import require
from edgeclip.files import atomic_file

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito's, told apart by all
_TEXT = "#5b6764"  # stands for the colour of the page's text while matplotlib draws
_IN_A_PAGE = {
    "font.size": 9,
    "font.sans-serif": ["DejaVu Sans"],
    "svg.fonttype": "none",
    "svg.hashsalt": "edgeclip",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "grid.color", "xtick.color", "ytick.color"), _TEXT
    ),
}


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib figure of so many inches.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    return require("matplotlib.figure", purpose="draw a chart").Figure((width, height), layout="constrained")


def save_figure(figure: Any, path: Path, *, dpi: int = 110) -> None:
    """Write a figure; the suffix of ``path`` chooses the format. The file is whole or absent."""
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=dpi)


def page_style() -> Any:
    """To be drawn and written within: ``with page_style(): …``, for what goes through ``inline_svg``."""
    return require("matplotlib", purpose="draw a chart").rc_context(_IN_A_PAGE)


def inline_svg(figure: Any) -> Any:
    """The figure, drawn in ``page_style``, as ``<svg>`` that a template takes as it is; its text stays text."""
    file = io.StringIO()
    with page_style():
        figure.savefig(
            file, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Type", "Format"))
        )
    drawn = file.getvalue()
    drawn = re.sub(r' id="[\w.]+_\d+"', "", drawn[drawn.index("<svg") :])  # of groups: another chart has the same
    return safe(drawn.replace(_TEXT, "currentColor"))


def line_chart(series: Sequence[tuple[str, Sequence[float]]], *, level: tuple[str, float], ticks: Sequence[str]) -> Any:
    """Lines over the same steps, and a level to hold them against, as ``<svg>`` for a page.

    Args:
        series: (name, values), as many values as ticks.
        level: (name, value), drawn dashed.
    """
    steps = range(len(ticks))
    with page_style():
        figure = new_figure(7.2, 2.6)
        axes = figure.subplots()
        for (name, values), colour in zip(series, COLOURS * len(series), strict=False):
            axes.plot(steps, values, marker="o", ms=3, lw=1.5, color=colour, label=name)
        axes.axhline(level[1], color=_TEXT, ls="--", lw=1, label=level[0])
        axes.set_xticks(steps, ticks)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        return inline_svg(figure)
