"""edgeclip: CLIP-style models on the edge, every variant proved. Importing this loads neither torch nor an engine."""

from importlib.metadata import version as _version

from edgeclip.bundle import Bundle
from edgeclip.errors import EdgeclipError
from edgeclip.prompts import PromptClass, PromptTable, build_table, load_templates, make_classes, parse_classes
from edgeclip.spec import EncoderSpec, Manifest, ModelIdentity, ModelOrigin, PreprocessSpec, Variant

__version__ = _version("edgeclip")

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
    "parse_classes",
]
