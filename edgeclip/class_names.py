"""``"mug, bottle"``, a file or a mapping in; classes, each a label with the names that prompts are made of, out.

The name of a set of prompt templates, or a file of them, in; the templates out.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from edgeclip.documents import read_json, read_text, read_yaml
from edgeclip.errors import PromptError
from edgeclip.extras import require

SIMPLE_TEMPLATES = (
    "{}",
    "a photo of a {}.",
    "a photo of the {}.",
    "a close-up photo of a {}.",
    "a blurry photo of a {}.",
    "a photo of a {} in a room.",
    "a photo of a {} outdoors.",
)


def load_templates(name_or_file: str) -> tuple[str, ...]:
    """Prompt templates: ``simple`` (ours), ``imagenet`` (CLIP's 80, from open_clip) or a file (lines or a list).

    A template holds the place of the name as ``{}`` or ``{c}``.

    Raises:
        PromptError: no such file, no template, or one without exactly one placeholder.
    """
    if name_or_file == "simple":
        return SIMPLE_TEMPLATES
    if name_or_file == "imagenet":
        open_clip: Any = require("open_clip", purpose="use CLIP's ImageNet templates")
        functions: Sequence[Callable[[str], str]] = open_clip.OPENAI_IMAGENET_TEMPLATES
        return tuple(function("{}") for function in functions)
    path = Path(name_or_file)
    if not _is_file(path):
        raise PromptError(f"expected templates simple, imagenet or a file, got {name_or_file!r}: no such file")
    found = _read(path)
    if not isinstance(found, list) or not all(isinstance(line, str) for line in found):
        raise PromptError(f"expected a list of prompt templates in {path}, got {_kind(found)}: one text a template")
    return check_templates(found, str(path))


def check_templates(lines: Sequence[str], where: str) -> tuple[str, ...]:
    """The templates, each once, with ``{}`` for the name.

    Args:
        where: they come from, for messages.

    Raises:
        PromptError: none, or one without exactly one placeholder.
    """
    templates = tuple(dict.fromkeys(line.replace("{c}", "{}") for line in lines))
    if not templates:
        raise PromptError(f"expected at least one template in {where}, got none: one a line, with {{}} for the name")
    for template in templates:
        if template.count("{}") != 1:
            raise PromptError(f"expected one {{}} in each template of {where}, got {template!r}")
    return templates


@dataclass(frozen=True, slots=True)
class PromptClass:
    """One class: the label that is reported, and the names that are put into the templates."""

    label: str
    names: tuple[str, ...]


def parse_classes(text_or_file: str) -> tuple[PromptClass, ...]:
    """Read classes from ``"mug, bottle, phone"`` or from a file.

    Several names of one class are joined by ``|``: ``cell phone | mobile phone``; the first is the label. What a file
    holds is told by its suffix:

    - ``.txt``, ``.names``, ``.labels``, ``.lst`` or none: one class a line; a line that begins with ``#`` is a comment.
    - ``.json``: a list of names, or ``{label: [names]}``.
    - ``.csv``, ``.tsv``: one column, a column called ``name``, ``class`` or ``label``, or numbers beside names.
    - ``.yaml``, ``.yml``: as JSON, or YOLO's ``data.yaml``, whose ``names`` are a list or numbered.

    Raises:
        PromptError: no class, an empty name or a duplicate label; a path where no file is; a file that cannot be read.
    """
    path = Path(text_or_file)
    if _is_file(path):
        return read_classes(path)
    if not text_or_file.strip():
        raise PromptError('expected at least one class name, got none: for example "mug, bottle, phone"')
    items = [item for line in text_or_file.splitlines() if line.strip() for item in line.split(",")]
    if paths := [item.strip() for item in items if _looks_like_a_path(item.strip(), alone=len(items) == 1)]:
        raise PromptError(f"expected class names or a file of them, got {paths[0]!r}: no such file")
    return make_classes(items)


def read_classes(path: Path) -> tuple[PromptClass, ...]:
    """The classes of a file. Raises as ``parse_classes``."""
    return make_classes(_read(path))


def _is_file(path: Path) -> bool:
    """Whether there is such a file; a list of classes may be too long to be asked for."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _looks_like_a_path(item: str, *, alone: bool) -> bool:
    """Whether a class name is none: it ends as a file of names does, or begins or is written as a path."""
    if Path(item).suffix.lower() in _READERS.keys() - {""} or item.startswith(("/", "./", "../", "~/")):
        return True
    return alone and ("/" in item or "\\" in item or re.fullmatch(r"\S+\.[A-Za-z]\w{1,4}", item) is not None)


def _read(path: Path) -> Any:
    """What a file of class names or templates holds: a list, or an object of label → names."""
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        known = ", ".join(sorted(_READERS.keys() - {""}))
        raise PromptError(f"expected a file of names that ends in {known}, got {path}: give it the suffix that fits")
    return reader(path)


def _lines(path: Path) -> list[str]:
    lines = [line.strip() for line in read_text(path, error=PromptError).splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def _json(path: Path) -> Any:
    found = read_json(path, object, error=PromptError)
    if not isinstance(found, list | dict):
        raise PromptError(f"expected a JSON list or object in {path}, got {_kind(found)}")
    return found


def _yaml(path: Path) -> Any:
    found = read_yaml(path, error=PromptError)
    if isinstance(found, dict) and "names" in found:  # YOLO's
        names, count = found["names"], found.get("nc")
        if isinstance(count, int) and isinstance(names, list | dict) and len(names) != count:
            raise PromptError(f"expected the {count} names in {path} that its nc says, got {len(names)}: mend one")
        found = names
    if isinstance(found, dict) and found and all(str(key).isdecimal() for key in found):  # numbered
        found = [found[key] for key in sorted(found, key=int)]
    if not isinstance(found, list | dict):
        raise PromptError(f"expected a list of names, or names by label, in {path}, got {_kind(found)}")
    return found


def _csv(path: Path) -> list[str]:
    text = read_text(path, error=PromptError)
    first = text.partition("\n")[0]
    separator = max(",;\t", key=first.count)
    try:
        read = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        rows = [[cell.strip() for cell in row] for row in read]
    except csv.Error as error:
        raise PromptError(f"{path} is not a readable table ({error}): save it as CSV in UTF-8") from error
    rows = [row for row in rows if any(row) and not row[0].startswith("#")]
    if not rows:
        return []
    headings = [heading.casefold().replace("_", " ") for heading in rows[0]]
    named = [headings.index(name) for name in _NAME_COLUMNS if name in headings]
    width = len(rows[0])
    if strange := [row for row in rows if len(row) != width]:
        raise PromptError(f"expected {width} columns in each row of {path}, got {len(strange[0])}: {strange[0][:3]}")
    if named:
        return [row[named[0]] for row in rows[1:]]
    columns = [column for column in range(width) if width == 1 or not all(row[column].isdecimal() for row in rows)]
    if width > 2 or len(columns) != 1:
        raise PromptError(
            f"expected one column of names in {path}, or one called {', '.join(_NAME_COLUMNS)}, got {width} columns "
            f"({', '.join(rows[0][:4])}): add a row of headings"
        )
    return [row[columns[0]] for row in rows]


# By suffix; what a file of names or templates is read by.
_READERS: dict[str, Callable[[Path], Any]] = {
    **dict.fromkeys(("", ".txt", ".names", ".labels", ".lst"), _lines),
    ".json": _json,
    **dict.fromkeys((".csv", ".tsv"), _csv),
    **dict.fromkeys((".yaml", ".yml"), _yaml),
}
_NAME_COLUMNS = ("name", "class name", "class", "label", "category", "names", "classes")


def make_classes(items: Sequence[str] | Mapping[str, str | Sequence[str]]) -> tuple[PromptClass, ...]:
    """Classes from names (``"a | b"`` gives one class two names) or from ``{label: names}``; checked.

    Raises:
        PromptError: no class, an empty name or a duplicate label, or a name that is no text.
    """
    if isinstance(items, str):
        raise PromptError(f"expected a list of class names, got {items!r}: parse_classes reads text")
    if isinstance(items, Mapping):
        pairs = [(_text(label), _names_of(label, names)) for label, names in items.items()]
    else:
        split = [[_clean(name) for name in _text(item).split("|")] for item in items]
        pairs = [(names[0], names) for names in split]
    classes = tuple(
        PromptClass(_clean(label), tuple(dict.fromkeys(_clean(name) for name in names))) for label, names in pairs
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


def _names_of(label: object, names: object) -> list[str]:
    """The names of a class; its label where there are none."""
    if isinstance(names, str):
        return [_text(names)]
    if not isinstance(names, list | tuple):
        raise PromptError(f"expected a name or a list of names of class {label!r}, got {_kind(names)}")
    return [_text(name) for name in names] or [_text(label)]


def _text(name: object) -> str:
    """A name, if it is text that can be written."""
    if not isinstance(name, str):
        hint = "put it in quotes" if isinstance(name, bool | int | float) else "names of one class are joined by |"
        raise PromptError(f"expected class names as text, got {name!r}: {hint}")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise PromptError(f"expected class names in UTF-8, got {name!r}: write it anew") from error
    return name


def _kind(value: object) -> str:
    return "nothing" if value is None else type(value).__name__


ClassesLike = str | os.PathLike[str] | Sequence[str] | Mapping[str, str | Sequence[str]] | Sequence[PromptClass]
TemplatesLike = str | os.PathLike[str] | Sequence[str]


def as_classes(classes: ClassesLike) -> tuple[PromptClass, ...]:
    """Classes in any form: text or a file (``parse_classes``), names or a mapping (``make_classes``), or classes.

    Raises:
        PromptError: as those two.
    """
    if isinstance(classes, str | os.PathLike):
        return parse_classes(os.fspath(classes))
    if isinstance(classes, Mapping):
        return make_classes(classes)
    given: tuple[object, ...] = tuple(classes)
    made = tuple(item for item in given if isinstance(item, PromptClass))
    return made if made and len(made) == len(given) else make_classes(cast("tuple[str, ...]", given))


def as_templates(templates: TemplatesLike) -> tuple[str, ...]:
    """Templates by name or file (``load_templates``), or as they are, checked.

    Raises:
        PromptError: as ``load_templates``.
    """
    if isinstance(templates, str | os.PathLike):
        return load_templates(os.fspath(templates))
    return check_templates(templates, "templates")


def split_names(names: str | Sequence[str]) -> list[str]:
    """``"a, b"`` as ``["a", "b"]``; a list as it is."""
    return [name.strip() for name in names.split(",") if name.strip()] if isinstance(names, str) else list(names)


def _clean(name: str) -> str:
    return re.sub(r"\s+", " ", name).strip()
