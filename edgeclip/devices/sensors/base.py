"""Files and libraries that report a machine's state in; channels with a name, a unit and a way to read them out."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

Kind = Literal["power_w", "energy_j", "clock_mhz", "temperature_c", "load", "memory_mb", "throttle", "throttle_count"]
Part = Literal["cpu", "gpu", "chip", "board", "process", "system"]

NEVER = math.nan  # what a channel reads where there is nothing to read: absent, not zero


@dataclass(frozen=True)
class SensorAccuracy:
    """What the maker of a power sensor promises.

    Attributes:
        absolute_w: largest error that does not depend on the power, watts.
        relative: largest error in proportion to the power.
        lag_s: the sensor reports a mean over so many seconds before.
        source: the document that says so.
    """

    absolute_w: float
    relative: float
    source: str
    lag_s: float = 0.0

    def limit_j(self, joules: float, seconds: float) -> float:
        """Largest error of an energy; the two parts are independent and add in quadrature."""
        return math.hypot(self.absolute_w * seconds, self.relative * joules)


@dataclass(frozen=True)
class Channel:
    """One quantity that is read again and again.

    Attributes:
        name: as the machine calls it (``"VDD_IN"``, ``"cpu-thermal"``).
        kind: quantity and unit: watts, joules since some start, MHz, °C, share of the time in [0, 1], 10⁶ bytes;
            ``throttle`` is a bit mask of ``reasons``, or above 0 while the machine is slowed where there are none;
            ``throttle_count`` counts events that slowed it.
        part: what it belongs to.
        in_total: whether this power or energy is part of the machine's total (rails below a measured one are not).
        accuracy: of a power; None where no document states one.
        wraps_j: where an energy counter starts again from zero; 0 if it does not.
        period_s: how often an energy counter is brought up to date, where a document says so.
        reasons: names of the bits of a ``throttle`` channel.
        feeds: what a power rail feeds, where its name says so: ``("CPU", "SOC", "MSS")``. One that feeds several is
            no part's own, and ``part`` is the board.
    """

    name: str
    kind: Kind
    part: Part
    in_total: bool = False
    accuracy: SensorAccuracy | None = None
    wraps_j: float = 0.0
    period_s: float | None = None
    reasons: Mapping[int, str] = field(default_factory=dict)
    feeds: tuple[str, ...] = ()


class SensorSource(ABC):
    """Some channels that are read together; a subclass sets ``_channels``.

    Attributes:
        name: what is read, for people.
        each_time: False for what is too slow to read often; it is read before and after only.
    """

    name: str
    each_time = True

    _channels: tuple[Channel, ...] = ()

    @property
    def channels(self) -> tuple[Channel, ...]:
        """What is read, in the order in which ``read`` returns it.

        A source that learns of more while it is read adds it at the end when this is asked; the tuple stays the same
        one as long as nothing changes.
        """
        return self._channels

    @abstractmethod
    def read(self) -> Sequence[float]:
        """One value a channel of ``channels`` as last asked, NaN for one that cannot be read now; raises nothing."""

    def fault(self, _index: int) -> str:
        """Why a channel could not be read the last time; empty if it could."""
        return ""

    def close(self) -> None:  # noqa: B027 - most sources hold nothing
        """Give up what the source holds."""


@dataclass
class Found:
    """The sources of a machine, and why others are absent.

    Attributes:
        absent: quantity (``"CPU power"``) to reason.
    """

    sources: list[SensorSource] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)

    def add(self, other: Found) -> None:
        """Take over what another search found."""
        self.sources += other.sources
        self.absent.update(other.absent)

    def still_absent(self) -> dict[str, str]:
        """``absent`` without what some source came to report after all."""
        absent = dict(self.absent)
        kinds = {(channel.kind, channel.part) for source in self.sources for channel in source.channels}
        if ("load", "gpu") in kinds or ("clock_mhz", "gpu") in kinds:
            absent.pop("GPU", None)
        if any(kind == "temperature_c" for kind, _ in kinds):
            absent.pop("temperature", None)
        return absent

    @property
    def has_power(self) -> bool:
        """Whether some part of the total power is measured."""
        return any(channel.in_total for source in self.sources for channel in source.channels)


class Reader(Protocol):
    """Something that gives one number."""

    @property
    def fault(self) -> str:
        """Why the last reading failed; empty if it did not."""
        ...

    def read(self) -> float:
        """The number, or NaN with ``fault`` set."""
        ...

    def close(self) -> None:
        """Give up what it holds."""
        ...


class ValueFile:
    """A file of sysfs that holds one number; opened once, read by ``pread``.

    Args:
        path: the file.
        scale: what a unit of the file is in the channel's unit.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path, scale: float = 1.0) -> None:
        self.fault = ""
        self._scale = scale
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self) -> float:
        """The number now, or NaN."""
        try:
            value = float(os.pread(self._file, 64, 0)) * self._scale
        except OSError as error:  # a part that is switched off, a device that went
            self.fault = error.strerror or str(error)
            return NEVER
        except ValueError:
            self.fault = "not a number"
            return NEVER
        self.fault = ""
        return value

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


class ProductFiles:
    """Power from a file of millivolts and one of milliamperes, watts."""

    def __init__(self, millivolts: ValueFile, milliamperes: ValueFile) -> None:
        self._volts, self._amperes = millivolts, milliamperes

    @property
    def fault(self) -> str:
        """Why one of the two could not be read."""
        return self._volts.fault or self._amperes.fault

    def read(self) -> float:
        """Watts now, or NaN."""
        return self._volts.read() * self._amperes.read() * 1e-6

    def close(self) -> None:
        """Close both files."""
        self._volts.close()
        self._amperes.close()


class FileSource(SensorSource):
    """Channels that are a file, or two, each."""

    def __init__(self, name: str, readers: Sequence[tuple[Channel, Reader]], *, each_time: bool = True) -> None:
        self.name = name
        self.each_time = each_time
        self._channels = tuple(channel for channel, _ in readers)
        self._readers = [reader for _, reader in readers]

    def read(self) -> Sequence[float]:
        """One value a file."""
        return [reader.read() for reader in self._readers]

    def fault(self, index: int) -> str:
        """Why a file could not be read the last time."""
        return self._readers[index].fault

    def close(self) -> None:
        """Close the files."""
        for reader in self._readers:
            reader.close()


def text_of(path: Path) -> str:
    """A small file's text without white space or NUL at its ends; empty where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n\t")
    except OSError:
        return ""


def opened(path: Path, scale: float = 1.0) -> ValueFile | None:
    """A ``ValueFile``, or None where the file cannot be opened."""
    try:
        return ValueFile(path, scale)
    except OSError:
        return None


def numbered(folder: Path, pattern: str) -> list[Path]:
    """Entries of a folder that match, by the number in their name: ``hwmon2`` before ``hwmon10``."""

    def key(path: Path) -> tuple[int, str]:
        digits = "".join(character for character in path.name if character.isdigit())
        return (int(digits) if digits else -1, path.name)

    return sorted(folder.glob(pattern), key=key)
