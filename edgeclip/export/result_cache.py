"""What decides a result in, its bytes out if it was made before: finished INT8 graphs and measured ranges.

An entry is one file in the cache, written whole or not at all and checked by its sha256 when it is read. What is
damaged counts as absent, and what cannot be written is not kept: the cache saves time and decides nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from edgeclip.devices.machine.probe import describe_machine
from edgeclip.errors import InputError
from edgeclip.files import atomic_file, cache_dir, sha256_json
from edgeclip.prompts import FloatArray
from edgeclip.runtime.engines.plan_cache import graph_sha256
from edgeclip.version import __version__

LIMIT_BYTES = 2 << 30  # of all entries together; those used longest ago go first
_FOLDER = "export-results"
_DIGEST_BYTES = hashlib.sha256().digest_size


def result_key(made_by: Sequence[Path], graph: Path, images: FloatArray, options: Any, libraries: Sequence[str]) -> str:
    """Hex sha256 of all that decides a result.

    Args:
        made_by: our own source files that make it, so that a changed one makes it again.
        graph: the FP32 graph; its weights count.
        images: preprocessed, (N, 3, H, W) float32, in their order.
        options: anything that can be written as JSON, e.g. a recipe.
        libraries: distributions whose versions count, beside NumPy's and ONNX Runtime's.

    The processor counts too: sums round otherwise on another one.
    """
    machine = describe_machine()
    return sha256_json(
        [
            [hashlib.sha256(path.read_bytes()).hexdigest() for path in made_by],
            graph_sha256(graph),
            images.shape,
            hashlib.sha256(images.tobytes()).hexdigest(),
            options,
            [__version__, np.__version__, onnxruntime.__version__, *map(_version, libraries)],
            [machine["architecture"], machine.get("cpu"), machine.get("board")],
        ]
    )


def find_result(key: str) -> bytes | None:
    """The result kept under ``key``; None if there is none, or none that is whole."""
    try:
        path = _place(key)
        content = path.read_bytes()
        os.utime(path)  # used just now
    except OSError:
        return None
    digest, result = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    return result if hashlib.sha256(result).digest() == digest else None


def keep_result(key: str, result: bytes) -> None:
    """Keep a result if there is room on the disk; entries beyond ``LIMIT_BYTES`` go, those used longest ago first."""
    with contextlib.suppress(OSError, InputError):
        with atomic_file(_place(key)) as temporary:
            temporary.write_bytes(hashlib.sha256(result).digest() + result)
        room = LIMIT_BYTES
        for path in sorted(cache_dir(_FOLDER).glob("*.result"), key=lambda path: path.stat().st_mtime_ns, reverse=True):
            room -= path.stat().st_size
            if room < 0:
                path.unlink(missing_ok=True)


def _version(library: str) -> str:
    """Empty if it is not installed: whoever needs it says so."""
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return ""


def _place(key: str) -> Path:
    return cache_dir(_FOLDER) / f"{key}.result"
