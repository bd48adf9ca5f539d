"""A bundle, class names and templates in, a prompt table for that bundle out; no prompt is encoded twice."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgeclip.bundle import Bundle
from edgeclip.calibration.embeddings import EmbeddingStore
from edgeclip.errors import PromptError
from edgeclip.files import cache_dir
from edgeclip.prompts import FloatArray, PromptClass, PromptTable, encode_table, name_alike
from edgeclip.training.load import load_text_tower

if TYPE_CHECKING:
    from edgeclip.training.model import TextTower

_SHOWN_CHARACTERS = 60  # of a prompt that is cut
_log = logging.getLogger("edgeclip")


def table_for_bundle(
    bundle: Bundle,
    classes: Sequence[PromptClass],
    templates: Sequence[str],
    *,
    name: str,
    background: Sequence[PromptClass] = (),
    progress: Callable[[int, int], None] | None = None,
) -> PromptTable:
    """Build a table with the text encoder that the bundle's manifest names.

    Classes that the model cannot tell apart, and prompts that it reads only in part, are named in warnings.

    Args:
        name: of the table.
        background: what means "nothing of interest": rows after those of the classes, or a class by its label.
        progress: called with (prompts done, prompts in all) after each batch.

    Raises:
        PromptError: a background label is that of a class and comes with other names, or all rows are equal.
        TableError: nothing but background.
        ModelError: the text encoder cannot be loaded, or its weights are not those the bundle was made with.
    """
    encoder = BundleTextEncoder(bundle)
    table = encode_table(
        encoder,
        _with_background(classes, background),
        templates,
        name=name,
        model_id=bundle.manifest.model.id,
        progress=progress,
    )
    if encoder.too_long:
        _log.warning(
            "table %s: %d prompts are longer than the model's context and are cut, such as %s",
            name,
            len(encoder.too_long),
            ascii(encoder.too_long[0][:_SHOWN_CHARACTERS] + "…"),
        )
    name_alike(table)
    return dataclasses.replace(table, background=tuple(item.label for item in background))


class BundleTextEncoder:
    """The text encoder that a bundle was made with; what it once said of a text is read from the cache.

    The weights are loaded when the first text is asked for that was not encoded before, by this or an earlier process.

    Args:
        bundle: an opened bundle.

    Attributes:
        too_long: those of the texts encoded so far that are longer than the model's context, and so cut.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._model = bundle.manifest.model
        key = hashlib.sha256(f"whole text of {self._model.id}".encode()).hexdigest()
        self._width = bundle.manifest.encoder.embedding_dim
        self._store = EmbeddingStore(cache_dir("text-embeddings") / f"{key}.rows", self._width, key)
        self._tower: TextTower | None = None
        self.too_long: list[str] = []

    def encode_text(self, texts: Sequence[str]) -> FloatArray:
        """Embeddings (N, D) float32 as the text encoder gives them, not normalised.

        Raises:
            ModelError: the text encoder cannot be loaded, or its weights are not those the bundle was made with.
        """
        digests = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
        rows = {digest: row for digest in digests if (row := self._store.get(digest)) is not None}
        missing = {digest: text for digest, text in zip(digests, texts, strict=True) if digest not in rows}
        if missing:
            if self._tower is None:
                self._tower = load_text_tower(self._model)
            made = self._tower.encode_text(list(missing.values()))
            cut = self._tower.too_long(list(missing.values()))
            self.too_long += cut
            # What is not finite is refused by the caller and must not be found again; what is cut is to be told again.
            whole = [row for row, text in enumerate(missing.values()) if text not in cut]
            if np.isfinite(made).all():
                self._store.add([list(missing)[row] for row in whole], made[whole])
            rows.update(zip(missing, made, strict=True))
        return np.stack([rows[digest] for digest in digests]) if digests else np.empty((0, self._width), np.float32)


def _with_background(classes: Sequence[PromptClass], background: Sequence[PromptClass]) -> tuple[PromptClass, ...]:
    """The classes, then those of the background that are not among them."""
    names_of = {item.label: item.names for item in classes}
    for item in background:
        if item.label in names_of and item.names not in ((item.label,), names_of[item.label]):
            raise PromptError(
                f"background {item.label!r} is a class too: expected the names {', '.join(names_of[item.label])}, "
                f"got {', '.join(item.names)}; give them with the class only"
            )
    return (*classes, *(item for item in background if item.label not in names_of))
