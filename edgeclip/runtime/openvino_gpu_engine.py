"""An ONNX graph and a batch in, embeddings out: OpenVINO on Intel's GPUs."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from edgeclip.runtime.engine import CPU_LAYOUT
from edgeclip.runtime.openvino_engine import OpenVinoEngine, Properties

_INTEL = "0x8086"


class OpenVinoGpuEngine(OpenVinoEngine):
    """An ONNX graph on OpenVINO's plugin for Intel's GPUs: integrated, Arc and Flex."""

    name = "openvino-gpu"
    on_cpu = False
    kinds = frozenset({"fp32", "fp16", "int8", CPU_LAYOUT})
    device = "GPU"
    types: ClassVar[dict[str, str]] = {"fp32": "f32", "fp16": "f16", "bf16": "f32", "int8": "f16"}

    @classmethod
    def available(cls) -> bool:
        """Whether OpenVINO is installed and this machine shows a GPU of Intel's."""
        vendors = Path("/sys/class/drm").glob("renderD*/device/vendor")
        return super().available() and any(vendor.read_text().strip() == _INTEL for vendor in vendors)

    def _device_properties(self) -> Properties:
        return {}

    def _device_name(self) -> str:
        return str(self._core.get_property(self.device, "FULL_DEVICE_NAME"))
