"""Pages: text stays text, only the given script runs, and charts do not get in each other's way."""

from __future__ import annotations

import base64
import json
import re
import shutil
import socket
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgeclip.calibration.decisions.fit import Bin, FitReport, Reported
from edgeclip.decisions import ClassDecision
from edgeclip.evaluation.charts import line_chart
from edgeclip.evaluation.decisions.calibrate import Calibrated
from edgeclip.evaluation.decisions.report import decision_page
from edgeclip.evaluation.html_page import Span, picture_uri, render_page, span_of
from edgeclip.prompts import PromptTable, make_classes
from tests.chromium import Chromium


class Elements(HTMLParser):
    """A page's elements (tag, attributes, text), checked to be closed in order."""

    VOID = frozenset({"meta", "img", "input"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += f" {data}"


@pytest.fixture
def decisions() -> str:
    """The page of two variants; a class has a name like markup."""
    labels = ("<b>cat", "dog & co")
    table = PromptTable("yard", make_classes(list(labels)), np.eye(2, 8, dtype=np.float32), ("{}",), "model")
    figures = {
        "top1": 0.8125,
        "precision": 0.95,
        "recall": 0.5,
        "abstention": 0.4,
        "ece_before": 0.2,
        "ece_temperature": 0.1,
        "ece_after": 0.03125,
    }
    reports = [
        FitReport(
            variant=variant,
            table="yard",
            images=40,
            known=32,
            figures=figures,
            before=[Bin(10, 0.5, 0.2), Bin(30, 0.9, 0.6)],
            after=[Bin(20, 0.3, 0.35), Bin(20, 0.9, 0.85)],
            curve=[Reported(0.1, 1.0), Reported(1.0, 0.7)],
            classes={
                labels[0]: ClassDecision(0.75, "own", images=20, accepted=8, right=6),
                labels[1]: ClassDecision(1.0, "none", images=12),
            },
            notes=["too few <images>"],
        )
        for variant in ("fp32", "int8")
    ]
    return decision_page(Calibrated(table, reports), bundle="yard.edgeclip", target=0.95, confidence=0.9)


def test_what_comes_in_stays_text(decisions: str) -> None:
    elements = Elements(decisions)
    assert "b" not in {tag for tag, _ in elements.found}
    assert "<b>cat" in elements.text
    assert "too few <images>" in elements.text


def test_decisions_have_their_figures_on_the_page(decisions: str) -> None:
    said = " ".join(Elements(decisions).text.split())
    assert "images 40 (32 of a class)" in said
    assert "0.200 → 0.100 → 0.031" in said
    assert "<b>cat 20 0.750 by itself 8 0.75" in said  # six of eight
    assert "dog & co 12 1.000 none 0 –" in said
    assert "AUROC" not in said  # nothing unknown was labelled


def test_a_page_refers_to_nothing_outside_itself(decisions: str) -> None:
    for _, attributes in Elements(decisions).found:
        for name in ("src", "href", "xlink:href", "action"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))


def test_charts_of_one_page_have_no_names_in_common() -> None:
    """Except of shapes that are the same in both."""
    charts = [
        line_chart([("a", values)], level=("all", 0.5), ticks=["1", "2", "3"]) for values in ([0, 1, 2], [5, 4, 9])
    ]
    one, other = (dict(re.findall(r'id="(\w+)"([^>]*)>', chart)) for chart in charts)
    assert one
    assert all(one[name] == other[name] for name in one.keys() & other.keys())


def test_only_the_given_script_runs_and_nothing_is_fetched(tmp_path: Path) -> None:
    if not shutil.which("chromium"):
        pytest.skip("needs Debian's chromium, which is not installed")
    data = {"name": "</script><script>document.title = 'stranger'</script>"}
    given = "document.title = JSON.parse(document.getElementById('data').textContent).name.length"
    page = tmp_path / "page.html"
    with socket.create_server(("127.0.0.1", 0)) as server, Chromium(tmp_path / "profile") as chromium:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/x.png"
        strange = f"<script>document.title = 'intruder'</script><img src='{address}'></body>"
        page.write_text(render_page("base.html.j2", script=given, data=data).replace("</body>", strange))
        chromium.open(page.as_uri())
        chromium.wait_for("document.readyState == 'complete' && document.title")
        assert chromium.evaluate("document.title") == str(len(data["name"]))
        assert json.loads(chromium.evaluate("document.getElementById('data').textContent")) == data
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


@pytest.mark.parametrize(("height", "width"), [(40, 200), (200, 40)])
def test_a_picture_is_the_middle_square(height: int, width: int) -> None:
    image = np.zeros((height, width, 3), np.uint8)
    image[(height - 40) // 2 : (height + 40) // 2, (width - 40) // 2 : (width + 40) // 2] = (200, 100, 50)
    kind, _, coded = picture_uri(image, side=32).partition(",")
    assert kind == "data:image/jpeg;base64"
    bgr = cv2.imdecode(np.frombuffer(base64.b64decode(coded), np.uint8), cv2.IMREAD_COLOR)
    assert bgr.shape == (32, 32, 3)
    assert np.abs(bgr.astype(int) - (50, 100, 200)).max() < 12


def test_a_span_holds_all_values_and_zero() -> None:
    span = span_of([2.0, 5.0])
    assert span.low < 0
    assert span.high > 5
    assert Span(-10.0, 10.0).place(0.0, 190) == 95
    assert Span(-10.0, 10.0).place(99.0, 190) == 186  # on the edge
