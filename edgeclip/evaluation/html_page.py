"""A template's name and its values in, one HTML page that needs nothing else out; text that comes in is escaped.

Templates are in ``templates/``: each extends ``base.html.j2``, fills its blocks ``title`` and ``content``, and takes
tables, figures and intervals from ``macros.html.j2``. Here is only what a template cannot do; charts are in
``charts.py``.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

import msgspec

from edgeclip.extras import require
from edgeclip.runtime.images import Image, opencv


def render_page(template: str, *, script: str = "", data: object = None, **context: object) -> str:
    """A whole page, self-contained: its policy forbids the browser to fetch anything.

    Args:
        template: file name in ``edgeclip/evaluation/templates``.
        script: the only JavaScript that the browser may run: its sha256 is in the policy.
        data: what the script reads as JSON from the element with the id ``data``.
        context: the template's variables; a struct's fields are read as ``value.field``.

    Raises:
        MissingExtraError: Jinja2 is not installed.
    """
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy += f"; script-src 'sha256-{digest}'"
    given = msgspec.json.encode(data).decode().replace("<", "\\u003c")  # nothing in it may end the element
    whole = {"policy": policy, "style": safe(static("page.css")), "script": safe(script), "data": safe(given)}
    page: str = _environment().get_template(template).render(**whole, **context)
    return page


def static(name: str) -> str:
    """Text of a file in ``edgeclip/evaluation/static``."""
    return (resources.files("edgeclip") / "evaluation" / "static" / name).read_text(encoding="utf-8")


@cache
def _environment() -> Any:
    jinja2 = require("jinja2", purpose="write a page", extra="eval")
    return jinja2.Environment(
        loader=jinja2.PackageLoader("edgeclip.evaluation"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def safe(text: str) -> Any:
    """HTML that goes into a page as it is."""
    return require("markupsafe", purpose="write a page", extra="eval").Markup(text)


def picture_uri(image: Image, *, side: int = 96) -> str:
    """The middle square of an image, (H, W, 3) uint8 RGB, as data URI of a JPEG with ``side`` pixels."""
    cv2 = opencv()
    height, width = image.shape[:2]
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    square = image[top : top + short, left : left + short]
    small = cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA if short > side else cv2.INTER_CUBIC)
    _, data = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 72])
    return f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}"


_WIDTH, _HEIGHT = 190, 20  # of an interval in a table, in pixels


class Markup(str):
    """HTML that is safe to put into a page as it is."""

    __slots__ = ()


class Span(NamedTuple):
    """Lowest and highest value that a column of intervals shows."""

    low: float
    high: float

    def place(self, value: float, width: float) -> float:
        """Where a value lies on ``width`` pixels; values outside lie on the edge."""
        inside = min(max(value, self.low), self.high)
        return round(4 + (width - 8) * (inside - self.low) / (self.high - self.low), 1)


def escape(value: object) -> Markup:
    """Text as HTML; markup stays what it is."""
    return value if isinstance(value, Markup) else Markup(html.escape(str(value)))


def element(tag: str, *content: object, **attributes: object) -> Markup:
    """``<tag …>content</tag>``; of attribute names a trailing underscore is dropped and others become hyphens."""
    given = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"' for name, value in attributes.items()
    )
    return Markup(f"<{tag}{given}>{''.join(map(escape, content))}</{tag}>")


def join(parts: Sequence[Markup]) -> Markup:
    """Markup one after the other."""
    return Markup("".join(parts))


def page(title: str, *sections: Markup, script: str = "", data: object = None) -> Markup:
    """A document with our style sheet inside; its policy forbids the browser to fetch anything.

    Args:
        script: the only one that the browser may run: its sha256 is in the policy.
        data: what the script reads as JSON from the element with the id ``data``.
    """
    style = (resources.files("edgeclip") / "evaluation" / "static" / "page.css").read_text(encoding="utf-8")
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    scripts = ""
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy += f"; script-src 'sha256-{digest}'"
        known = msgspec.json.encode(data).decode().replace("<", "\\u003c")  # nothing in it may end the element
        scripts = f'<script id="data" type="application/json">{known}</script><script>{script}</script>'
    return Markup(
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>'
        f"<style>\n{style}</style></head><body><main>{join(sections)}</main>{scripts}</body></html>\n"
    )


def table(
    heads: Sequence[object],
    rows: Sequence[Sequence[object]],
    *,
    numbers: Sequence[int] = (),
    keys: Sequence[str] = (),
) -> Markup:
    """A table; columns in ``numbers`` are set flush right, those that hold a plot get its width.

    Args:
        keys: what a script finds each row by, as its ``data-row``; none without.
    """

    def cell(tag: str, column: int, value: object) -> Markup:
        plot = isinstance(value, Markup) and value.startswith("<svg")
        kind = "plot" if plot else "number" if column in numbers else ""
        return element(tag, value, class_=kind) if kind else element(tag, value)

    head = element("tr", *(cell("th", column, value) for column, value in enumerate(heads)))
    named = [{"data_row": key} for key in keys] or [{}] * len(rows)
    body = (
        element("tr", *(cell("td", column, value) for column, value in enumerate(row)), **attributes)
        for row, attributes in zip(rows, named, strict=True)
    )
    return element("div", element("table", element("thead", head), element("tbody", *body)), class_="wide")


def span_of(values: Sequence[float]) -> Span:
    """A span that holds all values and 0."""
    low, high = min([*values, 0.0]), max([*values, 0.0])
    room = 0.04 * (high - low) or 1.0
    return Span(low - room, high + room)


def interval(point: float, ci95: tuple[float, float], span: Span, *, unit: str = "", above: str = "better") -> Markup:
    """A point and its interval on a line with 0 marked: coloured where the interval leaves it out."""
    kind = above if ci95[0] > 0 else "worse" if ci95[1] < 0 else "neutral"
    low, at, high = (span.place(value, _WIDTH) for value in (ci95[0], point, ci95[1]))
    zero, middle = span.place(0, _WIDTH), _HEIGHT // 2
    said = f"{point:+.2f}{unit} (95 % {ci95[0]:+.2f} to {ci95[1]:+.2f})"
    return Markup(
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" role="img"><title>{said}</title>'
        f'<line class="zero" x1="{zero}" x2="{zero}" y1="0" y2="{_HEIGHT}"/>'
        f'<line class="{kind}" x1="{low}" x2="{high}" y1="{middle}" y2="{middle}" stroke-width="2"/>'
        f'<circle class="{kind}" cx="{at}" cy="{middle}" r="3.5"/></svg>'
    )


def scale(span: Span, *, unit: str = "") -> Markup:
    """The ends of a column of intervals, for its head."""
    zero = span.place(0, _WIDTH)
    ends = [(4, "start", span.low), (_WIDTH - 4, "end", span.high)]
    texts = "".join(f'<text x="{x}" y="11" text-anchor="{side}">{value:+.1f}{unit}</text>' for x, side, value in ends)
    middle = f'<text x="{zero}" y="11" text-anchor="middle">0</text>' if 45 < zero < _WIDTH - 45 else ""
    return Markup(f'<svg viewBox="0 0 {_WIDTH} 14" width="{_WIDTH}" height="14">{texts}{middle}</svg>')


def lines(series: Sequence[tuple[str, Sequence[float]]], *, level: tuple[str, float], ticks: Sequence[str]) -> Markup:
    """One or two lines over the same steps, named at their ends, and a level to hold them against.

    Args:
        series: (name, values), as many values as ticks.
        level: (name, value), drawn dashed.
    """
    width, height, left, right, top, bottom = 640, 220, 44, 150, 12, 26
    values = [value for _, own in series for value in own] + [level[1]]
    low, high = min(values), max(values)
    room = 0.15 * (high - low) or 0.01

    def y(value: float) -> float:
        return round(top + (height - top - bottom) * (high + room - value) / (high - low + 2 * room), 1)

    def x(step: int) -> float:
        return round(left + (width - left - right) * step / max(len(ticks) - 1, 1), 1)

    parts = [
        f'<text x="{x(step)}" y="{height - 8}" text-anchor="middle">{escape(t)}</text>' for step, t in enumerate(ticks)
    ]
    for mark in (low, (low + high) / 2, high):
        parts.append(f'<line class="axis" x1="{left}" x2="{width - right}" y1="{y(mark)}" y2="{y(mark)}"/>')
        parts.append(f'<text x="{left - 6}" y="{y(mark) + 4}" text-anchor="end">{mark:.3f}</text>')
    parts.append(f'<line class="zero" x1="{left}" x2="{width - right}" y1="{y(level[1])}" y2="{y(level[1])}"/>')
    names = [(y(own[-1]), name, kind) for (name, own), kind in zip(series, ("first", "second"), strict=False)]
    placed = -20.0
    for at, name, kind in sorted([*names, (y(level[1]), level[0], "quiet")]):
        placed = max(at, placed + 14)  # names do not lie upon each other
        parts.append(f'<text class="{kind}" x="{width - right + 8}" y="{placed + 4}">{escape(name)}</text>')
    for (_, own), kind in zip(series, ("first", "second"), strict=False):
        points = " ".join(f"{x(step)},{y(value)}" for step, value in enumerate(own))
        dots = "".join(f'<circle class="{kind}" cx="{x(s)}" cy="{y(v)}" r="2.5"/>' for s, v in enumerate(own))
        parts.append(f'<polyline class="{kind}" points="{points}"/>{dots}')
    return Markup(f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}">{"".join(parts)}</svg>')


def picture(image: Image, caption: str, *, side: int = 96) -> Markup:
    """A small JPEG inside the page, cut to a square; (H, W, 3) uint8 RGB in."""
    cv2 = opencv()
    height, width = image.shape[:2]
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    square = image[top : top + short, left : left + short]
    small = cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA if short > side else cv2.INTER_CUBIC)
    _, data = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 72])
    address = f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}"
    alt = html.escape(caption)
    return element("figure", Markup(f'<img src="{address}" alt="{alt}">'), element("figcaption", caption))
