"""Class folders and a file of names, or the usual name of a set, in; one prompt class a folder out. Templates likewise.

The usual names are those of CLIP_benchmark: ``imagenet1k``, ``cifar10``, ``flowers``, … Its two files of names and
templates, objects of set → list, can be given as they are; ImageNet's come with open_clip, and the WordNet ids of its
classes, by which folders of ImageNet and of its variants are called, with timm.
"""

from __future__ import annotations

import importlib.util
import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeclip.class_names import check_templates
from edgeclip.documents import read_json
from edgeclip.errors import InputError, PromptError, SourceError
from edgeclip.extras import require
from edgeclip.prompts import PromptClass, load_templates, make_classes
from edgeclip.training.data.labelled import read_class_names

_IMAGENET = "imagenet1k"
_ALIASES = {"imagenet": _IMAGENET, "imagenet-1k": _IMAGENET, "imagenet_1k": _IMAGENET}
_NAMES, _TEMPLATES = "en_classnames.json", "en_zeroshot_classification_templates.json"
# Sets whose classes are called as their own folders or labels are, so that CLIP_benchmark has templates only.
_SELF_NAMED = frozenset(
    {"cifar10", "cifar100", "food101", "sun397", "cars", "fgvc_aircraft", "dtd", "stl10", "resisc45"}
)
# What makers of shards put beside them, or beside the folder that they lie in.
_BESIDE = ("classes.json", "classnames.txt")

IMAGENET_CLASSES = 1000
WORDNET_ID = re.compile(r"n\d{8}")

_log = logging.getLogger("edgeclip")

Names = list[list[str]]


def class_prompts(folders: Sequence[str], names: Path | None, *, class_set: str = "") -> tuple[PromptClass, ...]:
    """One class a folder: names from a file or a set, else the folder's name with underscores read as spaces.

    Args:
        names: JSON object of folder → name or list of names; or names in the order of the folders (a JSON list, or text
            with one a line); or CLIP_benchmark's file, of which ``class_set`` is taken.
        class_set: the usual name of a set whose names to take, ``imagenet`` say. Folders that are called like its
            classes are found by name, ImageNet's also by WordNet id (``n01443537``), however many of the thousand there
            are; others by their order, of which there must be as many. Of sets that have no other names (``cifar10``)
            the folders' are taken.

    Raises:
        InputError: a folder without a name, another number of names, WordNet ids that are none of ImageNet's or stand
            beside other names, an unreadable file or an unknown set.
        MissingExtraError: ImageNet's names or ids are needed and open_clip or timm is not installed.
    """
    found = _names(names, class_set) if names or class_set else {}
    if isinstance(found, Mapping):
        found = {unicodedata.normalize("NFC", folder): given for folder, given in found.items()}
        if found and (missing := [folder for folder in folders if folder not in found]):
            raise InputError(f"{names} names no class for the folders {', '.join(missing[:5])}: add them")
        return make_classes({folder: _several(found.get(folder, folder.replace("_", " "))) for folder in folders})
    is_imagenet = _ALIASES.get(class_set, class_set) == _IMAGENET and len(found) == IMAGENET_CLASSES
    if is_imagenet and (rows := imagenet_rows(folders)) is not None:
        return make_classes({folder: found[row] for folder, row in zip(folders, rows, strict=True)})
    row_of = {plain_name(name): row for row, given in enumerate(found) for name in given}
    if all(plain_name(folder) in row_of for folder in folders):
        return make_classes({folder: found[row_of[plain_name(folder)]] for folder in folders})
    if len(found) != len(folders):
        raise InputError(
            f"expected names for {len(folders)} classes ({', '.join(folders[:3])}, …), got the {len(found)} of "
            f"{class_set or names}: give a JSON object of folder → name as `names`"
        )
    return make_classes(dict(zip(folders, found, strict=True)))


def imagenet_rows(folders: Sequence[str]) -> list[int] | None:
    """Which of ImageNet's 1000 classes each folder is by its WordNet id; None where no folder is called by one.

    Raises:
        InputError: some are ids and some are not, or an id is none of ImageNet's.
        MissingExtraError: timm, which knows the ids, is not installed.
    """
    others = [folder for folder in folders if not WORDNET_ID.fullmatch(folder)]
    if len(others) == len(folders):
        return None
    if others:
        raise InputError(
            f"expected folders that are all called by WordNet id, got {len(folders) - len(others)} ids beside "
            f"{', '.join(others[:3])}: rename or remove these, or give a JSON object of folder → name as `names`"
        )
    timm: Any = require("timm.data", purpose="read ImageNet's WordNet ids", extra="export")
    index = {wordnet_id: row for row, wordnet_id in enumerate(timm.ImageNetInfo("imagenet-1k").label_names())}
    if strange := [folder for folder in folders if folder not in index]:
        raise InputError(
            f"expected WordNet ids of ImageNet's {IMAGENET_CLASSES} classes, got {', '.join(strange[:3])}: "
            "pass `names` FILE"
        )
    if len(folders) < IMAGENET_CLASSES:
        _log.warning(
            "%d of ImageNet's %d classes are there: images are scored among these %d alone",
            len(folders),
            IMAGENET_CLASSES,
            len(folders),
        )
    return [index[folder] for folder in folders]


