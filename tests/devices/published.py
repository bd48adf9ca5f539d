"""Latencies that others published out, as data: what the planner's ranges are held against."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgeclip.devices.plan.cost import GraphCost

PUBLISHED = Path(__file__).with_name("published.toml")


class _Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    device: str
    model: str
    precision: str
    batch: int
    ms: float


class _Rows(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    source: str
    rows: tuple[_Row, ...]


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sources: dict[str, str]
    costs: dict[str, GraphCost]
    latency: tuple[_Rows, ...]


@dataclass(frozen=True)
class Latency:
    """A published latency.

    Attributes:
        device: name or alias of a profile.
        cost: of the encoder that it is of, ``model``.
        ms: of a batch.
        source: title and address.
    """

    device: str
    model: str
    cost: GraphCost
    precision: str
    batch: int
    ms: float
    source: str


def published_latencies() -> tuple[Latency, ...]:
    """All of them, in the order of the file."""
    content = msgspec.toml.decode(PUBLISHED.read_bytes(), type=_File)
    return tuple(
        Latency(
            device=row.device,
            model=row.model,
            cost=content.costs[row.model],
            precision=row.precision,
            batch=row.batch,
            ms=row.ms,
            source=content.sources[group.source],
        )
        for group in content.latency
        for row in group.rows
    )
