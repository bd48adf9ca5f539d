"""A bundle, class names and templates in, a prompt table for that bundle out; no prompt is encoded twice."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from edgeclip.bundle import Bundle
from edgeclip.calibration.embeddings import EmbeddingStore
from edgeclip.errors import PromptError
from edgeclip.files import cache_dir
from edgeclip.prompts import FloatArray, PromptClass, PromptTable, TextEncoder, encode_table
from edgeclip.training.load import load_text_tower


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

    Args:
        name: of the table.
        background: what means "nothing of interest": rows after those of the classes, or a class by its label.
        progress: called with (prompts done, prompts in all) after each batch.

    Raises:
        PromptError: a background label is that of a class and comes with other names.
        TableError: nothing but background.
        ModelError: the text encoder cannot be loaded, or its weights are not those the bundle was made with.
    """
    table = encode_table(
        BundleTextEncoder(bundle),
        _with_background(classes, background),
        templates,
        name=name,
        model_id=bundle.manifest.model.id,
        progress=progress,
    )
    return dataclasses.replace(table, background=tuple(item.label for item in background))


class BundleTextEncoder:
    """The text encoder that a bundle was made with; what it once said of a text is read from the cache.

    The weights are loaded when the first text is asked for that was not encoded before, by this or an earlier process.

    Args:
        bundle: an opened bundle.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._model = bundle.manifest.model
        key = hashlib.sha256(f"text of {self._model.id}".encode()).hexdigest()
        self._width = bundle.manifest.encoder.embedding_dim
        self._store = EmbeddingStore(cache_dir("text-embeddings") / f"{key}.rows", self._width, key)
        self._tower: TextEncoder | None = None

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
            # What is not finite is refused by the caller and must not be found again.
            if np.isfinite(made).all():
                self._store.add(list(missing), made)
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
