"""This Python and this user in, what they can use here out: libraries that load, packages, groups, room for engines."""

from __future__ import annotations

import grp
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from edgeclip.devices.catalogue.profile import GpuTold
from edgeclip.devices.machine.probe import installed_versions
from edgeclip.devices.machine.tree import without_home
from edgeclip.devices.machine.try_library import LibraryTrial, Tried, trials
from edgeclip.errors import InputError
from edgeclip.files import cache_place

# Packages that bring the same module, of which the last one installed wins.
_SAME_MODULE = (
    ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless"),
    ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino"),
)
# TensorRT as pip installs it; JetPack's own is called tensorrt too, and has none of these beside it.
PIP_TENSORRT = tuple(f"tensorrt-cu{major}{part}" for major in (12, 13) for part in ("", "-bindings", "-libs"))
_GROUPS = ("video", "render")
_PATIENCE_S = 90.0
# The path comes first: nothing is to be imported from the working folder.
_CHILD = (
    "import sys; sys.path[:] = sys.argv[1].split('\\n'); "
    "from edgeclip.devices.machine.try_library import main; main(*sys.argv[2:])"
)


class Disk(msgspec.Struct, frozen=True):
    """Where engines and proofs are kept.

    Attributes:
        folder: the user's own folder written as ``~``.
        writable: whether this user may write there.
    """

    folder: str
    free_gib: float
    writable: bool


class Software(msgspec.Struct, frozen=True):
    """What this Python and this user can use on this machine.

    Attributes:
        python: version.
        environment: whether it is a virtual environment.
        system_python: whether it is the system's, or an environment of that one.
        system_packages: whether it sees the packages of the system's Python.
        libraries: as they did when tried, each in a process of its own.
        packages: those installed, of the sets that bring the same module and of pip's TensorRT; version by name.
        missing_groups: groups that give access to cameras and GPUs, exist here, and do not have this user.
        closed_devices: cameras that this user may not open.
    """

    python: str
    environment: bool
    system_python: bool
    system_packages: bool
    libraries: tuple[Tried, ...]
    packages: dict[str, str]
    missing_groups: tuple[str, ...]
    closed_devices: tuple[str, ...]
    disk: Disk | None

    def library(self, name: str) -> Tried:
        """How a library did, by doctor's name of it; one that was not tried counts as not installed."""
        return next((tried for tried in self.libraries if tried.name == name), Tried(name, installed=False))

    def loads(self, name: str) -> bool:
        """Whether a library loads and works."""
        tried = self.library(name)
        return tried.version is not None and "broken" not in tried.facts

    def gpus(self) -> tuple[tuple[str, ...], GpuTold]:
        """Names of NVIDIA's GPUs and figures of the first, as NVML or else CUDA told them."""
        return _gpus_of(self.library("nvml").facts or self.library("cuda-bindings").facts)

    def clashes(self) -> list[list[str]]:
        """Installed packages that overwrite each other's files."""
        found = [[name for name in names if name in self.packages] for names in _SAME_MODULE]
        return [names for names in found if len(names) > 1]


def read_software(devices: Iterable[str] = ()) -> Software:
    """Try every library, and look at this user's rights and disk.

    Args:
        devices: cameras, ``/dev/video0``.
    """
    return Software(
        python=platform.python_version(),
        environment=sys.prefix != sys.base_prefix,
        system_python=sys.base_prefix == "/usr",
        system_packages=sys.prefix == "/usr" or any(path.endswith("/dist-packages") for path in sys.path),
        libraries=try_libraries(trials()),
        packages=installed_versions(name for names in (*_SAME_MODULE, PIP_TENSORRT) for name in names),
        missing_groups=_missing_groups(),
        closed_devices=tuple(path for path in devices if not os.access(path, os.R_OK | os.W_OK)),
        disk=_disk(_cache()),
    )


def read_gpus() -> tuple[tuple[str, ...], GpuTold]:
    """As ``Software.gpus``, of this machine, with NVML alone asked."""
    (nvml,) = try_libraries(trial for trial in trials() if trial.name == "nvml")
    return _gpus_of(nvml.facts)


def _gpus_of(facts: dict[str, str]) -> tuple[tuple[str, ...], GpuTold]:
    told = GpuTold(*(_figure(facts.get(name, "")) for name in GpuTold.__struct_fields__))
    return tuple(facts.get("names", "").splitlines()), told


def _figure(text: str) -> float | None:
    """A figure above zero; None for anything else, which a record of a machine may hold."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 < value < math.inf else None


def try_libraries(wanted: Iterable[LibraryTrial]) -> tuple[Tried, ...]:
    """Try libraries, each in a process of its own: one that crashes or hangs is told as that."""
    with ThreadPoolExecutor(min(4, len(os.sched_getaffinity(0)))) as pool:
        return tuple(pool.map(_try, wanted))


def _try(trial: LibraryTrial) -> Tried:
    name, module, asks = trial
    environment = os.environ | {"OPENCV_LOG_LEVEL": "ERROR"}
    try:
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                _CHILD,
                "\n".join(sys.path),
                name,
                module,
                asks or "",
            ],  # it finds what this process would find
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=environment,
            timeout=_PATIENCE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Tried(name, error=f"hangs: nothing for {_PATIENCE_S:g} s")
    if done.returncode < 0:
        return Tried(name, error=f"crashes ({signal.Signals(-done.returncode).name})")
    try:
        tried = msgspec.json.decode(done.stdout.splitlines()[-1], type=Tried)
    except (msgspec.DecodeError, IndexError):
        last = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        return Tried(name, error=without_home(last) or "ends without an answer")
    return msgspec.structs.replace(
        tried,
        error=tried.error and without_home(tried.error),
        details=tuple(without_home(detail) for detail in tried.details),
        facts={key: without_home(value) for key, value in tried.facts.items()},
    )


def _missing_groups() -> tuple[str, ...]:
    if os.geteuid() == 0:
        return ()
    mine = {os.getegid(), *os.getgroups()}
    missing = []
    for name in _GROUPS:
        try:
            if grp.getgrnam(name).gr_gid not in mine:
                missing.append(name)
        except KeyError:  # this system has no such group
            continue
    return tuple(missing)


def _cache() -> Path:
    try:
        return cache_place()
    except InputError:  # no home: a folder of the process will stand in
        return Path(tempfile.gettempdir())


def _disk(folder: Path) -> Disk | None:
    there = next((path for path in (folder, *folder.parents) if path.exists()), None)
    if there is None:
        return None
    try:
        with tempfile.TemporaryFile(dir=there):
            writable = True
    except OSError:
        writable = False
    return Disk(without_home(str(folder)), shutil.disk_usage(there).free / 2**30, writable)
