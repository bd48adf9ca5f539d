"""What the commands share: consoles, arguments, progress bars."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from edgeclip.bundle import Bundle
from edgeclip.extras import require
from edgeclip.prompts import PromptClass, PromptTable
from edgeclip.spec import ModelOrigin

console = Console()
notices = Console(stderr=True)

BundleArgument = Annotated[str, typer.Argument(metavar="BUNDLE", help="Bundle folder or .tar, or the word starter.")]
ClassesHelp = (
    'Class names: "mug, bottle, phone", or a file (one a line, or JSON). Synonyms: "mobile phone | smartphone".'
)
TemplatesHelp = "Prompt templates: simple, imagenet (CLIP's 80) or a file with one a line, {} standing for the name."


def progress_bars() -> Progress:
    """Bars on stderr that vanish when done; none where stderr is no terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=notices,
        transient=True,
        disable=not notices.is_terminal,
    )


def build_table(
    bundle: Bundle, classes: Sequence[PromptClass], templates: Sequence[str], *, name: str, **more: Any
) -> PromptTable:
    """Encode classes × templates with the bundle's own text encoder, behind a progress bar.

    Raises:
        MissingExtraError: the text encoder's libraries are not installed.
        EdgeclipError: its weights cannot be had, or are not the ones that the bundle was made with.
    """
    extra = "demo" if bundle.manifest.model.origin.loader == "edgeclip" else "export"
    require("torch", purpose="encode class names", extra=extra)
    from edgeclip.export.prompt_table import table_for_bundle

    with progress_bars() as bars:
        task = bars.add_task("prompts", total=None)
        return table_for_bundle(
            bundle,
            classes,
            templates,
            name=name,
            progress=lambda done, total: bars.update(task, completed=done, total=total),
            **more,
        )


def has_text_encoder(bundle: Bundle) -> bool:
    """Whether the libraries of the bundle's text encoder are installed, as far as a quick look can tell."""
    libraries = ("torch", _text_library(bundle.manifest.model.origin))
    return all(importlib.util.find_spec(name) for name in libraries)


def _text_library(origin: ModelOrigin) -> str:
    """The module that a model's text tower comes from, or its tokenizer."""
    if origin.loader != "edgeclip":
        return origin.loader
    from edgeclip.training.checkpoint.files import CONFIG, checkpoint_folder

    tower = "minilm"
    # What is damaged is reported when it is loaded; older checkpoints have MiniLM and do not say so.
    with suppress(ValueError, OSError, KeyError, TypeError):
        tower = json.loads((checkpoint_folder(origin.name) / CONFIG).read_bytes())["model"]["text"]["name"]
    if tower == "minilm":
        return "all_minilm_l6_v2"
    return "transformers" if tower.startswith("hf:") else "open_clip"


def split_names(names: str) -> list[str]:
    """``"a, b"`` as ``["a", "b"]``."""
    return [name.strip() for name in names.split(",") if name.strip()]
