"""Latencies that were published, as data: what the planner's shares are fitted to, each with its encoder's cost."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgeclip.bundle import Bundle
from edgeclip.devices.catalogue.profile import DeviceProfile, load_profile
from edgeclip.devices.plan.cost import GraphCost, Work, WorkKind, load_cost
from edgeclip.devices.plan.speed import Estimate, estimate_on

PUBLISHED = Path(__file__).with_name("published.toml")


class _Cost(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A cost, of which all that no latency depends on may be absent."""

    image_size: tuple[int, int]
    weights: int
    work: dict[WorkKind, Work]
    macs: int | None = None
    activation_peak: int = 0
    activation_traffic: int | None = None
    kernels: int | None = None
    operators: dict[str, int] = {}

    def whole(self) -> GraphCost:
        parts = self.work.values()
        return GraphCost(
            image_size=self.image_size,
            macs=self.macs or sum(part.macs for part in parts),
            weights=self.weights,
            activation_peak=self.activation_peak,
            activation_traffic=self.activation_traffic or sum(part.traffic for part in parts),
            kernels=self.kernels or sum(part.kernels for part in parts),
            operators=self.operators,
            work=self.work,
        )


class _Row(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    device: str
    model: str
    precision: str
    batch: int
    ms: float
    mode: str | None = None
    cores: int | None = None
    ghz: float | None = None


class _Rows(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    source: str
    engine: str
    rows: tuple[_Row, ...]
    copied: bool = False


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sources: dict[str, str]
    costs: dict[str, _Cost]
    latency: tuple[_Rows, ...]


@dataclass(frozen=True)
class Latency:
    """A published latency.

    Attributes:
        device: name or alias of a profile; in its power mode ``mode``, where the source tells one.
        engine: a key of ``SHARES_OF``.
        cost: of the encoder that it is of, ``model``.
        ms: of a batch.
        copied: whether the time counts the copy of the images to a card, which no estimate does.
        cores, ghz: of a CPU.
        source: title and address.
    """

    device: str
    mode: str | None
    engine: str
    model: str
    cost: GraphCost
    precision: str
    batch: int
    ms: float
    copied: bool
    cores: int | None
    ghz: float | None
    source: str

    @property
    def profile(self) -> DeviceProfile:
        """The device, in its power mode."""
        found = load_profile(self.device)
        return found.at(self.mode) if self.mode else found

    def estimated(self) -> Estimate | None:
        """What the planner expects."""
        return estimate_on(
            self.profile,
            self.cost,
            self.precision,
            self.engine,
            batch=self.batch,
            cores=self.cores,
            ghz=self.ghz,
        )

    def __str__(self) -> str:
        place = f"{self.device} {self.mode or ''}".strip()
        return f"{self.engine} {place} {self.model} {self.precision} batch {self.batch}"


def published_latencies() -> tuple[Latency, ...]:
    """All of them, in the order of the file."""
    content = msgspec.toml.decode(PUBLISHED.read_bytes(), type=_File)
    costs = {name: cost.whole() for name, cost in content.costs.items()}
    starter = load_cost(Bundle.open("starter").path)
    assert starter is not None
    costs["starter"] = starter
    return tuple(
        Latency(
            device=row.device,
            mode=row.mode,
            engine=group.engine,
            model=row.model,
            cost=costs[row.model],
            precision=row.precision,
            batch=row.batch,
            ms=row.ms,
            copied=group.copied,
            cores=row.cores,
            ghz=row.ghz,
            source=content.sources[group.source],
        )
        for group in content.latency
        for row in group.rows
    )
