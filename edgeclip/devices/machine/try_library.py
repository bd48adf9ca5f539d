"""A library in, what it says of itself out as one line of JSON; run in a process of its own.

A library that crashes, hangs or prints takes only that process with it. What is done is more than an import: providers
of ONNX Runtime run a graph, TensorRT makes a builder, CUDA counts its GPUs.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module, metadata
from pkgutil import resolve_name
from typing import Any, NamedTuple, TypeAlias

import msgspec

from edgeclip.engine_list import engine_libraries

# One node, Identity, of float32 [1]: the smallest graph that a provider can be asked to run. Made with
# onnx.helper.make_model(…, ir_version=8, opset 13).
_IDENTITY = bytes.fromhex(
    "08083a3b0a100a01781201792208"
    "4964656e74697479120565646765635a0f0a0178120a0a0808011204"
    "0a020801620f0a0179120a0a08080112040a02080142040a00100d"
)


class Tried(msgspec.Struct, frozen=True):
    """How a library did.

    Attributes:
        version: as it reports it; None if it did not load.
        error: why it did not load; None if it did.
        installed: whether there is such a module at all.
        details: what it can do here, for people.
        facts: the same for rules, by name.
    """

    name: str
    version: str | None = None
    error: str | None = None
    installed: bool = True
    details: tuple[str, ...] = ()
    facts: dict[str, str] = {}


Answer = tuple[list[str], dict[str, str]]
Question: TypeAlias = Callable[[Any], Answer]
"""What a loaded library is asked: the module in; details for people, and facts for rules, out. It may raise."""


class LibraryTrial(NamedTuple):
    """A library that is to be tried.

    Attributes:
        module: to import.
        asks: ``"module:function"`` of its ``Question``; None for no more than whether it loads.
    """

    name: str
    module: str
    asks: str | None


def trials() -> list[LibraryTrial]:
    """All libraries that doctor tries: those that run encoders, and what edgeclip needs beside them."""
    engines = [LibraryTrial(name, entry.module, entry.asks) for name, entry in engine_libraries().items()]
    return [*engines, *(LibraryTrial(name, module, f"{__name__}:{question}") for name, module, question in _BESIDE)]


def try_library(trial: LibraryTrial) -> Tried:
    """Import a library and ask what it can do here; never raises for what the library does."""
    name, module, asks = trial
    try:
        loaded = import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        absent = f"{module}.".startswith(f"{missing}.")  # it, or the package that it is part of
        return Tried(name, error=None if absent else f"needs {missing}, which is not installed", installed=not absent)
    except Exception as error:  # noqa: BLE001 - a broken library may raise anything
        return Tried(name, error=_one_line(error))
    version = str(getattr(loaded, "__version__", None) or "of unknown version")
    try:
        details, facts = resolve_name(asks)(loaded) if asks else ([], {})
    except Exception as error:  # noqa: BLE001 - likewise
        return Tried(name, version, details=(f"does not work: {_one_line(error)}",), facts={"broken": _one_line(error)})
    return Tried(name, facts.pop("version", version), details=tuple(details), facts=facts)


def ask_onnxruntime(ort: Any) -> Answer:
    """Which providers run a graph."""
    import numpy as np

    options = ort.SessionOptions()
    options.log_severity_level = 4
    works: list[str] = []
    fails: list[str] = []
    for provider in ort.get_available_providers():
        if provider == "AzureExecutionProvider":  # runs elsewhere
            continue
        try:
            session = ort.InferenceSession(_IDENTITY, options, providers=[provider])
            session.run(None, {"x": np.ones(1, np.float32)})
            (works if session.get_providers()[0] == provider else fails).append(provider)
        except Exception:  # noqa: BLE001 - the binding raises a dozen unrelated types
            fails.append(provider)
    short = [provider.removesuffix("ExecutionProvider") for provider in works]
    details = ["runs on " + ", ".join(short) if short else "runs nowhere"]
    details += [f"{provider.removesuffix('ExecutionProvider')} does not load" for provider in fails]
    return details, {"works": " ".join(works), "fails": " ".join(fails)}


def ask_openvino(openvino: Any) -> Answer:
    """Which devices it sees."""
    core = openvino.Core()
    devices = {name: str(core.get_property(name, "FULL_DEVICE_NAME")).strip() for name in core.available_devices}
    version = str(openvino.__version__).partition("-")[0]
    return [f"{name}: {title}" for name, title in devices.items()], {"version": version, "devices": " ".join(devices)}


def ask_tensorrt(trt: Any) -> Answer:
    """Whether it makes a builder."""
    try:
        made = trt.Builder(trt.Logger(trt.Logger.INTERNAL_ERROR)) is not None
    except (TypeError, RuntimeError):  # the bindings' way to say that a constructor gave nothing
        made = False
    return (["makes a builder"] if made else ["makes no builder here, which takes a GPU and its driver"]), {
        "builder": "yes" if made else "no"
    }


def _driver(ours: Any) -> Answer:
    served = ours.driver_cuda_version()
    if served is None:
        return [], {"version": "not found"}
    return [f"serves CUDA {served[0]}.{served[1]}"], {"version": "found", "cuda": f"{served[0]}.{served[1]}"}


def _cuda(_bindings: Any) -> Answer:
    from edgeclip.devices.machine.cuda import find_gpu, free_memory_bytes

    gpu = find_gpu()
    if gpu is None:
        return ["sees no GPU"], {}
    free_gib = free_memory_bytes(gpu) / 2**30
    return [f"{gpu.name}, compute capability {gpu.compute_capability}, {free_gib:.1f} GiB free"], {
        "names": gpu.name,
        "compute_capability": gpu.compute_capability,
    }


def _nvml(nvml: Any) -> Answer:
    nvml.nvmlInit()
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        names = [_text(nvml.nvmlDeviceGetName(handle)) for handle in handles]
        driver = _text(nvml.nvmlSystemGetDriverVersion())
        first = _nvml_figures(nvml, handles[0]) if handles else {}
    finally:
        nvml.nvmlShutdown()
    facts = {"driver": driver, "names": "\n".join(names)}
    with contextlib.suppress(metadata.PackageNotFoundError):  # pynvml itself does not tell its version
        facts["version"] = metadata.version("nvidia-ml-py")
    return [f"driver {driver}", *names], facts | first


def _nvml_figures(nvml: Any, handle: Any) -> dict[str, str]:
    """Memory, its bandwidth and the power limit of a GPU, as far as it tells them: those that share memory do not."""
    asked: dict[str, Callable[[], float]] = {
        "memory_gib": lambda: nvml.nvmlDeviceGetMemoryInfo(handle).total / 2**30,
        # Two words a clock, as memories of double rate are counted.
        "bandwidth_gb_s": lambda: (
            2
            * nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_MEM)
            * nvml.nvmlDeviceGetMemoryBusWidth(handle)
            / 8e3
        ),
        "power_w": lambda: nvml.nvmlDeviceGetPowerManagementDefaultLimit(handle) / 1e3,
    }
    figures = {}
    for name, ask in asked.items():
        with contextlib.suppress(nvml.NVMLError, AttributeError):  # a GPU, or an older binding, that does not have it
            figures[name] = f"{ask():.1f}"
    return figures


def _opencv(cv2: Any) -> Answer:
    information = cv2.getBuildInformation()
    has = {name: built_with(information, name) for name in ("GStreamer", "NVIDIA CUDA", "FFMPEG", "v4l/v4l2")}
    short = {"NVIDIA CUDA": "CUDA", "FFMPEG": "FFmpeg", "v4l/v4l2": "V4L2"}
    details = [f"{'with' if there else 'no'} {short.get(name, name)}" for name, there in has.items()]
    place = "system" if "/dist-packages/" in str(cv2.__file__) else "environment"
    return details, {name: "yes" if there else "no" for name, there in has.items()} | {"from": place}


def _av(av: Any) -> Answer:
    return [f"FFmpeg's libavcodec {'.'.join(str(part) for part in av.library_versions['libavcodec'])}"], {}


def _gstreamer(_module: Any) -> Answer:
    """Not Python's GStreamer, which edgeclip does not use: the elements that a Jetson's cameras take."""
    inspect = shutil.which("gst-inspect-1.0")
    if inspect is None:
        return ["gst-inspect-1.0 is not installed"], {"version": "not found", "inspect": "no"}
    told = subprocess.run([inspect, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"GStreamer (\d+\.\d+\.\d+)", told)
    elements = {
        name: subprocess.run([inspect, "--exists", name], capture_output=True, check=False).returncode == 0
        for name in ("nvarguscamerasrc", "nvvidconv", "v4l2src")
    }
    there = [name for name, is_there in elements.items() if is_there]
    return ["elements " + ", ".join(there) if there else "none of the elements of cameras"], {
        "version": found[1] if found else "of unknown version",
        "missing": " ".join(name for name, is_there in elements.items() if not is_there),
    }


# Name, module and question.
_BESIDE = (
    ("nvidia-driver", "edgeclip.devices.machine.cuda", "_driver"),
    ("cuda-bindings", "cuda.bindings", "_cuda"),
    ("nvml", "pynvml", "_nvml"),
    ("opencv", "cv2", "_opencv"),
    ("av", "av", "_av"),
    ("gstreamer", "sys", "_gstreamer"),
)


def main(name: str, module: str, asks: str) -> None:
    """Try a library, given as ``LibraryTrial`` has it, "" for None.

    Prints the answer as the last line of standard output, and nothing else of the library's.
    """
    with _standard_output_set_aside() as answer:
        answer.write(msgspec.json.encode(try_library(LibraryTrial(name, module, asks or None))) + b"\n")
        answer.flush()
    os._exit(0)  # without the library's own way out, which may crash


@contextlib.contextmanager
def _standard_output_set_aside() -> Iterator[Any]:
    """What libraries print goes to standard error; the answer goes where standard output went."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    with os.fdopen(kept, "wb") as answer:
        yield answer


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def built_with(information: str, feature: str) -> bool:
    """Whether a line ``feature: YES`` stands in the build's description, e.g. for ``"GStreamer"``."""
    return bool(re.search(rf"^\s*{re.escape(feature)}:\s+YES", information, re.MULTILINE))
