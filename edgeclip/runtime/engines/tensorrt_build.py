"""An ONNX graph and build options in, a cached TensorRT plan out.

The graph is parsed from its path, so that weights in a file beside it are found. What the library logs is kept and
becomes part of the error when it refuses.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeclip.devices.machine.cuda import Gpu, free_memory_bytes
from edgeclip.devices.plan.memory import build_lacks, build_workspace
from edgeclip.errors import EngineError
from edgeclip.files import external_data
from edgeclip.runtime.engines import plan_cache
from edgeclip.runtime.engines.plan_cache import PlanKey
from edgeclip.runtime.engines.tensorrt_api import (
    Library,
    Progress,
    deferred_signals,
    load_library,
    network_flags,
    parser_errors,
    precision_flags,
    progress_monitor,
)
from edgeclip.runtime.engines.tensorrt_options import BuildOptions, Target, choose_target, plan_key, refuse_impossible
from edgeclip.spec import EncoderSpec, Precision

_RETRIES = 3
_TIMING = "timing"
_WORKSPACE_TOO_SMALL = re.compile(r"workspace limit|insufficient workspace|increas\w* the (allowed )?workspace", re.I)
_OUT_OF_MEMORY = re.compile(r"out ?of ?memory|could not be allocated|insufficient memory|bad_alloc", re.I)


@dataclass(frozen=True)
class BuiltPlan:
    """A serialized plan and how it came about.

    Attributes:
        plan: the bytes to deserialize.
        workspace_bytes: the limit it was built within.
        out_of_memory_at: workspace limits, bytes, at which the build ran out of memory before.
        messages: what the library warned of.
    """

    plan: bytes
    workspace_bytes: int
    out_of_memory_at: tuple[int, ...] = ()
    messages: tuple[str, ...] = ()


@dataclass(frozen=True)
class BuildResult:
    """A plan in the cache.

    Attributes:
        path: of the plan.
        key: what it is cached under.
        reused: whether it was there already; the fields below are then empty.
        build_s: seconds.
        workspace_bytes, out_of_memory_at, messages: as in ``BuiltPlan``.
    """

    path: Path
    key: PlanKey
    reused: bool
    build_s: float = 0.0
    workspace_bytes: int | None = None
    out_of_memory_at: tuple[int, ...] = ()
    messages: tuple[str, ...] = ()


def compile_variant(
    engine: str,
    path: Path,
    encoder: EncoderSpec,
    precision: Precision,
    options: BuildOptions,
    progress: Progress | None = None,
) -> tuple[Path, bool, tuple[str, ...]]:
    """``Builder`` of TensorRT: as ``build``, which says more of how it went."""
    result = build(engine, path, encoder, precision, options, progress=progress)
    notes = result.messages
    if result.out_of_memory_at and result.workspace_bytes:
        tried = ", ".join(f"{size >> 20:,}" for size in result.out_of_memory_at)
        notes = (f"ran out of memory at {tried} MiB; built within {result.workspace_bytes >> 20:,} MiB", *notes)
    return result.path, result.reused, notes


def build(
    engine: str,
    onnx: Path,
    encoder: EncoderSpec,
    precision: Precision,
    options: BuildOptions | None = None,
    *,
    progress: Progress | None = None,
    rebuild: bool = False,
) -> BuildResult:
    """Build a plan and keep it in the cache, or find it there.

    Args:
        engine: ``"tensorrt"`` or ``"tensorrt-rtx"``.
        onnx: the variant's graph.
        encoder: what it takes and returns.
        precision: of the variant.
        options: None for the defaults.
        progress: called as the build goes on; Ctrl-C and exceptions in it cancel the build.
        rebuild: build even when the plan is there.

    Raises:
        EngineError: the graph does not parse or fit ``encoder``, or the library cannot build it here.
        MissingExtraError: the library is not installed.
        KeyboardInterrupt: Ctrl-C; nothing was stored.
    """
    options = options or BuildOptions()
    refuse_impossible(engine, options)
    library = load_library(engine)
    target = choose_target(library, options)
    key = plan_key(library, onnx, options, target)
    if not rebuild and (path := plan_cache.find(key)):
        return BuildResult(path, key, reused=True)
    start = time.perf_counter()
    built = build_plan(library, onnx, encoder, precision, options, target, progress=progress)
    build_s = time.perf_counter() - start
    path = plan_cache.store(key, built.plan, build_s=build_s)
    return BuildResult(path, key, False, build_s, built.workspace_bytes, built.out_of_memory_at, built.messages)


def build_plan(
    library: Library,
    onnx: Path,
    encoder: EncoderSpec,
    precision: Precision,
    options: BuildOptions,
    target: Target,
    *,
    progress: Progress | None = None,
) -> BuiltPlan:
    """Build a plan, with half the workspace again (three times) when memory runs out.

    Raises:
        EngineError, KeyboardInterrupt: as ``build``.
    """

    def attempt(workspace_bytes: int | None) -> BuiltPlan:
        return _attempt(library, onnx, encoder, precision, options, target, workspace_bytes, progress)

    workspace_bytes = options.workspace_bytes
    warnings: tuple[str, ...] = ()
    if workspace_bytes is None and target.gpu:
        workspace_bytes, warnings = _workspace(onnx, target.gpu)
    ran_out: list[int] = []
    while True:
        try:
            built = attempt(workspace_bytes)
        except _OutOfMemoryError as error:
            if len(ran_out) == _RETRIES:
                raise
            ran_out.append(error.workspace_bytes)
        else:
            return BuiltPlan(built.plan, built.workspace_bytes, tuple(ran_out), (*warnings, *built.messages))
        workspace_bytes = ran_out[-1] // 2  # outside `except`, whose traceback would keep the failed attempt's memory


def _workspace(onnx: Path, gpu: Gpu) -> tuple[int, tuple[str, ...]]:
    """What a build may take of the GPU's free memory, and what to say of it first."""
    free = free_memory_bytes(gpu)
    size = sum(file.stat().st_size for file in (onnx, external_data(onnx)) if file.is_file())
    lacking = build_lacks(free, size) if gpu.integrated else 0
    why = f"the build needs about {lacking >> 20:,} MiB beyond the {free >> 20:,} MiB that are free: add a swap file"
    return build_workspace(free, size, shared=gpu.integrated), (why,) if lacking else ()


