"""Labelled embeddings and prompt rows in, what each name of a class does for it and to the others out."""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt

from edgeclip.evaluation.prompts.rows import IntArray, Margins, PromptRows, margins_of
from edgeclip.evaluation.statistics.paired import Hits, PairedDifference, paired_difference
from edgeclip.prompts import FloatArray


class NameOption(msgspec.Struct, frozen=True):
    """A class with some of its names, beside all of them; every other class as it is.

    Attributes:
        names: those that are kept.
        what: ``only NAME`` or ``without NAME``.
        difference: top-1 over all images.
        own_won, own_lost: images of the class that only these names, or only all names, label right.
        others_won, others_lost: likewise images of other classes.
    """

    names: list[str]
    what: str
    difference: PairedDifference
    own_won: int
    own_lost: int
    others_won: int
    others_lost: int

    @property
    def net(self) -> int:
        """Images more that are labelled right."""
        return self.difference.only_candidate - self.difference.only_reference


class ClassNames(msgspec.Struct, frozen=True):
    """A class of several names.

    Attributes:
        images: of the class.
        right: of them, with all names.
        options: fewer names, best first.
    """

    label: str
    names: list[str]
    images: int
    right: int
    options: list[NameOption]

    @property
    def winner(self) -> NameOption | None:
        """What labels most images right; None where that is all names together."""
        return self.options[0] if self.options and self.options[0].net > 0 else None

    @property
    def harmful(self) -> list[str]:
        """Names without which the interval lies above 0; each by itself, so one in forty by chance."""
        surer = [set(option.names) for option in self.options if option.difference.ci95[0] > 0]
        return [name for name in self.names if set(self.names) - {name} in surer]


def study_names(prompts: PromptRows, images: FloatArray, labels: IntArray) -> list[ClassNames]:
    """Every name alone and left out, for each class that has several; N images (N, D) of class (N,)."""
    scored = margins_of(images, labels, prompts.class_rows())
    found: list[ClassNames] = []
    for index, item in enumerate(prompts.classes):
        if len(item.names) > 1:
            own = labels == index
            options = [_option(prompts, images, labels, scored, index, keep) for keep in _parts(len(item.names))]
            options.sort(key=lambda option: -option.net)  # stable: of equals the one that comes first
            found.append(ClassNames(item.label, list(item.names), int(own.sum()), int(scored.hits[own].sum()), options))
    return found


def kept_names(prompts: PromptRows, chosen: dict[str, list[str]]) -> npt.NDArray[np.bool_]:
    """(K,) which names a table keeps, if the classes in ``chosen`` keep only those names."""
    owners, labels = prompts.owners, prompts.labels
    return np.array(
        [
            labels[owner] not in chosen or name in chosen[labels[owner]]
            for owner, name in zip(owners, prompts.names, strict=True)
        ]
    )


def _parts(count: int) -> list[tuple[int, ...]]:
    """Each of ``count`` names alone, then each left out; of two names these are the same."""
    alone: list[tuple[int, ...]] = [(index,) for index in range(count)]
    without = [tuple(other for other in range(count) if other != index) for index in range(count)]
    return alone + (without if count > 2 else [])


def _option(
    prompts: PromptRows, images: FloatArray, labels: IntArray, scored: Margins, index: int, keep: tuple[int, ...]
) -> NameOption:
    names = prompts.classes[index].names
    row = prompts.rows[np.flatnonzero(prompts.owners == index)[list(keep)]].sum(axis=(0, 1))
    mine = images @ (row / np.linalg.norm(row))  # (N,): the only cosines that change
    own = labels == index
    others = np.where(scored.rival_class == index, scored.second, scored.rival)
    hits: Hits = np.where(own, mine > scored.rival, scored.own > np.maximum(others, mine))
    won, lost = hits & ~scored.hits, scored.hits & ~hits
    left = [name for position, name in enumerate(names) if position not in keep]
    return NameOption(
        names=[names[position] for position in keep],
        what=f"only {names[keep[0]]}" if len(keep) == 1 else f"without {left[0]}",
        difference=paired_difference(scored.hits, hits),
        own_won=int((won & own).sum()),
        own_lost=int((lost & own).sum()),
        others_won=int((won & ~own).sum()),
        others_lost=int((lost & ~own).sum()),
    )
