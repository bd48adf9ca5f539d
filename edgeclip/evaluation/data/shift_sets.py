"""A folder laid out as ImageNet-R, -A, -V2 or -Sketch, or any class folders, in; a labelled set of its classes out.

The classes are those that are there: of ImageNet-R and -A that is 200 of the 1000, and images are scored among these
200 alone, as is usual for both sets (Hendrycks and others 2021).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeclip.documents import read_json
from edgeclip.errors import InputError
from edgeclip.evaluation.data.class_sets import IMAGENET_CLASSES, WORDNET_ID, imagenet_rows
from edgeclip.evaluation.data.dataset import Items, LabelledSet, open_labelled
from edgeclip.extras import require
from edgeclip.prompts import PromptClass, make_classes

# Folders 0 to 9 may be digits, or any ten classes; ImageNet-V2 has more.
_LEAST_NUMBERED = 11


def open_shift_set(folder: Path, names: Path | None = None) -> LabelledSet:
    """Open labelled images; ImageNet's folders get ImageNet's class names as open_clip has them.

    ImageNet's are folders that are all called by WordNet ids (``n01443537``: -R, -A, -Sketch, ImageNet itself), or all
    by numbers up to 999, more than ten of them (-V2). Others go by their names, or by those in ``names``.

    Args:
        names: as ``open_labelled`` takes them; it goes before ImageNet's names.

    Raises:
        SourceError: no class folders, or one without images.
        InputError: ``names`` lacks a folder, or a WordNet id is none of ImageNet's 1000.
        MissingExtraError: ImageNet's names are needed and open_clip or timm is not installed.
    """
    opened = open_labelled(folder, names)
    found = None if names else imagenet_classes(opened.folders)
    return opened if found is None else dataclasses.replace(opened, classes=found)


def names_of(folder: Path, names: Path | None) -> Path | None:
    """A file of names, if it is an object that names one of a set's class folders; else the set goes by its own."""
    if names is None or not folder.is_dir():
        return names
    try:
        given = read_json(names, dict[str, Any])
    except InputError:
        return names  # a list of names; or whoever opens it says what is wrong
    return names if any(item.name in given for item in folder.iterdir() if item.is_dir()) else None


def imagenet_classes(folders: Sequence[str]) -> tuple[PromptClass, ...] | None:
    """ImageNet's classes of these folders, labelled by folder; None where the folders are not ImageNet's.

    Raises:
        InputError: a WordNet id that is not among ImageNet's 1000.
    """
    if folders and all(WORDNET_ID.fullmatch(folder) for folder in folders):
        rows = imagenet_rows(folders)
        assert rows is not None
    elif len(folders) >= _LEAST_NUMBERED and all(folder.isdecimal() for folder in folders):
        rows = [int(folder) for folder in folders]
        if max(rows) >= IMAGENET_CLASSES:
            return None
    else:
        return None
    open_clip: Any = require("open_clip", purpose="use CLIP's ImageNet class names")
    known = open_clip.IMAGENET_CLASSNAMES
    return make_classes({folder: [known[row]] for folder, row in zip(folders, rows, strict=True)})


def stratified(opened: LabelledSet, limit: int | None, *, seed: int) -> Items:
    """A seeded sample of a set in which each class has its share, in the stored order; all where there are no more.

    Images are lined up by class, shuffled within it, and every (N / limit)th is taken from a drawn start, so a class
    gets its share rounded up or down.

    Raises:
        InputError: ``limit`` is not a positive number.
    """
    if limit is not None and limit < 1:
        raise InputError(f"expected a limit of 1 image or more, got {limit}")
    items, count = opened.items, len(opened.items)
    if limit is None or count <= limit:
        return items
    chooser = np.random.RandomState(seed)  # its numbers never change (NEP 19)
    labels = items.labels
    line = np.concatenate([chooser.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)])
    at = np.floor((np.arange(limit) + chooser.uniform()) * count / limit).astype(np.intp)
    return items.take(line[at])


def shared_classes(clean: Sequence[PromptClass], shift: Sequence[PromptClass]) -> npt.NDArray[np.intp] | None:
    """Rows of the clean set's classes that a shift set has, in the shift set's order; None if it has others.

    Classes are the same if they are called the same.
    """
    rows = {item.names: row for row, item in enumerate(clean)}
    if any(item.names not in rows for item in shift):
        return None
    return np.array([rows[item.names] for item in shift], np.intp)
