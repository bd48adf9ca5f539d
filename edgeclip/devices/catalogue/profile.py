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
        cpus: cores that are on; absent where that is not known.
        cpu_mhz: their highest clock; absent where it caps none, or that is not known.
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
        gpu_mhz, tpcs: clock of the GPU, and TPCs of it that are on, that ``peaks`` hold at.
        emc_mhz: clock of the memory that its bandwidth holds at.
        mode: the power mode that all these hold in, where ``at`` chose one; no file has it.
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
    def asked_as(self) -> str:
        """The name that ``load_profile`` takes for it with the memory that it has."""
        own = self.memory.gib
        return next((size.name for size in self.sizes if own and size.gib.value == own.value), self.name)

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
            none = "" if self.power_modes else ", plan without one" if self.kind == "jetson" else ": it is no Jetson"
            raise InputError(f"expected a power mode of {self.name}, got {name!r}: known are {known}{none}")
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
        base = self._without_mode()
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

    def sized(self, gib: float | None) -> DeviceProfile:
        """The device with that of its memories that is nearest; itself where None is given."""
        own = self.memory.gib
        if gib is None or own is None or not self.sizes:
            return self
        size = min(self.sizes, key=lambda each: abs(each.gib.value - gib))
        if abs(own.value - gib) <= abs(size.gib.value - gib):
            return self
        memory = msgspec.structs.replace(self.memory, gib=size.gib)
        return msgspec.structs.replace(self, title=size.title, memory=memory)

    def at_power(self, watts: float | None) -> DeviceProfile:
        """A laptop's GPU at the power that its maker grants it; any other device, and None, as it is."""
        if watts is None or self.boost is None or self.gpu_mhz is None:
            return self
        mhz, top = round(self.boost.mhz_at(watts)), self.gpu_mhz.value
        return msgspec.structs.replace(
            self,
            title=f"{self.title} at {watts:g} W",
            peaks=_scaled_peaks(self.peaks, mhz / top, f"scaled to {mhz:g} of {top:g} MHz"),
            gpu_mhz=Figure(mhz, self.boost.source, f"at {watts:g} W"),
            boost=None,
        )

    def _without_mode(self) -> DeviceProfile:
        """As its file has it, with the memory that this one has."""
        path = PROFILES / f"{self.name}.toml"
        if self.mode is None or not path.is_file():
            return self
        return read_profile(path).sized(self.memory.gib.value if self.memory.gib else None)

    def _peaks_in(self, mode: PowerMode) -> tuple[Peak, ...]:
        if mode.gpu_mhz is None or self.gpu_mhz is None or (mode.tpcs is None) != (self.tpcs is None):
            return ()
        share, note = mode.gpu_mhz / self.gpu_mhz.value, f"{mode.gpu_mhz:g} of {self.gpu_mhz.value:g} MHz"
        if mode.tpcs and self.tpcs and mode.tpcs != self.tpcs.value:
            share *= mode.tpcs / self.tpcs.value
            note = f"{mode.tpcs} of {self.tpcs.value:g} TPCs at {note}"
        return _scaled_peaks(self.peaks, share, f"scaled to {note}")


def _scaled(figure: Figure, share: float, note: str) -> Figure:
    """A figure's share, in four digits: no published one has more; the figure itself where the share is the whole."""
    if share == 1:
        return figure
    value = float(f"{figure.value * share:.4g}")
    return Figure(value, figure.source, f"{figure.note}; {note}" if figure.note else note)


def _mode_key(name: str) -> str:
    return name.upper().replace(" ", "_").replace("-", "_").removeprefix("MODE_")


def _scaled_peaks(peaks: tuple[Peak, ...], share: float, note: str) -> tuple[Peak, ...]:
    return tuple(
        msgspec.structs.replace(
            peak,
            tflops=_scaled(peak.tflops, share, note),
            fp32_sums=_scaled(peak.fp32_sums, share, note) if peak.fp32_sums else None,
        )
        for peak in peaks
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

    An alias of ``alias_modes`` gives the device in that mode, as ``at`` does, a name of ``sizes`` with that memory.

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
