"""``"mug, bottle"``, a file or a mapping in; classes, each a label with the names that prompts are made of, out.

The name of a set of prompt templates, or a file of them, in; the templates out.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

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
    """Prompt templates: ``simple`` (ours), ``imagenet`` (CLIP's 80, from open_clip) or a file (lines or a JSON list).

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
    if not path.is_file():
        raise PromptError(f"expected templates simple, imagenet or a file, got {name_or_file!r}: no such file")
    if path.suffix == ".json":
        loaded = read_json(path)
        lines = [str(line) for line in loaded] if isinstance(loaded, list) else []
    else:
        lines = [line for line in map(str.strip, read_text(path).splitlines()) if line and not line.startswith("#")]
    return check_templates(lines, str(path))


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


def read_text(path: Path) -> str:
    """A UTF-8 file's text, with or without a byte order mark; PromptError if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"expected a UTF-8 text file, got {path} ({error})") from error


def read_json(path: Path) -> Any:
    """A JSON file's list or object; PromptError if it holds neither."""
    try:
        loaded = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise PromptError(f"{path} is not valid JSON ({error})") from error
    if not isinstance(loaded, list | dict):
        raise PromptError(f"expected a JSON list or object in {path}, got {type(loaded).__name__}")
    return loaded


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
    if isinstance(items, str):
        raise PromptError(f"expected a list of class names, got {items!r}: parse_classes reads text")
    if isinstance(items, Mapping):
        pairs = [
            (label, [names] if isinstance(names, str) else list(names) or [label]) for label, names in items.items()
        ]
    else:
        if strange := [item for item in items if not isinstance(item, str)]:
            raise PromptError(f"expected class names as text, got {strange[0]!r}: names of one class are joined by |")
        split = [[_clean(name) for name in item.split("|")] for item in items]
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


ClassesLike = str | os.PathLike[str] | Sequence[str] | Mapping[str, Sequence[str]] | Sequence[PromptClass]
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
