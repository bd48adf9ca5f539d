"""A document in, its figures out; a place in a printout of ``docs/results`` in, what was printed there out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from pathlib import Path

import msgspec

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"

_NUMBER = r"([-+−]?)((?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e[-+]?\d+)?|\.\d+)(?!\d|[.,]\d)"
# A number in a name is no figure (ViT-B-32, INT8, R@1, H.264, 1080p), nor is a picture's size; an x may follow (2.5x).
_FIGURE = re.compile(rf"(?<![\w.@])(?<![A-Za-z][-/.]){_NUMBER}(?!x?[A-Za-wyz])")
_PRINTED = re.compile(rf"(?<![\w.]){_NUMBER}")
_SILENT = re.compile(r"`[^`]*`|(?<=\])\([^)]*\)|<[^>]*>|https?://\S+|\b\d{3,4}×\d{3,4}\b")


@dataclass(frozen=True)
class Figure:
    """A number as it is written.

    Attributes:
        text: as it stands there.
        value: what it says.
        signed: whether it has a sign.
        step: one in its last place.
    """

    text: str
    value: Decimal
    signed: bool
    step: Decimal

    def is_rounded_from(self, other: Decimal) -> bool:
        """Whether a value, rounded to the places of this one, is this one; a figure without a sign says how much."""
        return abs(self.value - (other if self.signed else abs(other))) <= self.step / 2


def _figure(sign: str, digits: str) -> Figure:
    value = Decimal(digits.replace(",", ""))
    return Figure(
        sign + digits,
        -value if sign in {"-", "−"} else value,
        bool(sign),
        Decimal(1).scaleb(int(value.as_tuple().exponent)),
    )


def figures(text: str) -> list[Figure]:
    """The figures of a passage, in order."""
    silent = _SILENT.sub(lambda match: " " * len(match[0]), text)
    return [_figure(*match.groups()) for match in _FIGURE.finditer(silent)]


def _passages(document: Path) -> Iterator[tuple[str, str]]:
    text = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    heading = ""
    for block in re.split(r"\n\s*\n", text):
        lines = block.strip().splitlines()
        if lines and lines[0].startswith("#"):
            heading, lines = lines[0].lstrip("# "), lines[1:]
        if lines and lines[0].startswith("|"):
            yield from ((heading, line) for line in lines if not line.startswith("|--"))
        elif lines:
            yield heading, "\n".join(lines)


@cache
def passages(document: Path) -> tuple[tuple[str, str], ...]:
    """(section's heading, passage): paragraphs and rows of tables, without fenced blocks, headings and rulers."""
    return tuple(_passages(document))


@cache
def _printout(name: str) -> str:
    return "\n" + (RESULTS / f"{name}.txt").read_text(encoding="utf-8")


def _printed(name: str, place: str) -> Decimal:
    """What a printout says at "NEEDLE > NEEDLE @ I": the I-th number of the line in which the last needle is found.

    Each needle is sought behind the one before. "# NEEDLE" is how often it stands there.
    """
    text = _printout(name)
    if place.startswith("# "):
        return Decimal(text.count(place[2:]))
    needles, _, index = place.rpartition(" @ ")
    end = 0
    for needle in needles.split(" > "):
        start = text.index(needle, end)
        end = start + len(needle)
    line = text[text.rindex("\n", 0, end) + 1 : text.find("\n", end)]
    return _figure(*_PRINTED.findall(line)[int(index)]).value


def printed(source: str, printout: str) -> Decimal:
    """What results files say: "[PRINTOUT | ]PLACE", or several with ÷, − or × between; a bare number is itself."""
    result: Decimal | None = None
    for operator, term in re.findall(r"(?:^| ([÷−×]) )((?:(?! [÷−×] ).)+)", source, re.DOTALL):
        name, _, place = term.rpartition(" | ")
        printout = name or printout
        value = Decimal(place) if re.fullmatch(r"\d+", place) else _printed(printout, place)
        if result is None:
            result = value
        else:
            result = result / value if operator == "÷" else result - value if operator == "−" else result * value
    assert result is not None
    return result


def linked(text: str) -> set[str]:
    """The names of the printouts that a text links to."""
    return set(re.findall(r"\]\((?:docs/)?results/([\w.-]+)\.txt\)", text))


class Passage(msgspec.Struct, frozen=True):
    """Where the figures of one passage come from.

    Attributes:
        figures: a source for each figure, in order: what `printed` reads, or "= " and the reason why it is no result.
        printout: of the sources that name none.
    """

    figures: tuple[str, ...]
    printout: str = ""


def sources() -> dict[str, dict[str, Passage]]:
    """document → how a passage begins → its sources, of ``figures.toml``."""
    path = Path(__file__).with_suffix(".toml")
    return msgspec.toml.decode(path.read_bytes(), type=dict[str, dict[str, Passage]])
