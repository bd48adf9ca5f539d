"""A graph's cost and a device in; bytes that the encoder takes there, running and being built, out."""

from __future__ import annotations

from dataclasses import dataclass

from edgeclip.devices.catalogue.profile import DeviceProfile
from edgeclip.devices.plan.cost import GraphCost
from edgeclip.devices.plan.speed import ELEMENT_BYTES

GIB = 2**30
# Assumed, where the profile does not say what a booted system without a desktop leaves: it is to be measured there.
_SYSTEM_BYTES = {"jetson": 3 * GIB // 2, "gpu": GIB // 2}
# Assumed: CUDA's context and TensorRT's libraries. On a CPU: Python, ONNX Runtime and the loop, less weights (measured
# by benchmarks/soak.py).
_LIBRARY_BYTES = {"jetson": 3 * GIB // 4, "gpu": 3 * GIB // 4, "cpu": 300 << 20}
_FRAMES_A_CAMERA = 8  # decoded and under way at once
_FRAME_BYTES = 1920 * 1080 * 3
# A build by TensorRT-RTX 1.7 of ViT-B/32 in FP32 took 3.8 bytes of host memory for each byte of the graph's weights,
# beyond the 144 MB of its libraries (benchmarks/plan.py).
_BUILD_COPIES = 4
_BUILD_WORKSPACE_BYTES = 256 << 20
_LEAST_WORKSPACE_BYTES = 64 << 20


@dataclass(frozen=True)
class VariantMemory:
    """Bytes that one variant takes.

    Attributes:
        weights: in its precision.
        activations: of one batch, nothing fused: an upper bound.
        frames: decoded ones that wait or are under way.
        library: of the engine and its context; assumed for GPUs.
        building: while it is built on the device, in place of all these.
    """

    weights: int
    activations: int
    frames: int
    library: int
    building: int

    @property
    def running(self) -> int:
        """All of it while frames are labelled."""
        return self.weights + self.activations + self.frames + self.library


def memory_of(cost: GraphCost, precision: str, profile: DeviceProfile, *, batch: int, cameras: int) -> VariantMemory:
    """What a variant takes on a device, bytes."""
    library = _LIBRARY_BYTES[profile.kind]
    activations = cost.activation_peak * batch * max(2, ELEMENT_BYTES[precision])
    return VariantMemory(
        weights=cost.weights * ELEMENT_BYTES[precision],
        activations=activations,
        frames=cameras * _FRAMES_A_CAMERA * _FRAME_BYTES,
        library=library,
        building=library + _BUILD_COPIES * cost.weights * ELEMENT_BYTES["fp32"] + activations + _BUILD_WORKSPACE_BYTES,
    )


def free_bytes(profile: DeviceProfile, given_gib: float | None) -> int | None:
    """Memory that is left for the model: as given, or as sold less the system's; None where neither is known."""
    if given_gib is not None:
        return int(given_gib * GIB)
    memory = profile.memory
    if memory.gib is None:
        return None
    reserved = memory.system_reserved_gib
    system = int(reserved.value * GIB) if reserved else _SYSTEM_BYTES.get(profile.kind, 0)
    return int(memory.gib.value * GIB) - system


def build_workspace(free: int, graph_bytes: int, *, shared: bool) -> int:
    """Scratch memory, bytes, that a TensorRT build may take of what is free on its GPU.

    Half; where the CPU shares the memory, no more than the builder's own copies of the weights leave, and 64 MiB at
    least: too little of it costs speed or a retry, too much of it the whole build.

    Args:
        free: bytes free on the GPU.
        graph_bytes: of the ONNX graph with its weights.
        shared: whether the builder's copies lie in the same memory.
    """
    left = free - _BUILD_COPIES * graph_bytes if shared else free
    return max(_LEAST_WORKSPACE_BYTES, min(free // 2, left))


def build_lacks(free: int, graph_bytes: int) -> int:
    """Bytes that a build on shared memory needs beyond what is free; 0 where it fits."""
    return max(0, _BUILD_COPIES * graph_bytes + _LEAST_WORKSPACE_BYTES - free)
