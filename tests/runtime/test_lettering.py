"""What is written on frames is what labels say, in any script that this machine has a font for, and else is told."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import numpy as np
import pytest

from edgeclip.runtime.records import Scored
from edgeclip.runtime.sinks import lettering
from edgeclip.runtime.sinks.lettering import text_size, write_text_on
from edgeclip.runtime.sinks.overlay import draw_labels

NOBODY_HAS = "\U00010600"  # Linear A


def written(text: str) -> np.ndarray:
    image = np.zeros((60, 600, 3), np.uint8)
    write_text_on(image, text, (5, 40), 1.0, (255, 255, 255), 1)
    return image


@pytest.fixture
def fonts() -> None:
    pytest.importorskip("PIL", reason="needs the extra overlay")
    if not any(font.has("к") for font in lettering._fonts()):
        pytest.skip("needs fontconfig and fonts-dejavu-core")


def test_another_script_is_drawn_and_not_question_marks(fonts: None) -> None:
    pictures = [written(text) for text in ("кошка", "собака", "ελιά", "naïve", "?????", "cat")]
    assert all(picture.any() for picture in pictures)
    for number, picture in enumerate(pictures):
        assert all((picture != other).any() for other in pictures[:number])


def test_a_text_is_as_large_as_it_is_said_to_be(fonts: None) -> None:
    for text in ("кошка 0.93", "cat 0.93", f"кошка {NOBODY_HAS} cat"):
        rows, columns = np.nonzero(written(text).any(axis=2))
        width, height, below = text_size(text, 1.0, 1)
        assert columns.min() >= 5 - 2
        assert columns.max() <= 5 + width + 2
        assert 40 - height - 3 <= rows.min()
        assert rows.max() <= 40 + below + 3


def test_what_leaves_the_frame_is_cut_off(fonts: None) -> None:
    image = np.zeros((20, 30, 3), np.uint8)
    for at in ((-10, 10), (20, 18), (-500, 10), (5, 200), (5, -50)):
        write_text_on(image, "кошка", at, 1.0, (255, 255, 255), 1)
    assert image.any()


def test_ascii_is_drawn_as_before() -> None:
    import cv2

    image = np.zeros((60, 600, 3), np.uint8)
    cv2.putText(image, "cat", (5, 40), cv2.FONT_HERSHEY_SIMPLEX, 1.0, (255, 255, 255), 1, cv2.LINE_AA)
    assert (written("cat") == image).all()


def test_what_no_font_has_is_said_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, fonts: None
) -> None:
    monkeypatch.setattr(lettering, "_TOLD", set())
    frame = np.zeros((120, 160, 3), np.uint8)
    with caplog.at_level(logging.WARNING, "edgeclip"):
        for _ in range(3):
            draw_labels(frame, [Scored(f"cat {NOBODY_HAS}{NOBODY_HAS}", 0.5)])
    assert [record.getMessage().count(NOBODY_HAS) for record in caplog.records] == [1]


@pytest.mark.parametrize("lacks", ["Pillow", "fontconfig"])
def test_without_what_draws_it_a_question_mark_is_drawn_and_that_is_said(lacks: str) -> None:
    hide = "import sys; sys.modules['PIL'] = None\n" if lacks == "Pillow" else ""
    code = hide + (
        "import numpy as np\nfrom edgeclip.runtime.records import Scored\n"
        "from edgeclip.runtime.sinks.overlay import draw_labels\n"
        "print(draw_labels(np.zeros((120, 160, 3), np.uint8), [Scored('\\u043a\\u043e\\u0442', 0.5)]).any())"
    )
    path = "/nonexistent" if lacks == "fontconfig" else os.environ["PATH"]
    environment = {**os.environ, "PATH": path, "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.stdout == "True\n", done.stderr
    assert "кот" in done.stderr
    if lacks == "Pillow":
        assert "edgeclip[overlay]" in done.stderr


def test_a_line_break_in_a_label_stays_on_its_line() -> None:
    frame = np.zeros((120, 160, 3), np.uint8)
    assert (draw_labels(frame, [Scored("a\nb", 0.5)]) == draw_labels(frame, [Scored("a\\nb", 0.5)])).all()