class _OutOfMemoryError(EngineError):
    """A build ran out of memory at a workspace limit."""

    def __init__(self, message: str, workspace_bytes: int) -> None:
        super().__init__(message)
        self.workspace_bytes = workspace_bytes


def _attempt(
    library: Library,
    onnx: Path,
    encoder: EncoderSpec,
    precision: Precision,
    options: BuildOptions,
    target: Target,
    workspace_bytes: int | None,
    progress: Progress | None,
) -> BuiltPlan:
    trt = library.trt
    builder = library.make(lambda: trt.Builder(library.log), "a builder")
    network = builder.create_network(network_flags(trt))
    parser = trt.OnnxParser(network, library.log)
    if not parser.parse_from_file(str(onnx)):
        refused = parser_errors(parser) or library.log.shown()
        memory = _OUT_OF_MEMORY.search("\n".join(refused))
        advice = "memory ran out; stop other programs" if memory else "export another variant"
        raise EngineError("\n  ".join([f"{library.title} cannot parse {onnx}: {advice}", *refused]))
    batch = _check_network(network, trt, encoder, onnx)
    config = builder.create_builder_config()
    _configure(config, library, precision, options, target, workspace_bytes)
    if batch == -1:
        size = encoder.preprocess
        profile = builder.create_optimization_profile()
        batches = (options.min_batch, options.opt_batch, options.max_batch)
        profile.set_shape("image", *[(n, 3, size.height, size.width) for n in batches])
        if config.add_optimization_profile(profile) < 0:
            raise library.failure(f"{library.title} refuses the batches {batches}")
    timing = _attach_timing_cache(config, library, target)
    with deferred_signals() as interrupted:
        monitor = None
        if hasattr(trt, "IProgressMonitor"):  # not in 8.x
            monitor = config.progress_monitor = progress_monitor(trt, progress, interrupted)
        plan = builder.build_serialized_network(network, config)
    if monitor is not None and monitor.error is not None:
        raise monitor.error
    limit = config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE)
    if plan is None:
        raise _build_error(library, onnx, limit)
    if timing is not None:
        _save_timing_cache(timing, library, target)
    return BuiltPlan(bytes(plan), limit, messages=tuple(library.log.shown()))


