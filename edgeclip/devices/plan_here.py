"""This machine in; its profile, and what of it is free for a model, out: what a plan for it starts from."""

from __future__ import annotations

import dataclasses

from edgeclip.devices.clocks import read_clocks
from edgeclip.devices.cpu import read_cpu
from edgeclip.devices.machine import match_profile
from edgeclip.devices.memory import read_memory
from edgeclip.devices.plan_records import Demand
from edgeclip.devices.profile import DeviceProfile
from edgeclip.devices.tree import Tree, field
from edgeclip.errors import InputError


def profile_here(tree: Tree) -> DeviceProfile:
    """The profile that a machine fits best.

    Raises:
        InputError: none does.
    """
    if (found := match_profile(tree)) is None:
        raise InputError("no device profile fits this machine: name one with --device; edgeclip devices lists them")
    return found


def demand_here(demand: Demand, profile: DeviceProfile, tree: Tree) -> Demand:
    """A demand with what the machine itself can tell filled in: free memory, and a CPU's cores and clock.

    What was asked for stays; a GPU with memory of its own does not show how much of it is free.
    """
    memory = read_memory(tree)
    if demand.memory_gib is None and profile.kind != "gpu":
        available = [gib for gib in (memory.available_gib, memory.limit_gib) if gib is not None]
        demand = dataclasses.replace(demand, memory_gib=min(available, default=None))
    if profile.kind == "cpu":
        cpu = read_cpu(tree)
        cores = demand.cores or (int(min(cpu.cores, cpu.quota_cores or cpu.cores)) or 1 if cpu.cores else None)
        demand = dataclasses.replace(demand, cores=cores, ghz=demand.ghz or _ghz(tree))
    return demand


def _ghz(tree: Tree) -> float | None:
    """Highest clock of the cores; where cpufreq tells none, as in a virtual machine, what /proc/cpuinfo shows now."""
    highest = [clock.max_mhz for clock in read_clocks(tree) if clock.name != "gpu" and clock.max_mhz]
    now = field(tree.text("proc/cpuinfo"), "cpu MHz")
    mhz = max(highest, default=float(now) if now else None)
    return None if mhz is None else mhz / 1e3
