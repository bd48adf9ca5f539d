"""A prompt study and its labelled images in, example images of mistakes as HTML out."""

from __future__ import annotations

from edgeclip.evaluation.html_page import Markup, element, join, picture
from edgeclip.evaluation.prompt_run import Gallery
from edgeclip.evaluation.prompt_study import Study

_PAIRS = 6
_CLASSES = 6
_EACH = 4


class Examples:
    """Images of the pairs that are confused most and of the classes that are labelled worst; each is read once."""

    def __init__(self, study: Study, gallery: Gallery) -> None:
        self._gallery = gallery
        self._ways = [
            (truth, said)
            for pair in study.pairs.confused[:_PAIRS]
            for truth, said in ((pair.first, pair.second), (pair.second, pair.first))
        ]
        wrong = [item for item in study.classes if item.images and item.right < item.images]
        self._worst = sorted(wrong, key=lambda item: (item.right / item.images, -item.images))[:_CLASSES]
        self._rows = {(truth, said): gallery.of(truth, said, most=_EACH) for truth, said in self._ways}
        self._rows |= {(item.label, ""): gallery.of(item.label, most=_EACH) for item in self._worst}
        self._images = gallery.read([row for rows in self._rows.values() for row in rows])

    def confused(self) -> Markup:
        """Images of one class of a pair that were labelled as the other, both ways."""
        shown = [(f"“{truth}” labelled “{said}”", (truth, said)) for truth, said in self._ways]
        return self._grid(shown)

    def worst(self) -> Markup | None:
        """Images that were labelled wrong, of the worst classes; None if there is none."""
        if not self._worst:
            return None
        return self._grid(
            [(f"“{item.label}”: {item.right} of {item.images} right", (item.label, "")) for item in self._worst]
        )

    def _grid(self, shown: list[tuple[str, tuple[str, str]]]) -> Markup:
        groups = [
            element("div", element("h3", title), element("div", self._pictures(self._rows[key]), class_="pictures"))
            for title, key in shown
            if self._rows[key]
        ]
        return element("div", *groups, class_="groups")

    def _pictures(self, rows: list[int]) -> Markup:
        seen = [row for row in rows if row in self._images]
        return join([picture(self._images[row], f"labelled {self._gallery.said_of(row)}") for row in seen])
