"""The name of a set of prompt templates, or a file of them, in; the templates out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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
