"""edgeclip: CLIP-style models on the edge, every variant proved. Importing this loads neither torch nor an engine."""

from typing import TYPE_CHECKING as _TYPE_CHECKING

from edgeclip.bundle import Bundle
from edgeclip.errors import EdgeclipError
from edgeclip.prompts import PromptClass, PromptTable, build_table, load_templates, make_classes, parse_classes
from edgeclip.spec import EncoderSpec, Manifest, ModelIdentity, ModelOrigin, PreprocessSpec, Variant
from edgeclip.version import __version__

if _TYPE_CHECKING:
    from edgeclip.runtime.labeller import Labeller as _Labeller

__all__ = [
    "Bundle",
    "EdgeclipError",
    "EncoderSpec",
    "Manifest",
    "ModelIdentity",
    "ModelOrigin",
    "PreprocessSpec",
    "PromptClass",
    "PromptTable",
    "Variant",
    "__version__",
    "build_table",
    "load_templates",
    "make_classes",
    "open",
    "parse_classes",
]


def open(
    bundle: str, *, variant: str | None = None, engine: str | None = None, threads: int | None = None
) -> "_Labeller":
    """Open a bundle for labelling, with the fastest variant and engine that are proved on this machine.

    ::

        for event in edgeclip.open("starter").stream("rtsp://camera/stream", table="objects"):
            print(event.kind, event.label)

    Args:
        bundle: a folder, a ``.tar``, or the word ``starter``.
        variant, engine: restrict the choice.
        threads: CPU threads an inference; None for all.

    Raises:
        EdgeclipError: the bundle cannot be trusted, or nothing in it runs here.
    """
    from edgeclip.runtime.labeller import Labeller

    return Labeller(Bundle.open(bundle), variant=variant, engine=engine, threads=threads)
