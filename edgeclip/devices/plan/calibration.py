"""What an engine took on a device in; by how much its estimates are to be changed, there and elsewhere, out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from edgeclip.devices.catalogue.profile import DeviceProfile
from edgeclip.devices.plan.cost import GraphCost
from edgeclip.devices.plan.speed import Device, Shares, estimate_on
from edgeclip.errors import InputError

# What of a ratio holds on another device: part of it is the engine's version, which goes along, part the device's own.
_ELSEWHERE = 0.5


@dataclass(frozen=True)
class Timed:
    """A latency that was measured: ``ms`` of a batch, on ``cores`` of a CPU."""

    cost: GraphCost
    precision: str
    batch: int
    ms: float
    cores: int | None = None


@dataclass(frozen=True)
class Calibration:
    """How an engine's estimates compare with what was measured.

    Attributes:
        engine: name.
        device, title: of the profile that it was measured on.
        ratios: by precision, measured latencies by estimated ones, geometric mean.
        count: how many were measured.
    """

    engine: str
    device: str
    title: str
    ratios: dict[str, float]
    count: int

    def applied(self, profile: DeviceProfile, precision: str, device: Device, shares: Shares) -> tuple[Device, Shares]:
        """A device and shares that give calibrated estimates: elsewhere half of the ratio counts, on a log scale."""
        here = profile.name == self.device
        ratio = self.ratios.get(precision) or _mean(list(self.ratios.values()))
        if here and precision in self.ratios:
            shares = msgspec.structs.replace(shares, error=shares.calibrated_error)
        return dataclasses.replace(device, slowness=device.slowness * ratio ** (1.0 if here else _ELSEWHERE)), shares

    def told_of(self, profile: DeviceProfile) -> str:
        """One sentence for the owner of a device."""
        found = ", ".join(f"{precision} {ratio:.2f}" for precision, ratio in self.ratios.items())
        where = "there" if profile.name == self.device else f"on {self.title}, of which half counts here"
        many = f"{self.count} measurement" + ("s" if self.count > 1 else "")
        return f"calibrated by {many} of {self.engine} {where}: times the estimate, {found}"


def calibrate(engine: str, profile: DeviceProfile, timed: Sequence[Timed], *, ghz: float | None = None) -> Calibration:
    """Compare what was measured with what is estimated.

    Args:
        profile: of the device that it was measured on, in the power mode that it was in.
        ghz: of a CPU.

    Raises:
        InputError: an engine that does not run there, or no estimate of anything that was measured.
    """
    found: dict[str, list[float]] = {}
    for each in timed:
        expected = estimate_on(profile, each.cost, each.precision, engine, batch=each.batch, cores=each.cores, ghz=ghz)
        if expected is not None and expected.latency_ms.middle > 0:
            found.setdefault(each.precision, []).append(each.ms / expected.latency_ms.middle)
    if not found:
        raise InputError(
            f"expected measurements of {engine} in a precision whose peak on {profile.title} is known, got none: "
            "measure another variant"
        )
    ratios = {precision: _mean(each) for precision, each in found.items()}
    return Calibration(engine, profile.name, profile.title, ratios, sum(map(len, found.values())))


def _mean(ratios: Sequence[float]) -> float:
    return math.exp(sum(math.log(ratio) for ratio in ratios) / len(ratios))
