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
        fp32_sums: what is left of it where products are summed in fp32, as cuBLAS does by default: half on tensor
            cores of GeForce cards; absent where it is all the same.
    """

    precision: PrecisionName
    tflops: Figure
    units: Literal["cuda", "tensor", "cpu"]
    per: Literal["device", "core_ghz"] = "device"
    fp32_sums: Figure | None = None

    def total(self, *, cores: int = 1, ghz: float = 1.0, fp32_sums: bool = False) -> float:
        """Peak in 1e12 operations a second.

        Args:
            cores, ghz: of a CPU; they count for one only.
            fp32_sums: with products summed in fp32, whatever the precision that they are taken in.
        """
        figure = self.fp32_sums if fp32_sums and self.fp32_sums else self.tflops
        return figure.value * (cores * ghz if self.per == "core_ghz" else 1.0)


class Precision(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A precision that the device's engines take, and whether it pays there."""

    name: PrecisionName
    wise: bool
    why: str


class PowerMode(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A mode of ``nvpmodel``.

    Attributes:
        id: for ``nvpmodel -m``; absent where it is not known.
        watts: its budget; absent for a mode without one.
        jetpack: first release that has it; absent where all do, or where that is not known.
        gpu_mhz: highest clock of the GPU in it.
        bandwidth_gb_s: peak of the memory in it, where it is not the profile's.
        peaks: peaks in it, where they are not the profile's and the vendor publishes them.
    """

    name: str
    source: str
    id: int | None = None
    watts: float | None = None
    jetpack: str | None = None
    gpu_mhz: float | None = None
    bandwidth_gb_s: Figure | None = None
    peaks: tuple[Peak, ...] = ()
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


class Size(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The same device with another memory, which is all that tells it apart.

    Attributes:
        name: by which it can be asked for, e.g. ``"agx-xavier-16gb"``.
    """

    name: str
    title: str
    gib: Figure


class Boost(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How far a laptop's GPU speeds up, which its maker decides by the power that it grants.

    Attributes:
        watts: least and most that makers grant.
        mhz: boost clock at either.
        source: key of the profile's ``sources``.
    """

    watts: tuple[float, float]
    mhz: tuple[float, float]
    source: str

    def mhz_at(self, watts: float) -> float:
        """Boost clock at a power limit: taken to rise evenly between the two ends, and to stay at them beyond."""
        (least, most), (slowest, fastest) = self.watts, self.mhz
        part = (min(max(watts, least), most) - least) / (most - least)
        return slowest + part * (fastest - slowest)


class GpuTold(msgspec.Struct, frozen=True):
    """What NVML or CUDA told of a machine's first GPU; None for what it did not.

    Attributes:
        bandwidth_gb_s: of its memory: twice the highest clock × the width of the bus.
        power_w: the limit that it is set to by default.
    """

    memory_gib: float | None = None
    bandwidth_gb_s: float | None = None
    power_w: float | None = None


class Match(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How a machine is known to be this device.

    Attributes:
        device_tree: substrings of ``/proc/device-tree/compatible``, of which one is enough and the longest counts:
            numbers of modules, and of carrier boards with one.
        boards: names there, whole, of boards that older releases call by a code name; a module's number goes first.
        gpu_names: NVML's names, whole; one is enough. Cards that share a name are told apart by ``GpuTold``.
        cpu_flags: of ``/proc/cpuinfo``; all have to be there, and the profile that asks for most wins.
        cpu_models: substrings of ``/proc/device-tree/model``; one is enough.
    """

    device_tree: tuple[str, ...] = ()
    boards: tuple[str, ...] = ()
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
        precisions: those that are legal there; where the file has none, those of its GPU's compute capability.
        gpu_mhz: clock of the GPU that ``peaks`` hold at.
        power_w: limit that a card of its name is sold with.
        boost: of a laptop's GPU; ``peaks`` hold at its upper end.
        sizes: memories that it is sold with besides ``memory.gib``.
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
    match: Match
    sources: dict[str, str]
    precisions: tuple[Precision, ...] = ()
    aliases: tuple[str, ...] = ()
    alias_modes: dict[str, str] = {}
    year: int | None = None
    compute_capability: str | None = None
    gpu_mhz: Figure | None = None
    power_w: Figure | None = None
    boost: Boost | None = None
    sizes: tuple[Size, ...] = ()
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

    def at(self, mode: str) -> DeviceProfile:
        """The device in one of its power modes: its bandwidth and peaks are those that hold there.

        Where the vendor publishes no peaks of the mode, the device's are scaled by the clock of the GPU, and say so;
        where that clock is not known either, they stay as they are.

        Raises:
            InputError: it has no mode of that name.
        """
        for each in self.power_modes:
            if each.name == mode:
                bandwidth = each.bandwidth_gb_s or self.memory.bandwidth_gb_s
                return msgspec.structs.replace(
                    self,
                    title=f"{self.title} in {mode}",
                    memory=msgspec.structs.replace(self.memory, bandwidth_gb_s=bandwidth),
                    peaks=each.peaks or self._peaks_at(each.gpu_mhz),
                    gpu_mhz=Figure(each.gpu_mhz, each.source) if each.gpu_mhz else self.gpu_mhz,
                )
        known = ", ".join(each.name for each in self.power_modes) or "none"
        raise InputError(f"expected a power mode of {self.name}, got {mode!r}: known are {known}")

    def sized(self, gib: float | None) -> DeviceProfile:
        """The device with that of its memories that is nearest; itself where None is given."""
        own = self.memory.gib
        if gib is None or own is None or not self.sizes:
            return self
        size = min(self.sizes, key=lambda each: abs(each.gib.value - gib))
        if abs(own.value - gib) <= abs(size.gib.value - gib):
            return self
        return msgspec.structs.replace(
            self, title=size.title, memory=msgspec.structs.replace(self.memory, gib=size.gib), sizes=()
        )

    def at_power(self, watts: float | None) -> DeviceProfile:
        """A laptop's GPU at the power that its maker grants it; any other device, and None, as it is."""
        if watts is None or self.boost is None:
            return self
        mhz = round(self.boost.mhz_at(watts))
        return msgspec.structs.replace(
            self,
            title=f"{self.title} at {watts:g} W",
            peaks=self._peaks_at(mhz),
            gpu_mhz=Figure(mhz, self.boost.source, f"at {watts:g} W"),
            boost=None,
        )

    def _peaks_at(self, gpu_mhz: float | None) -> tuple[Peak, ...]:
        if gpu_mhz is None or self.gpu_mhz is None:
            return self.peaks
        part = gpu_mhz / self.gpu_mhz.value
        note = f"scaled to {gpu_mhz:g} of {self.gpu_mhz.value:g} MHz"

        def scaled(figure: Figure) -> Figure:
            return Figure(
                round(figure.value * part, 3), figure.source, f"{figure.note}; {note}" if figure.note else note
            )

        return tuple(
            msgspec.structs.replace(
                peak, tflops=scaled(peak.tflops), fp32_sums=scaled(peak.fp32_sums) if peak.fp32_sums else None
            )
            for peak in self.peaks
        )


# What engines take on a GPU with tensor cores, with the compute capability that first has it.
OF_CAPABILITY: tuple[tuple[float, Precision], ...] = (
    (7.0, Precision("fp32", False, "runs on the CUDA cores; as the reference only")),
    (
        8.0,
        Precision(
            "tf32",
            False,
            "what TensorRT can make of an fp32 graph; edgeclip keeps it off, so that fp32 stays the reference",
        ),
    ),
    (7.0, Precision("fp16", True, "tensor cores; half of the memory")),
    (8.0, Precision("bf16", True, "tensor cores; fp32's range, where fp16 overflows")),
    (8.9, Precision("fp8", True, "tensor cores, twice fp16's rate; edgeclip makes no fp8 variant yet")),
    (7.2, Precision("int8", True, "tensor cores, twice fp16's rate; measure it, small batches may gain nothing")),
    (
        10.0,
        Precision(
            "fp4",
            False,
            "tensor cores; edgeclip makes no fp4 variant, and its loss on CLIP encoders is not measured",
        ),
    ),
)


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

    An alias of ``alias_modes`` gives the device in that mode, a name of ``sizes`` with that memory.

    Raises:
        InputError: there is none of that name; the message gives the nearest.
    """
    wanted = "-".join(name.lower().replace("_", " ").split())
    if wanted in profile_names():
        return read_profile(PROFILES / f"{wanted}.toml")
    # Only files that hold the name are read as profiles: all of them take long.
    holding = (path for path in sorted(PROFILES.glob("*.toml")) if wanted.encode(errors="replace") in path.read_bytes())
    for profile in map(read_profile, holding):
        if wanted in _names(profile):
            return _named(profile, wanted)
    names = [name for profile in load_profiles() for name in _names(profile)]
    near = get_close_matches(wanted, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise InputError(f"expected the name of a device, got {name!r}: {hint}edgeclip devices lists them all")


def _names(profile: DeviceProfile) -> tuple[str, ...]:
    """All that a profile can be asked for by."""
    return (profile.name, *profile.aliases, *profile.alias_modes, *(size.name for size in profile.sizes))


def _named(profile: DeviceProfile, name: str) -> DeviceProfile:
    if name in profile.alias_modes:
        return profile.at(profile.alias_modes[name])
    return profile.sized(next((size.gib.value for size in profile.sizes if size.name == name), None))


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
    if not profile.precisions and profile.compute_capability:
        has = float(profile.compute_capability)
        known = tuple(precision for first, precision in OF_CAPABILITY if has >= first)
        profile = msgspec.structs.replace(profile, precisions=known)
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
    return [*([record.source] if isinstance(record, Figure | PowerMode | Dla | Boost) else []), *found]
