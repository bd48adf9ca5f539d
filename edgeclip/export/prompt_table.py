"""A bundle, class names and templates in, a prompt table for that bundle out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from edgeclip.bundle import Bundle
from edgeclip.errors import PromptError
from edgeclip.files import cache_dir
from edgeclip.prompts import PromptClass, PromptTable, build_table, content_hash
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
    """Build a table with the text encoder that the bundle's manifest names, or take it from the cache.

    The cache is keyed by everything that determines the rows: classes, synonyms, templates and the model's weights.

    Args:
        name: of the table.
        background: what means "nothing of interest": rows after those of the classes, or a class by its label.
        progress: called with (prompts done, prompts in all) after each batch.

    Raises:
        PromptError: a background label is that of a class and comes with other names.
        TableError: nothing but background.
        ModelError: the text encoder cannot be loaded, or its weights are not those the bundle was made with.
    """
    model = bundle.manifest.model
    classes = _with_background(classes, background)
    cached = cache_dir("tables") / f"{content_hash(classes, templates, model.id)}.safetensors"
    if cached.is_file():
        table = PromptTable.load(cached)
    else:
        table = build_table(load_text_tower(model), classes, templates, name=name, model_id=model.id, progress=progress)
        table.save(cached)  # without its background, which the rows do not depend on
    return dataclasses.replace(table, name=name, background=tuple(item.label for item in background))


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
