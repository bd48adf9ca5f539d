"""A bundle, class names and templates in, a prompt table for that bundle out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgeclip.bundle import Bundle
from edgeclip.files import cache_dir
from edgeclip.prompts import PromptClass, PromptTable, build_table, content_hash
from edgeclip.training.load import load_text_tower


def table_for_bundle(
    bundle: Bundle,
    classes: Sequence[PromptClass],
    templates: Sequence[str],
    *,
    name: str,
    progress: Callable[[int, int], None] | None = None,
) -> PromptTable:
    """Build a table with the text encoder that the bundle's manifest names, or take it from the cache.

    The cache is keyed by everything that determines the rows: classes, synonyms, templates and the model's weights.

    Raises:
        ModelError: the text encoder cannot be loaded, or its weights are not those the bundle was made with.
    """
    model = bundle.manifest.model
    cached = cache_dir("tables") / f"{content_hash(classes, templates, model.id)}.safetensors"
    if cached.is_file():
        table = PromptTable.load(cached)
        return PromptTable(name, table.classes, table.embeddings, table.templates, table.model_id)
    table = build_table(load_text_tower(model), classes, templates, name=name, model_id=model.id, progress=progress)
    table.save(cached)
    return table
