"""WordNet's two files of nouns in, nouns with their senses out, and how alike two senses are.

The files are those of Debian's package ``wordnet-base`` (WordNet 3.0, format as in its manual page wndb(5WN)).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgeclip.errors import TrainingError

DATA, INDEX = "data.noun", "index.noun"
_ABOVE = ("@", "@i")  # a kind of, an instance of


class Sense(NamedTuple):
    """One meaning: the nouns that have it, the more general ones right above it, and what it is in a few words."""

    nouns: tuple[str, ...]
    above: tuple[str, ...]
    gloss: str


class WordNet:
    """Nouns and their meanings.

    Args:
        senses: by id, ``n`` and eight digits, as ImageNet names its classes.
        senses_of: ids of each noun's senses, the commonest first; nouns in lower case with spaces.
    """

    def __init__(self, senses: dict[str, Sense], senses_of: dict[str, tuple[str, ...]]) -> None:
        self.senses = senses
        self.senses_of = senses_of

    @cached_property
    def ancestors(self) -> dict[str, frozenset[str]]:
        """A sense and everything above it, by its id."""
        found: dict[str, frozenset[str]] = {}

        def climb(sense: str) -> frozenset[str]:
            if sense not in found:
                found[sense] = frozenset({sense}).union(*map(climb, self.senses[sense].above))
            return found[sense]

        for sense in self.senses:
            climb(sense)
        return found

    def likeness(self, senses: Sequence[str], others: Sequence[str]) -> npt.NDArray[np.float32]:
        """Lin's similarity (1998) of each of S senses and each of O others: (S, O), from 0 to 1.

        Twice the information of the closest thing that both are kinds of, over the sum of their own. A sense's
        information is the negative logarithm of the share of ``senses`` that lie at or below it.
        """
        count = Counter(above for sense in senses for above in self.ancestors[sense])
        for above in {above for other in others for above in self.ancestors[other]} - set(count):
            count[above] = 1
        information = {sense: -math.log(number / len(senses)) for sense, number in count.items()}
        below: dict[str, list[int]] = {}
        for column, other in enumerate(others):
            for above in self.ancestors[other]:
                below.setdefault(above, []).append(column)
        shared = np.zeros((len(senses), len(others)), np.float32)
        for row, sense in enumerate(senses):
            for above in sorted(self.ancestors[sense], key=lambda each: information[each]):  # the closest comes last
                shared[row, below.get(above, [])] = information[above]
        own = np.array([information[sense] for sense in senses])[:, None]
        theirs = np.array([information[other] for other in others])[None, :]
        result: npt.NDArray[np.float32] = (2 * shared / np.maximum(own + theirs, 1e-6)).astype(np.float32)
        return result


def read_wordnet(folder: Path) -> WordNet:
    """Read ``data.noun`` and ``index.noun``.

    Raises:
        TrainingError: absent, or not in WordNet's format.
    """
    try:
        senses = dict(_sense(line) for line in _lines(folder / DATA))
        senses_of = dict(_index_entry(line) for line in _lines(folder / INDEX))
    except OSError as error:
        raise TrainingError(
            f"expected WordNet's {DATA} and {INDEX} in {folder} ({error.strerror}): run apt install wordnet-base, "
            "or set words.wordnet to the folder that holds them"
        ) from error
    except (ValueError, IndexError) as error:
        raise TrainingError(f"expected WordNet 3.0's nouns in {folder}, got a line that is none: {error}") from error
    named = [*(sense.above for sense in senses.values()), *senses_of.values()]
    if not senses or not senses_of or not senses.keys() >= set().union(*named):
        raise TrainingError(f"expected whole files {DATA} and {INDEX} of one WordNet in {folder}: get them again")
    return WordNet(senses, senses_of)


def _lines(path: Path) -> list[str]:
    """The lines of a file without its licence, which is indented."""
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("  ")]


def _sense(line: str) -> tuple[str, Sense]:
    """``offset file n count noun id … pointers (symbol offset part ends)… | gloss``; the count is hexadecimal."""
    fields, _, gloss = line.partition("|")
    field = fields.split()
    nouns, after = int(field[3], 16), 4 + 2 * int(field[3], 16)
    pointers = [field[after + 1 + 4 * i : after + 5 + 4 * i] for i in range(int(field[after]))]
    return f"n{field[0]}", Sense(
        nouns=tuple(field[4 + 2 * i].replace("_", " ").lower() for i in range(nouns)),
        above=tuple(f"n{offset}" for symbol, offset, part, _ in pointers if symbol in _ABOVE and part == "n"),
        gloss=gloss.partition('"')[0].strip(" ;"),  # examples follow in quotation marks
    )


def _index_entry(line: str) -> tuple[str, tuple[str, ...]]:
    """``noun n count … offsets``, one offset for each sense."""
    field = line.split()
    return field[0].replace("_", " "), tuple(f"n{offset}" for offset in field[-int(field[2]) :])
