"""``"mug, bottle"``, a file or a mapping in; classes, each a label with the names that prompts are made of, out.

The name of a set of prompt templates, or a file of them, in; the templates out.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import reprlib
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from edgeclip.documents import decode_json, read_text, read_yaml
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
    path = _find_file(name_or_file)
    if path is None:
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
    - ``.json``, ``.yaml``, ``.yml``: a list of names, ``{label: [names]}`` or ``{number: name}``; or one of them under
      ``names``, as in YOLO's ``data.yaml``, ``classes``, ``labels`` or ``id2label``.
    - ``.csv``, ``.tsv``: one column, a column called ``name``, ``class`` or ``label``, or numbers beside names.

    Raises:
        PromptError: no class, an empty name or a duplicate label; a path where no file is; a file that cannot be read.
    """
    if path := _find_file(text_or_file):
        return read_classes(path)
    if not text_or_file.strip():
        raise PromptError('expected at least one class name, got none: for example "mug, bottle, phone"')
    items = [item for line in text_or_file.splitlines() if line.strip() for item in line.split(",")]
    if paths := [item.strip() for item in items if _looks_like_a_path(item.strip(), alone=len(items) == 1)]:
        raise PromptError(
            f"expected class names or a file of them, got {_shown(paths[0])}: no such file; a class of that "
            "name can stand in one"
        )
    return make_classes(items)


def read_classes(path: Path) -> tuple[PromptClass, ...]:
    """The classes of a file. Raises as ``parse_classes``."""
    return make_classes(_read(path))


def _find_file(text: str) -> Path | None:
    """The file, or the pipe that a shell's ``<(...)`` makes, of that name; None where nothing is.

    Raises:
        PromptError: what is there is a folder, a device or a link to nothing.
    """
    if not text.strip():
        return None
    try:
        mode = Path(text).stat().st_mode
    except (OSError, ValueError):  # a list of classes may be too long to be asked for
        if not os.path.islink(text):  # noqa: PTH114 — Path's raises what was caught here
            return None
        got = "a link to nothing"
    else:
        if stat.S_ISREG(mode) or stat.S_ISFIFO(mode):
            return Path(text)
        got = "a folder" if stat.S_ISDIR(mode) else "no regular file"
    raise PromptError(
        f"expected names or a file of them, got {text!r}, which is {got}: give a file; a class of that name can stand "
        "in one"
    )


def _looks_like_a_path(item: str, *, alone: bool) -> bool:
    """Whether a class name is none: it ends as a file of names does, or begins or is written as a path."""
    if Path(item).suffix.lower() in _READERS.keys() - {""} or item.startswith(("/", "./", "../", "~/")):
        return True
    return _SUFFIX.search(item) is not None or (alone and ("/" in item or "\\" in item))


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
    text = read_text(path, error=PromptError)
    found = decode_json(text, object, where=str(path), error=PromptError)

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        by_key: dict[str, Any] = {}
        for key, value in pairs:
            if key in by_key:
                raise PromptError(f"expected each key once in {path}, got {_shown(key)} again: rename one")
            by_key[key] = value
        return by_key

    try:
        json.loads(text, object_pairs_hook=once, parse_int=str)  # msgspec keeps the last of equal keys and says nothing
    except RecursionError as problem:
        raise PromptError(f"{path} is nested too deeply: make it anew") from problem
    if not isinstance(found, list | dict):
        raise PromptError(f"expected a JSON list or object in {path}, got {_kind(found)}")
    return _names_in(found, path)


def _yaml(path: Path) -> Any:
    return _names_in(read_yaml(path, error=PromptError), path)


def _names_in(found: Any, path: Path) -> list[Any] | dict[Any, Any]:
    """A document's names: a list, or by label; taken from where data sets and models keep them, in their order."""
    given = found if isinstance(found, dict) else {}
    key = next((key for name in _NAME_KEYS for key in given if isinstance(key, str) and key.casefold() == name), None)
    if key is not None:
        found, count = given[key], given.get("nc")
        if isinstance(count, int) and isinstance(found, list | dict) and len(found) != count:
            raise PromptError(
                f"expected the {_shown(count)} names in {path} that its nc says, got {len(found)}: mend one"
            )
        others = [other for other in given if other not in (key, *_DATA_KEYS) and _are_texts(given[other])]
        if others and key != "id2label":
            raise PromptError(
                f"expected all names of {path} in one place, got lists under {key!r} and {_shown(others[0])}: if the "
                "keys are labels, write a list of classes instead"
            )
    elif _describes_data(given):
        raise PromptError(f"expected names in {path}, which describes a data set, got none: add names: [...]")
    if isinstance(found, dict) and found and all(map(_is_index, found)):
        listed = [(key, found[key]) for key in sorted(found, key=int)]
        if strange := [(key, name) for key, name in listed if isinstance(name, list | dict)]:
            number, name = strange[0]
            raise PromptError(
                f"expected one name for each number in {path}, got {_shown(name)} for {_shown(number)}: keep the name "
                "alone, names of one class are joined by |"
            )
        found = [name for _, name in listed]
    if not isinstance(found, list | dict):
        raise PromptError(f"expected a list of names, or names by label, in {path}, got {_kind(found)}")
    return found