def set_prompts(
    count: int, names: Path | None, *, class_set: str, what: str, beside: Path | None
) -> tuple[PromptClass, ...]:
    """The classes of labels that are numbers below ``count``, with all names of the file or set, whose order is theirs.

    Args:
        beside: a file of names to take where neither is given.

    Raises:
        SourceError: no names are given.
        InputError: fewer names than labels, an unreadable file or an unknown set.
    """
    if not names and (not class_set or class_set in _SELF_NAMED):
        names, class_set = beside, ""
    if not names and not class_set:
        raise SourceError(
            f"expected the names of the classes 0 to {count - 1} of {what}, got none: put classes.json beside it, or "
            "pass `names` (a file) or `classes` (a set)"
        )
    found = _names(names, class_set)
    if isinstance(found, Mapping):
        found = [_several(found.get(str(index), "")) for index in range(max(count, len(found)))]
    if len(found) < count or not all(all(given) for given in found):
        raise InputError(
            f"expected names of the classes 0 to {count - 1} of {what}, got {len(found)} of them or empty ones in "
            f"{class_set or names}"
        )
    taken: Counter[str] = Counter()
    classes = {}
    for given in found:  # two classes of a set may share a name
        taken[given[0]] += 1
        classes[given[0] if taken[given[0]] == 1 else f"{given[0]} ({taken[given[0]]})"] = given
    return make_classes(classes)


def set_templates(name_or_file: str, class_set: str = "") -> tuple[str, ...]:
    """Templates as ``load_templates`` gives them; also those of a set, and of a file of sets.

    Args:
        name_or_file: empty for those that are usual for ``class_set``, or ``simple`` where there is none.

    Raises:
        PromptError: no such file or set, or a template without exactly one placeholder.
    """
    key = _ALIASES.get(class_set, class_set)
    path = Path(name_or_file)
    if not name_or_file:
        if not key:
            return load_templates("simple")
        if key == _IMAGENET:
            return load_templates("imagenet")
        path = _asset(_TEMPLATES, f"the templates of {class_set}", "templates")
    if path.suffix == ".json" and path.is_file() and isinstance(sets := _json(path, PromptError), dict):
        return check_templates(_of_set(sets, key, path), str(path))
    return load_templates(name_or_file)


def names_beside(file: Path | None) -> Path | None:
    """The file of class names that lies beside a file of images, or one folder up."""
    places = [folder / name for folder in (file.parent, file.parent.parent) for name in _BESIDE] if file else []
    return next((place for place in places if place.is_file()), None)


def _names(path: Path | None, class_set: str) -> Mapping[str, Any] | Names:
    """Names by folder, or in the order of labels."""
    key = _ALIASES.get(class_set, class_set)
    if path is None:
        if key in _SELF_NAMED:
            return {}
        if key == _IMAGENET:
            open_clip: Any = require("open_clip", purpose="use CLIP's ImageNet class names")
            return [[name] for name in open_clip.IMAGENET_CLASSNAMES]
        path = _asset(_NAMES, f"the class names of {class_set}", "names")
    if path.suffix != ".json":
        return read_class_names(path)
    given = _json(path, InputError)
    if isinstance(given, dict) and key in _SELF_NAMED and key not in given and _IMAGENET in given:
        return {}
    if isinstance(given, dict) and key and (key in given or _of_sets(given)):
        return [_several(name) for name in _of_set(given, key, path)]
    if isinstance(given, dict):
        return given
    return read_class_names(path)


def _json(path: Path, error: type[InputError]) -> dict[str, Any] | list[Any]:
    found = read_json(path, object, error=error)
    if not isinstance(found, dict | list):
        raise error(f"expected a JSON object of folder → class name at {path}, got {type(found).__name__}")
    return found


def _of_sets(given: Mapping[str, Any]) -> bool:
    return all(isinstance(value, list) for value in given.values())


def _of_set(sets: Mapping[str, Any], key: str, path: Path) -> list[str]:
    if not key:
        raise PromptError(f"expected the name of a set in {path}, got none: pass `classes`, one of {', '.join(sets)}")
    if not isinstance(sets.get(key), list):
        raise PromptError(f"expected classes out of {', '.join(sets)} in {path}, got {key!r}")
    return [text for item in sets[key] for text in _several(item)[:1]]


def _asset(name: str, what: str, option: str) -> Path:
    """A file of CLIP_benchmark's, if that is installed."""
    found = importlib.util.find_spec("clip_benchmark")
    for place in (found.submodule_search_locations or ()) if found else ():
        if (path := Path(place) / "datasets" / name).is_file():
            return path
    raise PromptError(f"{what} come with clip_benchmark, which is not installed: pass {option} FILE (its {name}, say)")


def _several(given: Any) -> list[str]:
    if not isinstance(given, str | list) or not all(isinstance(name, str) for name in given):
        raise InputError(f"expected a class's name, or a list of its names, got {given!r}: mend the file of names")
    return [given] if isinstance(given, str) else given


def plain_name(name: str) -> str:
    """What a class or its folder is called, without regard to case, underscores and how an accent is written."""
    return unicodedata.normalize("NFC", name).replace("_", " ").strip().casefold()