def _check_network(network: Any, trt: Any, encoder: EncoderSpec, onnx: Path) -> int:
    """Hold the parsed network against the encoder; return its batch, -1 when it is free."""
    size = encoder.preprocess
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    got = [(t.name, t.dtype == trt.DataType.FLOAT, tuple(t.shape)[1:]) for t in (*inputs, *outputs)]
    expected = [("image", True, (3, size.height, size.width)), ("embedding", True, (encoder.embedding_dim,))]
    if len(inputs) != 1 or got != expected:
        described = ", ".join(f"{t.name} {t.dtype} {tuple(t.shape)}" for t in (*inputs, *outputs))
        raise EngineError(
            f"{onnx.name}: expected input image (N, 3, {size.height}, {size.width}) and output embedding "
            f"(N, {encoder.embedding_dim}) in float32, got {described}: export it with edgeclip"
        )
    return int(inputs[0].shape[0])


def _configure(
    config: Any,
    library: Library,
    precision: Precision,
    options: BuildOptions,
    target: Target,
    workspace_bytes: int | None,
) -> None:
    trt = library.trt

    def set_flag(name: str, what: str) -> None:
        if name not in trt.BuilderFlag.__members__:
            raise EngineError(f"{library.title} cannot {what}: it has no flag {name}; leave the option out")
        config.set_flag(trt.BuilderFlag.__members__[name])

    def set_attribute(name: str, value: Any, what: str) -> None:
        if not hasattr(config, name):
            raise EngineError(f"{library.title} cannot {what}: it has no {name}; leave the option out")
        setattr(config, name, value)

    for flag in precision_flags(trt, precision):
        set_flag(flag, f"build {precision}")
    if not options.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
    if options.version_compatible:
        set_flag("VERSION_COMPATIBLE", "build version-compatible plans")
    if options.strip:
        set_flag("STRIP_PLAN", "leave weights out")
        # The same weights come back at load; REFIT would also allow others, at a cost in speed.
        set_flag("REFIT_IDENTICAL", "leave weights out")
    if options.hardware_compatible and not library.is_rtx:  # tensorrt-rtx does so when no capability is set
        level = getattr(trt, "HardwareCompatibilityLevel", None)
        set_attribute("hardware_compatibility_level", level and level.AMPERE_PLUS, "build for other GPUs")
    if target.compute_capability:
        config.num_compute_capabilities = 1
        capability = trt.ComputeCapability.__members__[target.compute_capability]
        if not config.set_compute_capability(capability, 0):
            raise library.failure(f"{library.title} refuses compute capability {target.compute_capability}")
    if options.optimization_level is not None:
        set_attribute("builder_optimization_level", options.optimization_level, "choose an optimization level")
    if options.detailed_layers:
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED


def _build_error(library: Library, onnx: Path, workspace_bytes: int) -> EngineError:
    """Why a build gave no plan, as far as the library's messages tell."""
    text = "\n".join(library.log.messages)
    limit = f"{workspace_bytes / 2**20:,.0f} MiB of workspace"
    if _WORKSPACE_TOO_SMALL.search(text):
        return library.failure(f"{library.title} needs more than {limit} for {onnx.name}: give a larger `workspace`")
    if _OUT_OF_MEMORY.search(text):
        why = library.failure(
            f"{library.title} ran out of memory on {onnx.name} with {limit}: stop other programs or lower `batch`"
        )
        return _OutOfMemoryError(str(why), workspace_bytes)
    return library.failure(f"{library.title} cannot build {onnx.name}: try another variant")


def _attach_timing_cache(config: Any, library: Library, target: Target) -> Any:
    """Let the builder reuse this device's measurements; None where the library makes none."""
    if library.is_rtx or target.gpu is None:
        return None
    kept = plan_cache.load_side_cache(
        _TIMING, engine=library.name, library_version=library.version, device=target.gpu.sm
    )
    for content in (kept, b""):  # an unfit cache is refused, and an empty one taken
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, False):
            return cache
    return None


def _save_timing_cache(cache: Any, library: Library, target: Target) -> None:
    if target.gpu is not None:
        plan_cache.save_side_cache(
            _TIMING,
            bytes(cache.serialize()),
            engine=library.name,
            library_version=library.version,
            device=target.gpu.sm,
        )
