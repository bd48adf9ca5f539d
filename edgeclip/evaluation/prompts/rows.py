"""Class names and templates in, the unit row of every name × template out, and class rows of any part of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from edgeclip.bundle import Bundle
from edgeclip.evaluation.statistics.metrics import predictions
from edgeclip.evaluation.statistics.paired import Hits
from edgeclip.files import atomic_file, cache_dir
from edgeclip.prompts import FloatArray, PromptClass, content_hash, encode_texts, unit_rows
from edgeclip.training.load import load_text_tower

_BLOCK = 8192  # images scored at once: 1,000 classes take 32 MB

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PromptRows:
    """What a table averages, before it is averaged.

    Attributes:
        classes: C classes, with K names in all.
        templates: T templates.
        rows: (K, T, D) float32 unit rows; the names of the first class come first.
    """

    classes: tuple[PromptClass, ...]
    templates: tuple[str, ...]
    rows: FloatArray

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The C labels."""
        return tuple(item.label for item in self.classes)

    @cached_property
    def owners(self) -> IntArray:
        """(K,) class of each name."""
        return np.repeat(np.arange(len(self.classes)), [len(item.names) for item in self.classes])

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The K names in row order."""
        return tuple(name for item in self.classes for name in item.names)

    def class_rows(
        self, templates: Sequence[int] | None = None, *, kept: npt.NDArray[np.bool_] | None = None
    ) -> FloatArray:
        """Rows (C, D) as a table of these templates would have them (all if None), of the names (K,) that are kept."""
        if kept is None:
            own = self.by_template if templates is None else self.by_template[:, list(templates)]
            return unit_rows(own.sum(axis=1))
        own = self.rows if templates is None else self.rows[:, list(templates)]
        return unit_rows(self._by_class(own.sum(axis=1) * kept[:, None]))

    def without_template(self, template: int) -> FloatArray:
        """Rows (C, D) of all templates but one."""
        return unit_rows(self._sum - self.by_template[:, template])

    @cached_property
    def by_template(self) -> FloatArray:
        """(C, T, D) each template's share in each class: the sum over the class's names, not of unit length."""
        return self._by_class(self.rows)

    @cached_property
    def _sum(self) -> FloatArray:
        total: FloatArray = self.by_template.sum(axis=1)
        return total  # (C, D)

    def _by_class(self, rows: FloatArray) -> FloatArray:
        starts = np.flatnonzero(np.diff(self.owners, prepend=-1))
        summed: FloatArray = np.add.reduceat(rows, starts, axis=0)
        return summed


def prompt_rows(
    bundle: Bundle,
    classes: Sequence[PromptClass],
    templates: Sequence[str],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> PromptRows:
    """Encode every name × template with the text encoder that a bundle was made with, or take them from the cache.

    Args:
        progress: called with (prompts done, prompts in all) after each batch.

    Raises:
        ModelError: the text encoder cannot be loaded, or its weights are not those the bundle was made with.
        PromptError: an embedding that is not finite.
    """
    model = bundle.manifest.model
    cached = cache_dir("prompt-rows") / f"{content_hash(classes, templates, model.id)}.npy"
    if cached.is_file():
        rows: FloatArray = np.load(cached)
    else:
        prompts = [template.replace("{}", name) for item in classes for name in item.names for template in templates]
        texts = list(dict.fromkeys(prompts))
        row_of = {text: row for row, text in enumerate(texts)}
        encoded = encode_texts(load_text_tower(model), texts, progress=progress)
        rows = encoded[[row_of[text] for text in prompts]].reshape(-1, len(templates), encoded.shape[1])
        with atomic_file(cached) as temporary:
            np.save(temporary, rows)
    return PromptRows(tuple(classes), tuple(templates), rows)


@dataclass(frozen=True)
class Margins:
    """What a table's rows say of labelled images.

    Attributes:
        own: (N,) cosine with the row of the true class.
        rival: (N,) highest cosine with another class's row.
        rival_class: (N,) which class that is.
        second: (N,) highest cosine with a class that is neither; -1 where there are two classes.
    """

    own: FloatArray
    rival: FloatArray
    rival_class: IntArray
    second: FloatArray

    @property
    def hits(self) -> Hits:
        """(N,) which images are labelled right; a tie is no hit."""
        return self.own > self.rival

    def take(self, chosen: IntArray) -> Margins:
        """The same of some images."""
        return Margins(self.own[chosen], self.rival[chosen], self.rival_class[chosen], self.second[chosen])


def margins_of(images: FloatArray, labels: IntArray, rows: FloatArray) -> Margins:
    """Score unit embeddings (N, D) of known class (N,) against rows (C, D) of two classes or more."""
    own, rival, rival_class, second = [], [], [], []
    for start in range(0, len(images), _BLOCK):
        truth = labels[start : start + _BLOCK]
        scores = images[start : start + _BLOCK] @ rows.T  # (B, C)
        at = np.arange(len(truth))
        own.append(scores[at, truth])
        scores[at, truth] = -1
        best = scores.argmax(axis=1)
        rival.append(scores[at, best])
        rival_class.append(best)
        scores[at, best] = -1
        second.append(scores.max(axis=1))
    return Margins(np.concatenate(own), np.concatenate(rival), np.concatenate(rival_class), np.concatenate(second))


def hits_of(images: FloatArray, labels: IntArray, rows: FloatArray) -> Hits:
    """(N,) which unit embeddings (N, D) are labelled right by rows (C, D); a tie is no hit."""
    hits: Hits = predictions(images, rows, labels).ranks == 0
    return hits
