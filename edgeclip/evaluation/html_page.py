"""A template's name and its values in, one HTML page that needs nothing else out; text that comes in is escaped.

Templates are in ``templates/``: each extends ``base.html.j2``, fills its blocks ``title`` and ``content``, and takes
tables, figures and intervals from ``macros.html.j2``. Here is only what a template cannot do; charts are in
``charts.py``.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

from edgeclip.documents import encode_json
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
    given = encode_json(data).decode().replace("<", "\\u003c")  # nothing in it may end the element
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


class Span(NamedTuple):
    """Lowest and highest value that a column of intervals shows."""

    low: float
    high: float

    def place(self, value: float, width: float) -> float:
        """Where a value lies on ``width`` pixels; values outside lie on the edge."""
        inside = min(max(value, self.low), self.high)
        return round(4 + (width - 8) * (inside - self.low) / (self.high - self.low), 1)


def span_of(values: Sequence[float]) -> Span:
    """A span that holds all values and 0."""
    low, high = min([*values, 0.0]), max([*values, 0.0])
    room = 0.04 * (high - low) or 1.0
    return Span(low - room, high + room)
