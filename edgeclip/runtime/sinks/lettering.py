"""Text, a size and a place in; the text written on a frame out, in whatever script this machine has a font for.

OpenCV's built-in fonts have ASCII only. Other text is drawn by Pillow with the fonts that fontconfig knows; what none
of them has becomes a question mark, and which characters that are is said once.
"""

from __future__ import annotations

import logging
import subprocess
import unicodedata
from functools import cache, lru_cache
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgeclip.runtime.images import Image, opencv

_log = logging.getLogger("edgeclip")

_PIXELS_AT_ONE = 30  # height of a font whose capitals are as high as OpenCV's at scale 1
_LOOK_S = 10.0
_NAMED = 40
_TOLD: set[str] = set()

Colour = tuple[int, int, int]


class _Font(NamedTuple):
    file: str
    face: int
    ranges: tuple[tuple[int, int], ...]

    def has(self, character: str) -> bool:
        return any(first <= ord(character) <= last for first, last in self.ranges)


def text_size(text: str, scale: float, thickness: int) -> tuple[int, int, int]:
    """Width, height above the base line and depth below it of a text, pixels.

    Args:
        scale: as OpenCV has it: at 1 a capital is some 21 pixels high.
        thickness: of OpenCV's strokes.
    """
    cv2 = opencv()
    if text.isascii():
        (width, height), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, thickness)
        return int(width), int(height), int(below)
    widths, heights, depths = zip(*(_size(run, scale) for run in _runs(text)), strict=True)
    return sum(widths), max(heights), max(depths)


def write_text_on(image: Image, text: str, at: tuple[int, int], scale: float, colour: Colour, thickness: int) -> None:
    """Write a text on an image (H, W, 3) uint8 RGB, in place; what leaves it is cut off.

    Args:
        at: x and y of the left end of the base line, pixels.
        scale, thickness: as for ``text_size``.
    """
    cv2 = opencv()
    if text.isascii():
        cv2.putText(image, text, at, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, thickness, cv2.LINE_AA)
        return
    x, y = at
    for run in _runs(text):
        cover, left, top = _cover(run, scale)
        _blend(image, cover, x + left, y + top, colour)
        x += _size(run, scale)[0]


class _Run(NamedTuple):
    text: str
    font: _Font


def _runs(text: str) -> list[_Run]:
    """A text in pieces, each with a font that has all of its characters; the others are question marks."""
    fonts = _fonts() if _pillow() else ()
    shapes = [character for character in text if not _is_mark(character)]
    whole = next((font for font in fonts if all(map(font.has, shapes))), None)
    if whole:
        return [_Run(text, whole)]
    chosen: list[tuple[str, _Font | None]] = []
    missing = []
    for character in text:
        before = chosen[-1][1] if chosen else None
        if _is_mark(character) and before:
            chosen.append((character, before))
            continue
        font = next((font for font in (before, *fonts) if font and font.has(character)), None)
        if font is None and not character.isascii():
            missing.append(character)
        chosen.append((character if font or character.isascii() else "?", font))
    _tell(missing)
    return [
        _Run("".join(character for character, _ in group), font or _ASCII)
        for font, group in groupby(chosen, key=lambda pair: pair[1])
    ]


# Stands for OpenCV's own.
_ASCII = _Font("", 0, ((0x20, 0x7E),))


def _is_mark(character: str) -> bool:
    """Whether it changes its neighbours and has no shape of its own: joiners, variation selectors."""
    return unicodedata.category(character) in {"Cf", "Mn"}


def _tell(missing: list[str]) -> None:
    """Say once of a character that it cannot be drawn, and what would help."""
    new = [character for character in dict.fromkeys(missing) if character not in _TOLD]
    _TOLD.update(new)
    if new:
        if _pillow() is None:
            help_ = "run pip install 'edgeclip[overlay]'"
        elif not _fonts():
            help_ = "install fontconfig and a font that has them, such as Debian's fonts-noto"
        else:
            help_ = "install a font that has them, such as Debian's fonts-noto or fonts-noto-cjk"
        _log.warning("the overlay has a ? for %s, which no font here can draw: %s", "".join(new[:_NAMED]), help_)


