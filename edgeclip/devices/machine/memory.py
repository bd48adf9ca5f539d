"""A machine's files in, its memory out: total, available, swap, and the limit of the container that this runs in."""

from __future__ import annotations

import msgspec

from edgeclip.devices.machine.tree import Tree, field

# Control groups of version 1 say "no limit" with the largest multiple of the page size that fits in 63 bits.
_NO_LIMIT = 1 << 60


class Swap(msgspec.Struct, frozen=True):
    """One swap area.

    Attributes:
        name: device or file, as /proc/swaps has it.
        compressed: whether it is zram, which lies in memory itself.
    """

    name: str
    size_gib: float
    used_gib: float
    compressed: bool


class MachineMemory(msgspec.Struct, frozen=True):
    """What /proc/meminfo, /proc/swaps and the control group say; None for what they do not.

    Attributes:
        available_gib: what a program may still take, file cache included.
        swaps: None where /proc/swaps cannot be read, empty where there is no swap.
        limit_gib: of the control group (a container's ``--memory``).
    """

    total_gib: float | None
    available_gib: float | None
    swaps: tuple[Swap, ...] | None
    limit_gib: float | None


def read_memory(tree: Tree) -> MachineMemory:
    """Memory and swap of a machine, GiB."""
    meminfo = tree.text("proc/meminfo")
    return MachineMemory(
        total_gib=_gib(meminfo, "MemTotal"),
        available_gib=_gib(meminfo, "MemAvailable"),
        swaps=_swaps(tree.text("proc/swaps")),
        limit_gib=_limit_gib(tree),
    )


def _gib(meminfo: str | None, key: str) -> float | None:
    kib = (field(meminfo, key) or "").partition(" ")[0]
    return int(kib) / 2**20 if kib.isdigit() else None


def _swaps(text: str | None) -> tuple[Swap, ...] | None:
    """``Filename Type Size Used Priority``, sizes in KiB, below one line of titles."""
    if text is None:
        return None
    rows = (line.split() for line in text.splitlines()[1:])
    return tuple(
        Swap(row[0], int(row[2]) / 2**20, int(row[3]) / 2**20, "zram" in row[0])
        for row in rows
        if len(row) >= 4 and row[2].isdigit() and row[3].isdigit()
    )


def _limit_gib(tree: Tree) -> float | None:
    limit = tree.number("sys/fs/cgroup/memory.max")  # version 2; "max" is no number, and no limit
    if limit is None:
        limit = tree.number("sys/fs/cgroup/memory/memory.limit_in_bytes")
    return limit / 2**30 if limit is not None and limit < _NO_LIMIT else None
