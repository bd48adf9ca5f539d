"""Every inference engine in one list: its name in; its class, library, packages and builder out. Loads none of them.

A new engine is a file with a class (``edgeclip/runtime/engines/base.py`` says what it fills) and one entry here.
Whoever needs to know something of an engine reads it here: loading, building, the choice and its proofs, doctor, the
extras that errors name, what a report says it ran on.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgeclip.errors import EngineError


@dataclass(frozen=True)
class EngineEntry:
    """What others must know of an engine without loading it.

    ``EngineEntry("mine", "mine.edge:MyEngine", module="mine", packages=("mine-runtime",))`` is enough for one that
    runs the ONNX graph as it is.

    Attributes:
        name: what ``--engine`` takes.
        where: of its class, ``"module:Class"``.
        module: of the library that it needs; engines of one library share it.
        packages: distributions that decide what it computes and how fast, the one that pip installs first. When the
            version of one changes, its proofs are taken anew; ``Engine.versions`` may name more.
        extra: of ours that installs it; None where ``packages[0]`` is installed by its own name.
        builds: what compiles a variant for this device, ``"module:function"`` (``Builder`` in
            ``edgeclip/runtime/engines/build.py``); None where nothing is compiled beforehand.
        layers: what reads the layers of what was built, ``"module:function"``; None where nothing does.
        asks: what doctor asks the loaded library, ``"module:function"`` (``Question`` in
            ``edgeclip/devices/machine/try_library.py``); None for no more than whether it loads.
        nvidia: whether it runs on NVIDIA's GPUs only.
    """

    name: str
    where: str
    module: str
    packages: tuple[str, ...]
    extra: str | None = None
    builds: str | None = None
    layers: str | None = None
    asks: str | None = None
    nvidia: bool = False

    @property
    def install(self) -> str:
        """What ``pip install`` takes to get the engine."""
        return f"edgeclip[{self.extra}]" if self.extra else self.packages[0]


_ORT = "edgeclip.runtime.engines.onnxruntime"
_OPENVINO = "edgeclip.runtime.engines.openvino"
_TENSORRT = "edgeclip.runtime.engines.tensorrt"
_TRY = "edgeclip.devices.machine.try_library"
_CUDA = ("nvidia-cudnn-cu12", "nvidia-cudnn-cu13", "nvidia-cublas-cu12", "nvidia-cublas")
_TENSORRT_PACKAGES = ("tensorrt", "tensorrt-cu12", "tensorrt-cu13")

# In this order engines are proved and shown. `edgeclip build` takes the last one that builds and is here, so the more
# special ones come later.
ENGINES: dict[str, EngineEntry] = {
    entry.name: entry
    for entry in (
        EngineEntry(
            "onnxruntime",
            f"{_ORT}:OrtEngine",
            module="onnxruntime",
            packages=("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino"),
            asks=f"{_TRY}:ask_onnxruntime",
        ),
        EngineEntry(
            "onnxruntime-cuda",
            f"{_ORT}:OrtCudaEngine",
            module="onnxruntime",
            packages=("onnxruntime-gpu", *_CUDA),
            nvidia=True,
        ),
        EngineEntry(
            "onnxruntime-tensorrt",
            f"{_ORT}:OrtTensorRtEngine",
            module="onnxruntime",
            packages=("onnxruntime-gpu", *_CUDA, *_TENSORRT_PACKAGES),
            nvidia=True,
        ),
        EngineEntry(
            "onnxruntime-tensorrt-rtx",
            f"{_ORT}:OrtTensorRtRtxEngine",
            module="onnxruntime",
            packages=("onnxruntime-ep-nv-tensorrt-rtx", "onnxruntime", "onnxruntime-gpu"),
            nvidia=True,
        ),
        EngineEntry(
            "openvino",
            f"{_OPENVINO}:OpenVinoEngine",
            module="openvino",
            packages=("openvino",),
            extra="openvino",
            builds=f"{_OPENVINO}:compile_variant",
            asks=f"{_TRY}:ask_openvino",
        ),
        EngineEntry(
            "openvino-gpu",
            f"{_OPENVINO}:OpenVinoGpuEngine",
            module="openvino",
            packages=("openvino",),
            extra="openvino",
            builds=f"{_OPENVINO}:compile_variant",
        ),
        EngineEntry(
            "tensorrt-rtx",
            f"{_TENSORRT}:TensorRtRtxEngine",
            module="tensorrt_rtx",
            packages=("tensorrt-rtx-cu13", "tensorrt-rtx-cu12", "tensorrt-rtx"),
            extra="tensorrt-rtx",
            builds=f"{_TENSORRT}_build:compile_variant",
            layers=f"{_TENSORRT}:layers",
            asks=f"{_TRY}:ask_tensorrt",
            nvidia=True,
        ),
        EngineEntry(
            "tensorrt",
            f"{_TENSORRT}:TensorRtEngine",
            module="tensorrt",
            packages=_TENSORRT_PACKAGES,
            extra="tensorrt",
            builds=f"{_TENSORRT}_build:compile_variant",
            layers=f"{_TENSORRT}:layers",
            asks=f"{_TRY}:ask_tensorrt",
            nvidia=True,
        ),
    )
}


def engine_entry(name: str) -> EngineEntry:
    """The entry of the engine called ``name``.

    Raises:
        EngineError: no such engine.
    """
    if name not in ENGINES:
        raise EngineError(f"expected an engine out of {', '.join(ENGINES)}, got {name!r}")
    return ENGINES[name]


def built_engines() -> tuple[str, ...]:
    """Names of the engines that are built before they run."""
    return tuple(entry.name for entry in ENGINES.values() if entry.builds)


def engine_packages() -> tuple[str, ...]:
    """The packages of all engines, each once."""
    return tuple(dict.fromkeys(package for entry in ENGINES.values() for package in entry.packages))


def engine_libraries() -> dict[str, EngineEntry]:
    """The libraries behind the engines, each once: by the name of the first engine that runs with it."""
    first: dict[str, EngineEntry] = {}
    for entry in ENGINES.values():
        first.setdefault(entry.module, entry)
    return {entry.name: entry for entry in first.values()}
