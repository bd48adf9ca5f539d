"""What damage costs and what the gate sees of it, as ``gate.py`` keeps it in ``docs/results/gate.json``; and back."""

from __future__ import annotations

import msgspec

from edgeclip.devices.machine.probe import Description
from edgeclip.runtime.proof.parity import ParityReport
from edgeclip.spec import Precision

COSTLY, CHEAP = 1.0, 0.3  # points of top-1: what may never pass, and what may never be refused


class Rung(msgspec.Struct, frozen=True, kw_only=True):
    """One damaged variant of a model: what it costs, and what the gate sees of it.

    Attributes:
        kind: of damage.
        precision: whose limits it is held against.
        loss, low, high: points of top-1 lost on labelled images, paired, and the 95 % interval.
        n: labelled images.
        gate: figures on other photographs: ``all`` of them, the ``first`` 64, and the 64 ``views`` of nine stand-ins.
    """

    model: str
    variant: str
    kind: str
    precision: Precision
    loss: float
    low: float
    high: float
    n: int
    gate: dict[str, ParityReport]

    @property
    def price(self) -> str:
        """By the estimate: ``costly``, ``cheap`` or, between, ``grey``."""
        return "costly" if self.loss > COSTLY else "cheap" if self.loss < CHEAP else "grey"

    @property
    def certain(self) -> bool:
        """Whether the whole interval says the same."""
        return {"costly": self.low > COSTLY, "cheap": self.high < CHEAP}.get(self.price, False)


class Unpriced(msgspec.Struct, frozen=True, kw_only=True):
    """What the gate sees of a variant that is no rung: its model has no labelled set that all were run on."""

    model: str
    variant: str
    precision: Precision
    gate: ParityReport


class Loss(msgspec.Struct, frozen=True, kw_only=True):
    """What INT8 costs a model on one set, in points of top-1."""

    model: str
    variant: str = "int8 (edgeclip)"
    data: str
    top1: float
    loss: float
    low: float
    high: float
    n: int


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """All that was found, and where."""

    command: str
    machine: Description
    rungs: tuple[Rung, ...]
    int8: tuple[Loss, ...] = ()
    unpriced: tuple[Unpriced, ...] = ()
