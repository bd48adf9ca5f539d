"""What the caller wants of a TensorRT plan in; which device it is for, and the key it is cached under, out."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path

from edgeclip.devices.machine.cuda import Gpu, find_gpu, require_gpu, sm
from edgeclip.errors import EngineError, InputError
from edgeclip.runtime.engines.plan_cache import PlanKey, graph_sha256
from edgeclip.runtime.engines.tensorrt_api import Library

AMPERE_AND_LATER = "sm80+"


@dataclass(frozen=True)
class BuildOptions:
    """Options of a build.

    ``BuildOptions(max_batch=1)`` is what a single camera needs;
    ``BuildOptions(compute_capability="8.6")`` builds for an RTX 30 on a machine with no GPU (tensorrt-rtx only).

    Attributes:
        min_batch, opt_batch, max_batch: the batches that the plan takes, and the one it is fastest at. A graph with
            a fixed batch has its own.
        workspace_bytes: upper limit of the layers' scratch memory; None for half of what is free on the GPU.
        version_compatible: the plan also loads in later TensorRT versions of the same major number.
        hardware_compatible: the plan also runs on other GPUs of compute capability 8.0 or later.
        strip: leave the weights out; they are read from the ONNX graph at load.
        compute_capability: of the GPU to build for, ``"8.6"``; None for the one here.
        optimization_level: 0 (quick build) to 5 (fast plan); None for the library's default.
        detailed_layers: keep what ``layers`` shows.
        tf32: let float32 products round their inputs to 10 bits of mantissa: faster, and no longer the fp32 reference.

    Raises:
        InputError: a value out of range, or options that exclude each other.
    """

    min_batch: int = 1
    opt_batch: int = 1
    max_batch: int = 8
    workspace_bytes: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    strip: bool = False
    compute_capability: str | None = None
    optimization_level: int | None = None
    detailed_layers: bool = False
    tf32: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.min_batch <= self.opt_batch <= self.max_batch:
            raise InputError(
                "expected batches with 1 <= MIN <= OPT <= MAX, got "
                f"{self.min_batch},{self.opt_batch},{self.max_batch}: give `batch` as MIN,OPT,MAX"
            )
        if self.workspace_bytes is not None and self.workspace_bytes < 1:
            raise InputError(f"expected a workspace of at least 1 byte, got {self.workspace_bytes}")
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise InputError(f"expected an optimization level of 0 to 5, got {self.optimization_level}")
        if self.compute_capability is not None:
            if not re.fullmatch(r"\d+\.\d", self.compute_capability):
                raise InputError(f"expected a compute capability such as 8.6, got {self.compute_capability!r}")
            if self.hardware_compatible:
                raise InputError(
                    "expected compute_capability or hardware_compatible, got both: the first builds for one kind "
                    "of GPU, the second for all from 8.0 on"
                )


@dataclass(frozen=True)
class Target:
    """What a plan is built for.

    Attributes:
        device: as it stands in the plan's key: ``"sm86"`` or ``"sm80+"``.
        gpu: the GPU here, or None when the build does without.
        compute_capability: name in the library's ``ComputeCapability``, or None to set none.
    """

    device: str
    gpu: Gpu | None
    compute_capability: str | None = None


def refuse_impossible(engine: str, options: BuildOptions) -> None:
    """Refuse what an engine's library cannot do on any machine.

    Raises:
        EngineError: with the engine or machine that can.
    """
    if options.compute_capability and engine == "tensorrt":
        raise EngineError(
            "tensorrt measures kernels on the GPU it builds for: build on the device, or use `engine` tensorrt-rtx "
            f"to build for compute capability {options.compute_capability} elsewhere"
        )
    if options.version_compatible and engine == "tensorrt-rtx":
        raise EngineError(
            "tensorrt-rtx lacks the lean runtime that a version-compatible plan needs: leave out "
            "`version_compatible` and build again after an upgrade"
        )


def choose_target(library: Library, options: BuildOptions) -> Target:
    """Decide what to build for.

    Raises:
        EngineError: there is no GPU and the build needs one, or the library does not know its compute capability.
    """
    if not library.is_rtx:
        gpu = require_gpu(f"build a {library.name} plan")
        return Target(AMPERE_AND_LATER if options.hardware_compatible else gpu.sm, gpu)
    if options.strip and find_gpu() is None:
        raise EngineError(f"{library.title} leaves weights out only on a machine with an NVIDIA GPU: omit `strip` here")
    if options.hardware_compatible:
        return Target(AMPERE_AND_LATER, None)
    if options.compute_capability:
        return Target(sm(options.compute_capability), None, _known_capability(library, options.compute_capability))
    gpu = require_gpu(f"build a {library.name} plan for this machine (to build for another, give `compute_capability`)")
    _known_capability(library, gpu.compute_capability)  # on an H100 1.7 builds a plan, and refuses to run it
    return Target(gpu.sm, gpu, "CURRENT")


def plan_key(library: Library, onnx: Path, options: BuildOptions, target: Target) -> PlanKey:
    """The key that a plan of the graph at ``onnx`` is cached under."""
    described = dataclasses.asdict(options)
    del described["compute_capability"]  # the target says it, whether it was asked for or found
    return PlanKey(
        engine=library.name,
        library_version=library.version,
        variant_sha256=graph_sha256(onnx),
        device=target.device,
        options=described,
    )


def runs_on(key: PlanKey, library: Library, gpu: Gpu) -> bool:
    """Whether a plan of ``key`` runs with this library on this GPU, by what its build options promise."""
    fits_gpu = float(gpu.compute_capability) >= 8 if key.device == AMPERE_AND_LATER else key.device == gpu.sm
    if key.options.get("version_compatible"):
        built, here = _numbers(key.library_version), _numbers(library.version)
        return fits_gpu and built[:1] == here[:1] and built <= here
    return fits_gpu and key.library_version == library.version


def _known_capability(library: Library, capability: str) -> str:
    name = sm(capability).upper()
    known = [member for member in library.trt.ComputeCapability.__members__ if member.startswith("SM")]
    if name not in known:
        listed = ", ".join(f"{member[2:-1]}.{member[-1]}" for member in known)
        raise EngineError(
            f"{library.title} cannot build for compute capability {capability}: expected one of {listed}; "
            "on a Jetson or an H100, build there with `engine` tensorrt"
        )
    return name


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))
