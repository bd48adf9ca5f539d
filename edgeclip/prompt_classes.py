"""``"mug, bottle"``, a file or a mapping in; classes, each a label with the names that prompts are made of, out."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeclip.errors import PromptError
from edgeclip.templates import read_json, read_text


@dataclass(frozen=True, slots=True)
class PromptClass:
    """One class: the label that is reported, and the names that are put into the templates."""

    label: str
    names: tuple[str, ...]


def parse_classes(text_or_file: str) -> tuple[PromptClass, ...]:
    """Read classes from ``"mug, bottle, phone"`` or from a file.

    A file holds one class a line (``#`` starts a comment), or JSON: a list of names, or ``{label: [names]}``.
    Several names of one class are joined by ``|``: ``cell phone | mobile phone``; the first is the label.

    Raises:
        PromptError: no class, an empty name or a duplicate label.
    """
    path = Path(text_or_file)
    # A list of classes is no path; to ask the file system about a long one (of 256 bytes in one name) is an error.
    short = len(text_or_file) < 1024 and all(len(os.fsencode(part)) < 256 for part in path.parts)
    is_file = short and "\n" not in text_or_file and path.is_file()
    if is_file and path.suffix == ".json":
        return make_classes(read_json(path))
    if is_file:
        lines = (line.partition("#")[0].strip() for line in read_text(path).splitlines())
        return make_classes([line for line in lines if line])
    if path.suffix in {".txt", ".json"} and "," not in text_or_file:
        raise PromptError(f"expected class names or a file of them, got {text_or_file!r}: no such file")
    if not text_or_file.strip():
        raise PromptError('expected at least one class name, got none: for example "mug, bottle, phone"')
    return make_classes(text_or_file.split(","))


def make_classes(items: Sequence[str] | Mapping[str, Sequence[str]]) -> tuple[PromptClass, ...]:
    """Classes from names (``"a | b"`` gives one class two names) or from ``{label: names}``; checked.

    Raises:
        PromptError: no class, an empty name or a duplicate label.
    """
    if isinstance(items, Mapping):
        pairs = [
            (label, [names] if isinstance(names, str) else list(names) or [label]) for label, names in items.items()
        ]
    else:
        split = [[_clean(name) for name in str(item).split("|")] for item in items]
        pairs = [(names[0], names) for names in split]
    classes = tuple(
        PromptClass(_clean(label), tuple(dict.fromkeys(_clean(str(name)) for name in names))) for label, names in pairs
    )
    if not classes:
        raise PromptError('expected at least one class name, got none: for example "mug, bottle, phone"')
    seen: dict[str, int] = {}
    for position, item in enumerate(classes, start=1):
        if not item.label or not all(item.names):
            raise PromptError(f"class {position} has an empty name: remove the stray comma or separator")
        if item.label in seen:
            raise PromptError(f"class {item.label!r} is given twice (at {seen[item.label]} and {position}): remove one")
        seen[item.label] = position
    return classes


def _clean(name: str) -> str:
    return re.sub(r"\s+", " ", name).strip()
