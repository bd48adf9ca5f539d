"""Compiled plans in, the same bytes out: a cache on this device that is checked at every look-up and never shipped.

A plan is kept under the digest of everything that decides its contents (``PlanKey``), with a JSON sidecar that
holds the key and the plan's sha256. The sidecar is written last: a plan without one was not finished and counts as
absent, and one that does not match its sidecar was altered and is removed.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Annotated

import msgspec

from edgeclip.devices.machine.probe import Description, describe_machine
from edgeclip.documents import read_json
from edgeclip.errors import InputError
from edgeclip.files import (
    atomic_file,
    cache_dir,
    external_data,
    keep_file,
    sha256_file,
    sha256_json,
    write_json,
)
from edgeclip.spec import Sha256

Option = str | int | float | bool | None

_PLAN, _SIDECAR = "plan.bin", "plan.json"


class PlanKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that decides what a plan is.

    Attributes:
        engine: name of the inference engine, as in ``edgeclip/engine_list.py``.
        library_version: of the library that compiled the plan.
        variant_sha256: of the ONNX graph, as ``graph_sha256`` computes it.
        device: what the plan runs on (``"sm86"``, a CPU's name).
        options: the build options.
    """

    engine: str
    library_version: str
    variant_sha256: Sha256
    device: str
    options: dict[str, Option] = {}

    @property
    def digest(self) -> str:
        """Hex sha256 of the key's canonical JSON: the name of the plan's folder."""
        return sha256_json(self)


class PlanRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The sidecar of a plan.

    Attributes:
        sha256, size: of the plan; size in bytes.
        build_s: how long the build took, seconds.
        machine: what it was built on.
    """

    key: PlanKey
    sha256: Sha256
    size: Annotated[int, msgspec.Meta(ge=0)]
    build_s: float
    machine: Description


def graph_sha256(path: Path) -> str:
    """Digest of an ONNX graph: the file's sha256, mixed with that of ``<name>.onnx.data`` where there is one."""
    digest = sha256_file(path)
    data = external_data(path)
    if data.is_file():
        digest = hashlib.sha256(f"{digest}{sha256_file(data)}".encode()).hexdigest()
    return digest


def plan_path(key: PlanKey) -> Path:
    """Where the plan of ``key`` is kept, whether it is there or not."""
    return cache_dir("engines", key.digest) / _PLAN


def store(key: PlanKey, plan: bytes, *, build_s: float) -> Path:
    """Keep a plan; a process that is killed meanwhile leaves nothing that ``find`` accepts.

    Returns:
        The plan's path.

    Raises:
        InputError: the cache cannot be written to.
    """
    path = plan_path(key)
    remove(key)
    with atomic_file(path) as temporary:
        temporary.write_bytes(plan)
    record = PlanRecord(
        key=key,
        sha256=hashlib.sha256(plan).hexdigest(),
        size=len(plan),
        build_s=round(build_s, 3),
        machine=describe_machine(),
    )
    write_json(path.with_name(_SIDECAR), record)
    return path


def find(key: PlanKey) -> Path | None:
    """Path of the whole, unaltered plan of ``key``, or None; an altered plan is removed."""
    path = plan_path(key)
    if not path.with_name(_SIDECAR).is_file():
        return None  # not there, or being written at this moment
    record = read_record(path)
    if (
        record is not None
        and record.key == key
        and path.is_file()
        and path.stat().st_size == record.size
        and sha256_file(path) == record.sha256
    ):
        return path
    remove(key)
    return None


def remove(key: PlanKey) -> None:
    """Forget a plan."""
    path = plan_path(key)
    path.with_name(_SIDECAR).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def read_record(path: Path) -> PlanRecord | None:
    """The sidecar of the plan at ``path``; None if there is none that this version of edgeclip can read."""
    try:
        return read_json(path.with_name(_SIDECAR), PlanRecord)
    except InputError:
        return None


def records(engine: str, variant_sha256: str) -> list[PlanRecord]:
    """Sidecars of all plans of one graph for one engine, latest first; ``find`` still has to check each plan."""
    found = []
    for sidecar in cache_dir("engines").glob(f"*/{_SIDECAR}"):
        record = read_record(sidecar)
        if record and record.key.engine == engine and record.key.variant_sha256 == variant_sha256:
            found.append((sidecar.stat().st_mtime_ns, record))
    return [record for _time, record in sorted(found, key=lambda item: item[0], reverse=True)]


def load_side_cache(kind: str, *, engine: str, library_version: str, device: str) -> bytes:
    """What ``save_side_cache`` kept, or nothing: the caller's library checks whether it still fits."""
    path = _side_cache_path(kind, engine, library_version, device)
    return path.read_bytes() if path.is_file() else b""


def save_side_cache(kind: str, data: bytes, *, engine: str, library_version: str, device: str) -> None:
    """Keep bytes that only speed up later builds or loads (a timing cache, compiled kernels), written atomically.

    Args:
        kind: which of an engine's caches.
    """
    path = _side_cache_path(kind, engine, library_version, device)
    keep_file(path, lambda temporary: temporary.write_bytes(data))


def _side_cache_path(*parts: str) -> Path:
    name = "_".join(re.sub(r"[^A-Za-z0-9.+-]+", "-", part) for part in parts)
    return cache_dir("engines") / f"{name}.cache"
