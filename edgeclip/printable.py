"""Text from outside in, text that is safe to print out; a number and what it counts in, a phrase out."""

from __future__ import annotations

import os
import unicodedata

_KEPT = frozenset("\n\t")
# Control, surrogate (an undecodable byte of a file name), and what makes a terminal show text in another order.
_UNSAFE = frozenset({"Cc", "Cs"})
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: str, *, lines: bool = True) -> str:
    r"""Text with what moves a terminal's cursor, or cannot be encoded, written out as ``\x1b``, ``\udcff``.

    Args:
        lines: keep line breaks and tabs; if not, they are written out too, as in a name.
    """
    return "".join(_shown(character, lines) for character in text)


def counted(count: int, one: str, several: str = "") -> str:
    """A number of things: ``1 photograph``, ``2,048 photographs``; ``several`` where an s does not make it several."""
    return f"{count:,} {one if count == 1 else several or f'{one}s'}"


def path_text(path: str | os.PathLike[str]) -> str:
    r"""A path as text that can be encoded and sent: a byte of it that is no UTF-8 is written out as ``\xff``."""
    try:
        raw = os.fsencode(path)
    except UnicodeEncodeError:  # it names no file
        raw = os.fspath(path).encode("utf-8", "backslashreplace")
    return raw.decode("utf-8", "backslashreplace")


def _shown(character: str, lines: bool) -> str:
    if lines and character in _KEPT:
        return character
    if character in _BIDI or unicodedata.category(character) in _UNSAFE:
        return character.encode("unicode_escape", "surrogatepass").decode("ascii")
    return character
