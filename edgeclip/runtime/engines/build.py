"""A bundle's variant in, its compiled form for this device out: built, or found in the cache."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeAlias

from edgeclip.bundle import Bundle
from edgeclip.errors import EngineError, InputError, VariantError
from edgeclip.runtime.engines.base import engine_class
from edgeclip.runtime.engines.tensorrt_api import Progress
from edgeclip.runtime.engines.tensorrt_options import BuildOptions
from edgeclip.spec import EncoderSpec, Variant

PREFERRED = ("tensorrt", "tensorrt-rtx", "openvino-gpu", "openvino")


@dataclass(frozen=True)
class Built:
    """A compiled form in the cache.

    Attributes:
        path: of the plan or blob.
        size: bytes.
        reused: whether it was there already.
        seconds: what the build, or finding it, took.
        notes: what its owner should know: a smaller workspace after running out of memory, the library's warnings.
    """

    path: Path
    size: int
    reused: bool
    seconds: float
    notes: tuple[str, ...] = ()


Builder: TypeAlias = Callable[
    [str, Path, EncoderSpec, Variant, BuildOptions, "Progress | None"], "tuple[Path, bool, tuple[str, ...]]"
]


def build_variant(
    bundle: Bundle,
    variant: str,
    engine: str,
    options: BuildOptions | None = None,
    *,
    progress: Progress | None = None,
) -> Built:
    """Compile one variant for this device, or for the one that ``options`` name.

    Raises:
        VariantError: no such variant, or the engine is not meant for it.
        EngineError: the engine has nothing to build, or cannot build it here.
        InputError: options that are TensorRT's, for another engine.
        MissingExtraError: the engine's library is not installed.
    """
    if engine not in BUILDERS:
        raise EngineError(f"expected an engine that is built: {', '.join(BUILDERS)}, got {engine!r}")
    described = bundle.variant(variant)
    if not engine_class(engine).suits(described):
        raise VariantError(
            f"{engine} is not meant for {variant}: expected one of {', '.join(suitable(bundle, engine)) or 'none here'}"
        )
    path = bundle.variant_path(variant)
    start = time.perf_counter()
    plan, reused, notes = BUILDERS[engine](
        engine, path, bundle.manifest.encoder, described, options or BuildOptions(), progress
    )
    return Built(plan, plan.stat().st_size, reused, time.perf_counter() - start, notes)


def best_engine() -> str:
    """The engine to build for when none is named: the first of ``PREFERRED`` whose library and device are here.

    Raises:
        EngineError: none is.
    """
    for name in PREFERRED:
        if engine_class(name).available():
            return name
    raise EngineError("no engine that needs building is installed: pip install 'edgeclip[openvino]', or [tensorrt]")


def suitable(bundle: Bundle, engine: str) -> list[str]:
    """Names of the bundle's variants that the engine is meant for."""
    found = engine_class(engine)
    return [variant.name for variant in bundle.manifest.variants if found.suits(variant)]


def _tensorrt(
    engine: str, path: Path, encoder: EncoderSpec, variant: Variant, options: BuildOptions, progress: Progress | None
) -> tuple[Path, bool, tuple[str, ...]]:
    from edgeclip.runtime.engines.tensorrt_build import build

    result = build(engine, path, encoder, variant.precision, options, progress=progress)
    notes = result.messages
    if result.out_of_memory_at and result.workspace_bytes:
        tried = ", ".join(f"{size >> 20:,}" for size in result.out_of_memory_at)
        notes = (f"ran out of memory at {tried} MiB; built within {result.workspace_bytes >> 20:,} MiB", *notes)
    return result.path, result.reused, notes


def _openvino(
    engine: str, path: Path, encoder: EncoderSpec, variant: Variant, options: BuildOptions, _progress: Progress | None
) -> tuple[Path, bool, tuple[str, ...]]:
    from edgeclip.runtime.engines.openvino import build_blob

    if options != BuildOptions():
        given = [field.name for field in fields(options) if getattr(options, field.name) != field.default]
        raise InputError(f"{', '.join(given)}: expected no options of a TensorRT plan with --engine {engine}")
    before = time.time_ns()
    blob = build_blob(path, encoder, precision=variant.precision, engine=engine)
    return blob, blob.stat().st_mtime_ns < before, ()


BUILDERS: dict[str, Builder] = {
    "tensorrt": _tensorrt,
    "tensorrt-rtx": _tensorrt,
    "openvino": _openvino,
    "openvino-gpu": _openvino,
}
