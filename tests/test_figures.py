"""Figures in documents are those of the printouts that they link to."""

from __future__ import annotations

from decimal import Decimal

import pytest

from tests.figures import ROOT, Passage, figures, linked, passages, printed, sources

SOURCES = sources()
# Every figure of these is looked up; of others, those passages that ``figures.toml`` names.
WHOLE = ("README.md", "docs/measured.md")
ENTRIES = [(document, start) for document, starts in SOURCES.items() for start in starts]


def passage(document: str, start: str) -> tuple[str, str]:
    """(the rest of its section, the passage) that begins so."""
    everything = list(passages(ROOT / document))
    ((heading, found),) = [(heading, text) for heading, text in everything if text.startswith(start)]
    return "\n".join(text for other, text in everything if other == heading and not text.startswith("|")), found


def wrong(text: str, entry: Passage) -> list[str]:
    """What a passage says and its printouts do not, as "0.50: 0.498 is printed"."""
    said = figures(text)
    assert len(said) == len(entry.figures), [figure.text for figure in said]
    read = [
        (figure, printed(source, entry.printout))
        for figure, source in zip(said, entry.figures, strict=True)
        if not source.startswith("= ")
    ]
    return [f"{figure.text}: {value} is printed" for figure, value in read if not figure.is_rounded_from(value)]


@pytest.mark.parametrize(("document", "start"), ENTRIES)
def test_figures_are_those_of_the_printouts(document: str, start: str) -> None:
    _, text = passage(document, start)
    assert wrong(text, SOURCES[document][start]) == []


@pytest.mark.parametrize(("document", "start"), ENTRIES)
def test_a_passage_links_to_its_printouts(document: str, start: str) -> None:
    section, text = passage(document, start)
    entry = SOURCES[document][start]
    results = [source for source in entry.figures if not source.startswith("= ")]
    named = {part.rpartition(" ")[2] for source in results for part in source.split(" | ")[:-1]}
    if any(" | " not in source for source in results):
        named.add(entry.printout)
    assert named <= linked(text) | linked(section)


@pytest.mark.parametrize("document", WHOLE)
def test_no_figure_is_left_out(document: str) -> None:
    told = [text for _, text in passages(ROOT / document) if figures(text)]
    assert [text for text in told if not any(text.startswith(start) for start in SOURCES[document])] == []


def test_figures_are_told_from_names_and_code() -> None:
    text = "ViT-B-32, INT8, `--batch 8`, 1920×1080: .498 (−0.36 to +0.64), 1,414 images, 2.09× ([a](b-2.md)), 5.1e-7"
    assert [figure.text for figure in figures(text)] == [".498", "−0.36", "+0.64", "1,414", "2.09", "5.1e-7"]


@pytest.mark.parametrize(
    ("said", "value", "same"),
    [
        (".498", "0.4979", True),
        (".498", "0.4986", False),
        ("0.1", "-0.14", True),
        ("+0.1", "-0.14", False),
        ("−0.1", "-0.14", True),
        ("1,129", "1128.9", True),
        ("5.1e-7", "5.07e-07", True),
        ("10.3", "10.33", True),
        ("10.3", "10.36", False),
    ],
)
def test_a_figure_is_rounded_from_what_was_printed(said: str, value: str, same: bool) -> None:
    (figure,) = figures(said)
    assert figure.is_rounded_from(Decimal(value)) is same
