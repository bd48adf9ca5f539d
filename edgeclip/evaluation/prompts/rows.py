"""Class names and templates in, the unit row of every name × template out, and class rows of any part of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from edgeclip.bundle import Bundle
from edgeclip.evaluation.statistics.metrics import predictions
from edgeclip.export.prompt_table import BundleTextEncoder
from edgeclip.hits import Hits
from edgeclip.prompts import FloatArray, PromptClass, encode_texts, unit_rows

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

    def class_rows(self, templates: Sequence[int] | None = None, *, names: Mapping[str, list[str]] = {}) -> FloatArray:
        """Rows (C, D) as a table of these templates would have them (all if None).

        Args:
            names: of a class by its label, those that the table keeps; all of every other class.
        """
        if names:
            kept = [
                name in names.get(self.labels[owner], (name,))
                for owner, name in zip(self.owners, self.names, strict=True)
            ]
            own = self._by_class(self.rows * np.array(kept)[:, None, None])
        else:
            own = self._by_template
        return unit_rows((own if templates is None else own[:, list(templates)]).sum(axis=1))

    def class_row(self, row: int, names: Sequence[str]) -> FloatArray:
        """One class's row (D,) of all templates and of these of its names."""
        first = int(np.searchsorted(self.owners, row))
        kept = [first + self.classes[row].names.index(name) for name in names]
        found: FloatArray = unit_rows(self.rows[kept].sum(axis=(0, 1))[None])[0]
        return found

    def without_template(self, template: int) -> FloatArray:
        """Rows (C, D) of all templates but one."""
        return unit_rows(self._by_template.sum(axis=1) - self._by_template[:, template])

    @cached_property
    def _by_template(self) -> FloatArray:
        """(C, T, D) each template's share in each class: the sum over the class's names, not of unit length."""
        return self._by_class(self.rows)

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
    """Encode every name × template with the text encoder that a bundle was made with; no prompt is encoded twice.

    Args:
        progress: called with (prompts done, prompts in all) after each batch.

    Raises:
        ModelError: the text encoder cannot be loaded, or its weights are not those the bundle was made with.
        PromptError: an embedding that is not finite.
    """
    prompts = [template.replace("{}", name) for item in classes for name in item.names for template in templates]
    texts = list(dict.fromkeys(prompts))
    row_of = {text: row for row, text in enumerate(texts)}
    encoded = encode_texts(BundleTextEncoder(bundle), texts, progress=progress)
    rows = encoded[[row_of[text] for text in prompts]].reshape(-1, len(templates), encoded.shape[1])
    return PromptRows(tuple(classes), tuple(templates), rows)


def hits_of(images: FloatArray, labels: IntArray, rows: FloatArray) -> Hits:
    """(N,) which unit embeddings (N, D) are labelled right by rows (C, D); a tie is no hit."""
    hits: Hits = predictions(images, rows, labels).ranks == 0
    return hits
