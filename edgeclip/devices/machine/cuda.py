"""The NVIDIA GPU of this machine in, its name, compute capability and free memory out; one checked way to call CUDA."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeclip.devices.machine.memory import read_memory
from edgeclip.devices.machine.tree import Tree
from edgeclip.errors import EngineError
from edgeclip.extras import require


@dataclass(frozen=True)
class Gpu:
    """A CUDA device.

    Attributes:
        name: as NVIDIA calls it.
        compute_capability: ``"8.7"`` for an Orin.
        integrated: whether it shares the machine's memory, as on a Jetson.
    """

    name: str
    compute_capability: str
    integrated: bool

    @property
    def sm(self) -> str:
        """The compute capability as compilers write it, ``"sm87"``."""
        return sm(self.compute_capability)


def sm(compute_capability: str) -> str:
    """``"8.7"`` as ``"sm87"``."""
    return f"sm{compute_capability.replace('.', '')}"


def cuda_runtime() -> Any:
    """NVIDIA's ``cuda.bindings.runtime``.

    Raises:
        MissingExtraError: it is not installed.
    """
    return require("cuda.bindings.runtime", purpose="use an NVIDIA GPU")


def call(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function of the CUDA runtime and check its return code.

    Returns:
        What follows the return code: nothing (None), one value, or a tuple of several.

    Raises:
        EngineError: the call failed.
    """
    status, *values = function(*args)
    if int(status) != 0:
        raise EngineError(f"{function.__name__} failed: {_reason(status)}")
    return values[0] if len(values) == 1 else tuple(values) or None


def driver_loads() -> bool:
    """Whether NVIDIA's driver is on this machine; needs no extra."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def driver_cuda_version() -> tuple[int, int] | None:
    """The newest CUDA that the driver serves, (12, 6) say; None without a driver; needs no extra.

    Source: ``cuDriverGetVersion`` of the CUDA driver API, 1000 × major + 10 × minor.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(version)) != 0 or version.value == 0:
        return None
    return version.value // 1000, version.value % 1000 // 10


def find_gpu() -> Gpu | None:
    """The first GPU, or None if there is none that CUDA can use.

    Raises:
        MissingExtraError: there is a driver, but cuda-bindings is not installed.
    """
    # The driver first: to load CUDA's bindings takes longer than all else that is asked when a stream starts.
    return _first_gpu() if driver_loads() and not _why_no_gpu() else None


def require_gpu(purpose: str) -> Gpu:
    """The first GPU.

    Args:
        purpose: what it is needed for, to complete "an NVIDIA GPU is needed to {purpose}".

    Raises:
        EngineError: there is none, or its driver is too old.
        MissingExtraError: cuda-bindings is not installed.
    """
    if why := _why_no_gpu():
        raise EngineError(f"an NVIDIA GPU is needed to {purpose}, but {why}")
    return _first_gpu()


def free_memory_bytes(gpu: Gpu, root: Path = Path("/")) -> int:
    """Memory that a new allocation on ``gpu`` may take.

    A GPU that shares the machine's memory may also take what Linux holds as file cache, which CUDA does not count
    as free; there it is ``MemAvailable``.

    Args:
        root: the file system to read (a test's recorded tree, say).

    Raises:
        EngineError: it cannot be read.
    """
    if not gpu.integrated:
        free, _total = call(cuda_runtime().cudaMemGetInfo)
        return int(free)
    available_gib = read_memory(Tree(root)).available_gib
    if available_gib is None:
        raise EngineError(f"expected MemAvailable in {root / 'proc/meminfo'}, got none: give the size with `workspace`")
    return int(available_gib * 2**30)


def _why_no_gpu() -> str:
    """Why CUDA can use no GPU here, or nothing if it can."""
    runtime = cuda_runtime()
    status, count = runtime.cudaGetDeviceCount()
    errors = runtime.cudaError_t
    if status == errors.cudaErrorInsufficientDriver:
        version = call(runtime.cudaRuntimeGetVersion)  # 13020 is 13.2
        return (
            f"this machine has no NVIDIA driver, or one too old for CUDA {version // 1000}: install a driver, "
            "or the cuda-bindings of its CUDA (pip install 'cuda-bindings==12.*' for CUDA 12)"
        )
    if status == errors.cudaErrorNoDevice or (int(status) == 0 and count == 0):
        return "CUDA sees none on this machine: run this on the device"
    if int(status) != 0:
        return f"CUDA does not start ({_reason(status)}): check the driver with nvidia-smi"
    return ""


def _first_gpu() -> Gpu:
    runtime = cuda_runtime()
    attributes = runtime.cudaDeviceAttr
    major, minor, integrated = (
        call(runtime.cudaDeviceGetAttribute, attribute, 0)
        for attribute in (
            attributes.cudaDevAttrComputeCapabilityMajor,
            attributes.cudaDevAttrComputeCapabilityMinor,
            attributes.cudaDevAttrIntegrated,
        )
    )
    name = call(runtime.cudaGetDeviceProperties, 0).name
    return Gpu(name.decode().rstrip("\0"), f"{major}.{minor}", bool(integrated))


def _reason(status: Any) -> str:
    runtime = cuda_runtime()
    return str(runtime.cudaGetErrorString(status)[1].decode())