def _describes_data(given: dict[Any, Any]) -> bool:
    """Whether a document says where images lie; "train" alone may be a class."""
    train = given.get("train")
    return (
        not given.keys().isdisjoint({"nc", "val"})
        or len(_DATA_KEYS & given.keys()) > 1
        or (isinstance(train, str) and "/" in train)
    )


def _is_index(key: object) -> bool:
    if isinstance(key, str):
        return key.isdecimal() and len(key) < 19  # of more digits no number is made
    return isinstance(key, int) and not isinstance(key, bool)


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, str) for each in value)


def _csv(path: Path) -> list[str]:
    text = read_text(path, error=PromptError)
    try:
        read = csv.reader(io.StringIO(text, newline=""), delimiter=_separator(text), strict=True)
        rows = [[cell.strip() for cell in row] for row in read]
    except csv.Error as error:
        raise PromptError(f"{path} is not a readable table ({error}): save it as CSV in UTF-8") from error
    rows = [row for row in rows if any(row) and not row[0].startswith("#")]
    if not rows:
        return []
    headings = [_heading(cell) for cell in rows[0]]
    named = [headings.index(name) for name in _NAME_COLUMNS if name in headings]
    width = len(rows[0])
    if strange := [row for row in rows if len(row) != width]:
        raise PromptError(
            f"expected {width} columns in each row of {path}, got {len(strange[0])}: {_shown(strange[0])}"
        )
    if named:
        # People call the numbers of classes "class" and "label" too.
        worded = [column for column in range(width) if not all(_is_code(row[column]) for row in rows[1:])]
        if worded and not set(named) & set(worded):
            raise PromptError(
                f"expected names in the column {_shown(rows[0][named[0]])} of {path}, got numbers: call the one that "
                "has them name"
            )
        return [row[next((column for column in named if column in worded), named[0])] for row in rows[1:]]
    columns = [column for column in range(width) if width == 1 or not all(_is_code(row[column]) for row in rows)]
    if width > 2 or len(columns) != 1:
        raise PromptError(
            f"expected one column of names in {path}, or one called {', '.join(_NAME_COLUMNS)}, got {width} columns "
            f"({', '.join(cell[:40] for cell in rows[0][:4])}): add a row of headings"
        )
    return [row[columns[0]] for row in rows]


def _separator(text: str) -> str:
    """What stands between a table's columns; ``|`` only where it cannot join the names of one class."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    first = lines[0] if lines else ""
    separator = max(",;\t", key=first.count)
    if separator in first or "|" not in first:
        return separator
    headed = any(_heading(cell.strip(' "')) in _NAME_COLUMNS for cell in first.split("|"))
    return "|" if headed or all(_is_code(line.partition("|")[0].strip()) for line in lines) else separator


def _heading(cell: str) -> str:
    return cell.casefold().replace("_", " ")


def _is_code(cell: str) -> bool:
    """Whether a cell is empty, a number, or an id of WordNet as ImageNet's classes have it."""
    return re.fullmatch(r"([+-]?\d+(\.\d*)?|n\d{8})?", cell) is not None


# By suffix; what a file of names or templates is read by.
_READERS: dict[str, Callable[[Path], Any]] = {
    **dict.fromkeys(("", ".txt", ".names", ".labels", ".lst"), _lines),
    ".json": _json,
    **dict.fromkeys((".csv", ".tsv"), _csv),
    **dict.fromkeys((".yaml", ".yml"), _yaml),
}
_NAME_COLUMNS = ("name", "class name", "class", "label", "category", "names", "classes")
# Where a JSON or YAML document keeps its names: YOLO's data sets, ours and others', a transformers model.
_NAME_KEYS = ("names", "classes", "class_names", "labels", "categories", "id2label")
_DATA_KEYS = frozenset({"train", "val", "test", "path", "nc"})
# How a file's name ends.
_SUFFIX = re.compile(r"\.([A-Za-z]\w{1,4}|pickle|parquet|safetensors)$")


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
            label = _shown(item.label)
            raise PromptError(f"class {label} is given twice (at {seen[item.label]} and {position}): remove one")
        seen[item.label] = position
    return classes


def _names_of(label: object, names: object) -> list[str]:
    """The names of a class; its label where there are none."""
    if isinstance(names, str):
        return [_text(names)]
    if not isinstance(names, list | tuple):
        raise PromptError(f"expected a name or a list of names of class {_shown(label)}, got {_kind(names)}")
    return [_text(name) for name in names] or [_text(label)]


def _text(name: object) -> str:
    """A name, if it is text that can be written."""
    if not isinstance(name, str):
        hint = "put it in quotes" if isinstance(name, bool | int | float) else "names of one class are joined by |"
        raise PromptError(f"expected class names as text, got {_shown(name)}: {hint}")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise PromptError(f"expected class names in UTF-8, got {_shown(name)}: write it anew") from error
    return name


def _shown(value: object) -> str:
    """A value in a message: its beginning, however large it is."""
    short = reprlib.Repr()
    short.maxlevel, short.maxlist, short.maxdict, short.maxstring = 2, 3, 3, 80
    try:
        return short.repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return _kind(value)


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