def _size(run: _Run, scale: float) -> tuple[int, int, int]:
    if run.font is _ASCII:
        return text_size(run.text, scale, 1)
    font = _loaded(run.font, _pixels(scale))
    ascent, descent = font.getmetrics()
    return round(font.getlength(run.text)), round(ascent * 0.8), descent


@lru_cache(maxsize=256)
def _cover(run: _Run, scale: float) -> tuple[npt.NDArray[np.float32], int, int]:
    """How much of each pixel (H, W, 1) a run covers, in [0, 1], and where its corner lies from the base line's end."""
    if run.font is _ASCII:
        width, height, below = text_size(run.text, scale, 1)
        canvas = np.zeros((height + below + 2, width + 2, 3), np.uint8)
        write_text_on(canvas, run.text, (0, height + 1), scale, (255, 255, 255), 1)
        return canvas[..., :1].astype(np.float32) / np.float32(255), 0, -height - 1
    pillow = _pillow()
    assert pillow
    font = _loaded(run.font, _pixels(scale))
    left, top, right, bottom = font.getbbox(run.text, anchor="ls")
    picture = pillow.Image.new("L", (max(right - left, 1), max(bottom - top, 1)))
    pillow.ImageDraw.Draw(picture).text((-left, -top), run.text, 255, font, anchor="ls")
    return np.asarray(picture, np.float32)[..., None] / np.float32(255), int(left), int(top)


def _blend(image: Image, cover: npt.NDArray[np.float32], x: int, y: int, colour: Colour) -> None:
    height, width = image.shape[:2]
    top, left = max(y, 0), max(x, 0)
    bottom, right = min(y + cover.shape[0], height), min(x + cover.shape[1], width)
    if top >= bottom or left >= right:
        return
    part, seen = image[top:bottom, left:right], cover[top - y : bottom - y, left - x : right - x]
    part[:] = np.round(part * (1 - seen) + np.asarray(colour, np.float32) * seen).astype(np.uint8)


def _pixels(scale: float) -> int:
    return max(round(_PIXELS_AT_ONE * scale), 6)


class _Pillow(NamedTuple):
    Image: Any
    ImageDraw: Any
    ImageFont: Any


@cache
def _pillow() -> _Pillow | None:
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError:
        return None
    return _Pillow(Image, ImageDraw, ImageFont)


@lru_cache(maxsize=64)
def _loaded(font: _Font, pixels: int) -> Any:
    pillow = _pillow()
    assert pillow
    return pillow.ImageFont.truetype(font.file, pixels, font.face)


@cache
def _fonts() -> tuple[_Font, ...]:
    """The outline fonts of this machine, those that people would be shown first."""
    form = "%{file}\t%{index}\t%{color}\t%{scalable}\t%{charset}\n"
    try:
        done = subprocess.run(
            ["fc-match", "--sort", "--format", form, "sans-serif"], capture_output=True, check=True, timeout=_LOOK_S
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    found = []
    for line in done.stdout.decode(errors="surrogateescape").splitlines():
        file, index, colour, scalable, charset = (*line.split("\t"), "", "", "", "")[:5]
        if scalable != "True" or colour == "True" or not index.isdigit():
            continue  # emoji as pictures have one size, which is not ours
        font = _Font(file, int(index), tuple(map(_range, charset.split())))
        if _opens(font):
            found.append(font)
    return tuple(found)


def _range(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    return int(first, 16), int(last or first, 16)


def _opens(font: _Font) -> bool:
    try:
        _loaded(font, _PIXELS_AT_ONE)
    except (OSError, ValueError, AssertionError):  # a format that FreeType does not know
        return False
    return True
