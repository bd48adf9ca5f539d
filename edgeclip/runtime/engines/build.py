"""A bundle's variant in, its compiled form for this device out: built, or found in the cache."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import TypeAlias

from edgeclip.bundle import Bundle
from edgeclip.engine_list import built_engines, engine_entry
from edgeclip.errors import EngineError, VariantError
from edgeclip.runtime.engines.base import engine_class
from edgeclip.runtime.engines.first_run import check_first_run
from edgeclip.runtime.engines.tensorrt_api import Progress
from edgeclip.runtime.engines.tensorrt_options import BuildOptions
from edgeclip.spec import EncoderSpec, Precision

# The engine's name, the graph, what it takes and returns, the variant's precision, options, whom to tell of progress →
# where the compiled form lies, whether it was there already, and what its owner should know.
Builder: TypeAlias = Callable[
    [str, Path, EncoderSpec, Precision, BuildOptions, "Progress | None"], "tuple[Path, bool, tuple[str, ...]]"
]


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
        EngineError: no such engine, it has nothing to build, or cannot build it here.
        InputError: options that are TensorRT's, for another engine.
        MissingExtraError: the engine's library is not installed.
    """
    builds = engine_entry(engine).builds
    if builds is None:
        raise EngineError(f"expected an engine that is built: {', '.join(built_engines())}, got {engine!r}")
    described = bundle.variant(variant)
    if not engine_class(engine).suits(described):
        raise VariantError(
            f"{engine} is not meant for {variant}: expected one of {', '.join(suitable(bundle, engine)) or 'none here'}"
        )
    path = bundle.variant_path(variant)
    check_first_run(bundle, variant)
    start = time.perf_counter()
    builder: Builder = resolve_name(builds)
    plan, reused, notes = builder(
        engine, path, bundle.manifest.encoder, described.precision, options or BuildOptions(), progress
    )
    return Built(plan, plan.stat().st_size, reused, time.perf_counter() - start, notes)


def best_engine() -> str:
    """The engine to build for when none is named: the last of ``built_engines`` whose library and device are here.

    Raises:
        EngineError: none is.
    """
    for name in reversed(built_engines()):
        if engine_class(name).available():
            return name
    raise EngineError("no engine that needs building is installed: pip install 'edgeclip[openvino]', or [tensorrt]")


def suitable(bundle: Bundle, engine: str) -> list[str]:
    """Names of the bundle's variants that the engine is meant for."""
    found = engine_class(engine)
    return [variant.name for variant in bundle.manifest.variants if found.suits(variant)]
