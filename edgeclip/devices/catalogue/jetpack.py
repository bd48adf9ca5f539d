"""An L4T release or a TensorRT version in, what JetPack brings with it and what is known to be wrong with it out."""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import cache
from pathlib import Path

import msgspec

from edgeclip.errors import InputError

RELEASES = Path(__file__).with_name("releases.toml")


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Something known to be wrong with a component.

    Attributes:
        component: what the range counts: ``"tensorrt"``, ``"l4t"``, ``"python"``, ``"onnxruntime-gpu"``,
            ``"opencv-python"``, ``"compute-capability"``, or ``"dla"`` (by the version of TensorRT).
        first: first version affected; empty for all up to ``last``.
        last: last version affected, with all that begin with it (``"10.4"`` holds 10.4.0.26); empty for no end.
        gate: whether an engine must not be used there unless its outputs were proved.
        source: key of the file's ``sources``.
    """

    id: str
    what: str
    component: str
    advice: str
    source: str
    first: str = ""
    last: str = ""
    gate: bool = False

    def affects(self, version: str) -> bool:
        """Whether a version of the component lies in the range."""
        if self.first and version_key(version) < version_key(self.first):
            return False
        end = version_key(self.last)
        return version_key(version)[: len(end)] <= end if self.last else True


class JetPack(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A JetPack release; a version that NVIDIA does not state is absent.

    Attributes:
        version: as NVIDIA calls it: ``"6.2.1"``, ``"5.0 DP"`` (developer preview).
        l4t: of Jetson Linux, as in ``/etc/nv_tegra_release``, e.g. ``"36.4.3"``, without a zero at its end.
        boards: names of device profiles.
        faults: ids of faults.
        wheels: where Python packages for it come from, for people.
        source: key of the file's ``sources``.
    """

    version: str
    boards: tuple[str, ...]
    source: str
    ubuntu: str
    python: str
    l4t: str | None = None
    cuda: str | None = None
    cudnn: str | None = None
    tensorrt: str | None = None
    faults: tuple[str, ...] = ()
    wheels: tuple[str, ...] = ()
    note: str = ""


class _Releases(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sources: dict[str, str]
    release: tuple[JetPack, ...]
    fault: tuple[Fault, ...]


def load_releases() -> tuple[JetPack, ...]:
    """All releases, in the order of their L4T versions."""
    return _read().release


def load_release(version: str) -> JetPack:
    """The release of a JetPack version.

    Raises:
        InputError: it is not known.
    """
    for release in load_releases():
        if release.version == version:
            return release
    known = ", ".join(each.version for each in load_releases())
    raise InputError(f"expected a JetPack version, got {version!r}: known are {known}")


def load_faults() -> tuple[Fault, ...]:
    """All known faults."""
    return _read().fault


def release_sources() -> dict[str, str]:
    """Key → title and URL of what releases and faults cite."""
    return dict(_read().sources)


def release_for_l4t(l4t: str) -> JetPack | None:
    """The release that an L4T version belongs to: its own, or the last before it of the same major and minor version.

    Security updates have L4T versions of their own (36.4.7) and bring no other libraries.

    Args:
        l4t: e.g. ``"36.4.3"``.
    """
    wanted = version_key(l4t)
    known = sorted((version_key(each.l4t), each) for each in load_releases() if each.l4t)
    before = [each for key, each in known if key[:2] == wanted[:2] and key <= wanted]
    return before[-1] if before else None


def faults_of(tensorrt: str) -> tuple[Fault, ...]:
    """Known faults of a TensorRT version, e.g. ``"10.3.0"``."""
    return tuple(fault for fault in load_faults() if fault.component == "tensorrt" and fault.affects(tensorrt))


def faults_by_id(ids: Collection[str]) -> tuple[Fault, ...]:
    """The faults of those ids, in the order of the file."""
    return tuple(fault for fault in load_faults() if fault.id in ids)


def version_key(version: str) -> tuple[int, ...]:
    """``"10.4.0.26"`` as ``(10, 4, 0, 26)``: numbers, which compare as versions do; what is no number ends them."""
    numbers = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in numbers[0].split(".")) if numbers else ()


@cache
def _read() -> _Releases:
    try:
        return msgspec.toml.decode(RELEASES.read_bytes(), type=_Releases)
    except msgspec.DecodeError as error:
        raise InputError(f"{RELEASES} cannot be read as a list of releases ({error})") from error
