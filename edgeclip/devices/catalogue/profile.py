"""The name of a device in, what is known of it out: memory, peaks, precisions, power modes, and each one's source.

One TOML file a device lies in ``profiles/``; its stem is the device's name. Figures are dense (no sparsity) and as the
vendor publishes them; what is not published is absent.
"""

from __future__ import annotations

from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Literal

import msgspec

from edgeclip.errors import InputError

PROFILES = Path(__file__).parent / "profiles"

PrecisionName = Literal["fp32", "tf32", "fp16", "bf16", "fp8", "int8", "fp4"]


class Figure(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A published number.

    Attributes:
        value: in the unit that the field's name gives.
        source: key of the profile's ``sources``.
        note: how it was derived, where the source does not print it as it stands.
    """

    value: float
    source: str
    note: str = ""


class Memory(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Memory that a model's weights and activations lie in.

    Attributes:
        gib: size as sold; absent for a CPU, where it is the machine's.
        shared: whether CPU and GPU share it.
        bandwidth_gb_s: peak, in 1e9 bytes a second.
        system_reserved_gib: what a booted system without a desktop takes of it.
    """

    shared: bool
    gib: Figure | None = None
    bandwidth_gb_s: Figure | None = None
    system_reserved_gib: Figure | None = None


class Peak(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Peak arithmetic of one precision, dense.

    Attributes:
        tflops: in 1e12 operations a second, a multiply-add being two; for a CPU see ``per``.
        units: which units reach it.
        per: ``"device"``, or ``"core_ghz"``: for each core and GHz, as a CPU's peak depends on both.
    """

    precision: PrecisionName
    tflops: Figure
    units: Literal["cuda", "tensor", "cpu"]
    per: Literal["device", "core_ghz"] = "device"

    def total(self, *, cores: int = 1, ghz: float = 1.0) -> float:
        """Peak in 1e12 operations a second; ``cores`` and ``ghz`` count for a CPU only."""
        return self.tflops.value * (cores * ghz if self.per == "core_ghz" else 1.0)


class Precision(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A precision that the device's engines take, and whether it pays there."""

    name: PrecisionName
    wise: bool
    why: str


class PowerMode(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A mode of ``nvpmodel``: what it caps, as in the board's ``nvpmodel.conf``. What follows for peaks and bandwidth
    is worked out by ``DeviceProfile.at``.

    Attributes:
        id: for ``nvpmodel -m``; absent where it is not known.
        watts: its budget; absent for a mode without one.
        jetpack: first release that has it; absent where all do, or where that is not known.
        default: whether the board starts in it; where there is a Super configuration, each has a default of its own.
        super_only: whether it is of the Super configuration alone, which is chosen when the module is flashed; a mode
            of the same name without this is the other configuration's.
        gpu_mhz: highest clock of the GPU in it; absent where it is not known, and then no peak is.
        tpcs: how many of the GPU's TPCs its ``TPC_PG_MASK`` leaves on; absent where the profile has none to count.
        emc_mhz: highest clock of the memory in it; absent where it caps none.
        cpus: cores that are on.
        cpu_mhz: their highest clock; absent where it caps none.
    """

    name: str
    source: str
    id: int | None = None
    watts: float | None = None
    jetpack: str | None = None
    default: bool = False
    super_only: bool = False
    gpu_mhz: float | None = None
    tpcs: int | None = None
    emc_mhz: float | None = None
    cpus: int | None = None
    cpu_mhz: float | None = None
    note: str = ""


class Dla(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """NVIDIA's deep learning accelerators.

    Attributes:
        int8_tops: of all together, dense.
    """

    count: int
    version: Literal["1.0", "2.0"]
    precisions: tuple[PrecisionName, ...]
    source: str
    int8_tops: Figure | None = None


class Camera(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A way to attach cameras."""

    interface: Literal["usb", "csi", "rtsp"]
    note: str = ""


class Match(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How a machine is known to be this device.

    Attributes:
        device_tree: substrings of ``/proc/device-tree/compatible``; one is enough.
        gpu_names: NVML's names, whole; one is enough. Devices that differ in memory alone share a name.
        cpu_flags: of ``/proc/cpuinfo``; all have to be there, and the profile that asks for most wins.
        cpu_models: substrings of ``/proc/device-tree/model``; one is enough.
    """

    device_tree: tuple[str, ...] = ()
    gpu_names: tuple[str, ...] = ()
    cpu_flags: tuple[str, ...] = ()
    cpu_models: tuple[str, ...] = ()


class DeviceProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A device.

    Attributes:
        name: stem of its file, e.g. ``"orin-nano-8gb"``.
        aliases: other names, e.g. ``"orin-nano"``.
        alias_modes: names that mean the device in one of its power modes, e.g. ``"orin-nano-super"`` → its mode.
        compute_capability: of its GPU, e.g. ``"8.7"``.
        architecture: of its GPU (``"Ampere"``), or of a CPU (``"x86-64"``, ``"aarch64"``).
        precisions: those that are legal there.
        gpu_mhz, tpcs: clock of the GPU, and TPCs of it that are on, that ``peaks`` hold at.
        emc_mhz: clock of the memory that its bandwidth holds at.
        mode: the power mode that all these hold in, where ``at`` chose one; no file has it.
        jetpacks: versions of ``releases.toml``.
        wheels: where its Python packages come from, for people.
        faults: ids of faults in ``releases.toml`` that hold on the device whatever its release.
        sources: key → title and URL.
    """

    name: str
    title: str
    kind: Literal["jetson", "gpu", "cpu"]
    architecture: str
    memory: Memory
    peaks: tuple[Peak, ...]
    precisions: tuple[Precision, ...]
    match: Match
    sources: dict[str, str]
    aliases: tuple[str, ...] = ()
    alias_modes: dict[str, str] = {}
    year: int | None = None
    compute_capability: str | None = None
    gpu_mhz: Figure | None = None
    tpcs: Figure | None = None
    emc_mhz: Figure | None = None
    mode: PowerMode | None = None
    power_modes: tuple[PowerMode, ...] = ()
    dla: Dla | None = None
    cameras: tuple[Camera, ...] = ()
    jetpacks: tuple[str, ...] = ()
    wheels: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def peak(self, precision: str) -> Peak | None:
        """The fastest units' peak of a precision; None where it is not supported or not published."""
        found = [peak for peak in self.peaks if peak.precision == precision]
        return max(found, key=lambda peak: peak.tflops.value, default=None)

    def allows(self, precision: str) -> bool:
        """Whether the device's engines take the precision at all."""
        return any(each.name == precision for each in self.precisions)

    @property
    def default_mode(self) -> PowerMode | None:
        """The power mode that it leaves the factory in, without the Super configuration; None where that is unknown."""
        return next((mode for mode in self.power_modes if mode.default and not mode.super_only), None)

    def power_mode(self, name: str, *, boosted: bool | None = None) -> PowerMode:
        """The power mode of a name; capitals, and ``MODE_`` before it, do not count.

        Args:
            name: ``"MODE_30W"``, ``"30W"``, ``"MAXN_SUPER"``.
            boosted: whether the Super configuration's is meant where both have one of that name; None: as the mode
                that the device is in.

        Raises:
            InputError: it has no mode of that name.
        """
        found = [mode for mode in self.power_modes if _mode_key(mode.name) == _mode_key(name)]
        if not found:
            known = ", ".join(dict.fromkeys(mode.name for mode in self.power_modes)) or "none"
            raise InputError(f"expected a power mode of {self.name}, got {name!r}: known are {known}")
        if boosted is None:
            boosted = self.mode is not None and self.mode.super_only
        return next((mode for mode in found if mode.super_only == boosted), found[0])

    def at(self, mode: str | PowerMode) -> DeviceProfile:
        """The device in one of its power modes: its bandwidth and peaks are those that hold there.

        Peaks follow from the clock of the GPU and the TPCs that are on, bandwidth from the clock of the memory, each
        figure's note says how. Where a mode's clock or TPCs are not known, it has no peaks.

        Raises:
            InputError: it has no mode of that name.
        """
        chosen = self.power_mode(mode) if isinstance(mode, str) else mode
        # From its own figures, not from those of the mode that it is in.
        base = next((each for each in load_profiles() if each.name == self.name), self) if self.mode else self
        memory, emc = base.memory, base.emc_mhz
        if chosen.emc_mhz and emc and memory.bandwidth_gb_s:
            note = f"memory at {chosen.emc_mhz:g} of {emc.value:g} MHz"
            bandwidth = _scaled(memory.bandwidth_gb_s, chosen.emc_mhz / emc.value, note)
            memory = msgspec.structs.replace(memory, bandwidth_gb_s=bandwidth)
            emc = Figure(chosen.emc_mhz, chosen.source)
        return msgspec.structs.replace(
            base,
            mode=chosen,
            memory=memory,
            emc_mhz=emc,
            peaks=base._peaks_in(chosen),
            gpu_mhz=Figure(chosen.gpu_mhz, chosen.source) if chosen.gpu_mhz else None,
            tpcs=Figure(chosen.tpcs, chosen.source) if chosen.tpcs else None,
        )

    def _peaks_in(self, mode: PowerMode) -> tuple[Peak, ...]:
        if mode.gpu_mhz is None or self.gpu_mhz is None or (mode.tpcs is None) != (self.tpcs is None):
            return ()
        share, note = mode.gpu_mhz / self.gpu_mhz.value, f"{mode.gpu_mhz:g} of {self.gpu_mhz.value:g} MHz"
        if mode.tpcs and self.tpcs and mode.tpcs != self.tpcs.value:
            share *= mode.tpcs / self.tpcs.value
            note = f"{mode.tpcs} of {self.tpcs.value:g} TPCs at {note}"
        return tuple(
            msgspec.structs.replace(peak, tflops=_scaled(peak.tflops, share, f"scaled to {note}"))
            for peak in self.peaks
        )


def _scaled(figure: Figure, share: float, note: str) -> Figure:
    """A figure's share, in four digits: no published one has more; the figure itself where the share is the whole."""
    if share == 1:
        return figure
    value = float(f"{figure.value * share:.4g}")
    return Figure(value, figure.source, f"{figure.note}; {note}" if figure.note else note)


def _mode_key(name: str) -> str:
    return name.upper().replace(" ", "_").replace("-", "_").removeprefix("MODE_")


@cache
def profile_names() -> tuple[str, ...]:
    """Names of all profiles, sorted."""
    return tuple(sorted(path.stem for path in PROFILES.glob("*.toml")))


@cache
def load_profiles() -> tuple[DeviceProfile, ...]:
    """All profiles, sorted by name."""
    return tuple(read_profile(PROFILES / f"{name}.toml") for name in profile_names())


def load_profile(name: str) -> DeviceProfile:
    """The profile of a name or an alias; capitals, spaces and underscores do not count.

    An alias of ``alias_modes`` gives the device in that mode, as ``at`` does.

    Raises:
        InputError: there is none of that name; the message gives the nearest.
    """
    wanted = "-".join(name.lower().replace("_", " ").split())
    if wanted in profile_names():
        return read_profile(PROFILES / f"{wanted}.toml")
    by_name = {alias: each for each in load_profiles() for alias in (each.name, *each.aliases, *each.alias_modes)}
    if wanted in by_name:
        found = by_name[wanted]
        return found.at(found.alias_modes[wanted]) if wanted in found.alias_modes else found
    near = get_close_matches(wanted, by_name, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise InputError(f"expected the name of a device, got {name!r}: {hint}edgeclip devices lists them all")


@cache
def read_profile(path: Path) -> DeviceProfile:
    """Read one file and check what its types cannot say.

    Raises:
        InputError: the file is not a profile, is not named as its device, or cites what ``sources`` does not have.
    """
    try:
        profile = msgspec.toml.decode(path.read_bytes(), type=DeviceProfile)
    except msgspec.DecodeError as error:
        raise InputError(f"{path} is no device profile ({error}): see docs/devices.md") from error
    if profile.name != path.stem:
        raise InputError(f"expected name = {path.stem!r} in {path}, got {profile.name!r}: name the file as its device")
    if unknown := set(cited(profile)) - set(profile.sources):
        raise InputError(f"{path} cites {sorted(unknown)}, which [sources] does not have: add title and URL there")
    return profile


def cited(record: object) -> list[str]:
    """Every key of ``sources`` that a record and what it holds cite, in order."""
    if isinstance(record, tuple):
        return [source for each in record for source in cited(each)]
    if not isinstance(record, msgspec.Struct):
        return []
    found = [source for field in record.__struct_fields__ for source in cited(getattr(record, field))]
    return [*([record.source] if isinstance(record, Figure | PowerMode | Dla) else []), *found]
