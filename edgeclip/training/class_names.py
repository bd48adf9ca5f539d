"""A file of class names in, the names of each class in label order out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from edgeclip.errors import PromptError, TrainingError
from edgeclip.prompts import parse_classes


def read_class_names(path: Path, *, folders: Sequence[str] = ()) -> list[list[str]]:
    """Names of each class, in label order.

    The file is a JSON list of names, of lists of names or of ``{"names": [...]}``; or text, one class a line with
    its names joined by ``|``; or, where classes are folders, a JSON object of folder name → name or names.

    Args:
        folders: the class folders in label order, if classes are folders.

    Raises:
        TrainingError: absent, malformed, a class without a name, or another number of classes than folders.
    """
    try:
        if path.suffix == ".txt" and path.is_file():
            names = [list(item.names) for item in parse_classes(str(path))]
        else:
            names = _from_json(json.loads(path.read_text(encoding="utf-8")), folders)
    except (OSError, ValueError, KeyError, PromptError) as error:
        raise TrainingError(f"expected a JSON list of class names at {path} ({error})") from error
    if not names or not all(all(each) and each for each in names):
        raise TrainingError(f"expected a name for every class in {path}, got {len(names)} classes")
    if folders and len(names) != len(folders):
        raise TrainingError(f"expected names for {len(folders)} class folders in {path}, got {len(names)}")
    return names


def _from_json(loaded: object, folders: Sequence[str]) -> list[list[str]]:
    if isinstance(loaded, dict) and folders:
        loaded = [loaded[folder] for folder in folders]
    names: list[list[str]] = []
    for item in loaded if isinstance(loaded, list) else []:
        given = item.get("names", []) if isinstance(item, dict) else item
        names.append([given] if isinstance(given, str) else [str(name) for name in given])
    return names
