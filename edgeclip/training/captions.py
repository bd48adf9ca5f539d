"""A row of a table or a JSON object in, the captions in it out; and what is said of a sample, chosen at random."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from typing import Any

from edgeclip.training.pairs import Classes, Pair

# Where no column is named, the first of these that a row has.
IMAGE_KEYS = ("image", "filepath", "file_name", "filename", "path", "file")
CAPTION_KEYS = ("captions", "caption", "text", "title", "sentences")
LABEL_KEYS = ("label", "class", "class_name", "category")
NO_CAPTIONS = "-"  # in the place of a column's name: a table of images alone


def captions_of(row: Any, keys: Sequence[str], *, what: str = "caption") -> list[str]:
    """The captions of a row: one text or a list of them.

    Raises:
        ValueError: no such key, or something else in it.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"expected an object with a {what}, got {type(row).__name__}")
    key = next((key for key in keys if key in row), None)
    if key is None:
        raise ValueError(
            f"expected a {what} under {' or '.join(keys)}, got only {', '.join(map(str, row)) or 'nothing'}"
        )
    value = row[key]
    captions = [value] if isinstance(value, str) else value
    if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
        raise ValueError(f"expected a text or a list of texts under {key}, got {type(value).__name__}")
    return [text.strip() for text in captions if text.strip()]


class Sayings:
    """Chooses what is said of a sample: one of its captions, or one of its class's names in one of the templates.

    Args:
        classes: names of each class.
        templates: ``{}`` stands for the name.
    """

    def __init__(self, classes: Classes, templates: Sequence[str]) -> None:
        self.classes, self.templates = classes, tuple(templates)

    def choose(self, pair: Pair, rng: random.Random) -> tuple[str, int] | None:
        """(text, group), or None if nothing can be said. Of samples that say the same the group is the same."""
        if pair.captions:
            text = rng.choice(pair.captions)
            return text, text_group(text)
        if 0 <= pair.label < len(self.classes):
            name = rng.choice(self.classes[pair.label])
            return rng.choice(self.templates).replace("{}", name), pair.label
        return None


def text_group(text: str) -> int:
    """A number of 62 bits for a text: the same in every process, so that gathered batches agree; above all labels."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 2 | 1 << 61
