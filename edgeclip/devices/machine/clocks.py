"""A machine's files in, its clocks out: what CPU and GPU may run at, and whether they are pinned there."""

from __future__ import annotations

import re

import msgspec

from edgeclip.devices.machine.tree import Tree

# Names of a Jetson's GPU in /sys/class/devfreq: Nano and Orin (JetPack 6), TX1, TX2, Xavier, Orin (JetPack 5), Thor.
_GPU = re.compile(r"\.(gpu|gm20b|gp10b|gv11b|ga10b)$|^gpu-gpc-\d+$")


class Clock(msgspec.Struct, frozen=True):
    """A group of cores that share a clock, or the GPU; MHz, None for what its files do not say.

    Attributes:
        name: ``cpu 0-3`` or ``gpu``.
        min_mhz, max_mhz: between which the governor may choose.
        top_mhz: what the hardware can do; ``max_mhz`` may be set lower, by a power mode say.
        governor: who chooses (``schedutil``, ``powersave``, …).
        driver: ``intel_pstate`` and the like, for a CPU: in some, ``powersave`` saves nothing.
        preference: of drivers that take one: ``performance``, …, ``power``.
    """

    name: str
    min_mhz: float | None
    max_mhz: float | None
    now_mhz: float | None
    top_mhz: float | None = None
    governor: str | None = None
    driver: str | None = None
    preference: str | None = None

    @property
    def pinned(self) -> bool | None:
        """Whether it can run at one rate only, as ``jetson_clocks`` makes it; None if that is not known."""
        return None if self.min_mhz is None or self.max_mhz is None else self.min_mhz == self.max_mhz

    @property
    def saves_power(self) -> bool:
        """Whether speed was given up for power: a governor that never speeds up, or a driver told to prefer power."""
        if self.driver in {"intel_pstate", "amd-pstate-epp"}:  # their powersave is the usual one, which follows load
            return self.preference == "power"
        return self.governor == "powersave"


def read_clocks(tree: Tree) -> tuple[Clock, ...]:
    """The clocks of CPUs (cpufreq, kHz) and of a Jetson's GPU (devfreq, Hz); empty where Linux shows none."""
    cpus = [_cpu(tree, path) for path in tree.glob("sys/devices/system/cpu/cpufreq/policy*")]
    gpus = [_gpu(tree, path) for path in tree.glob("sys/class/devfreq/*") if _GPU.search(path.rpartition("/")[2])]
    return (*cpus, *gpus[:1])


def _cpu(tree: Tree, path: str) -> Clock:
    cores = (tree.text(f"{path}/affected_cpus") or path.rpartition("policy")[2]).split()
    return Clock(
        name=f"cpu {cores[0]}-{cores[-1]}" if len(cores) > 1 else f"cpu {' '.join(cores)}",
        min_mhz=_mhz(tree.number(f"{path}/scaling_min_freq"), 1e3),
        max_mhz=_mhz(tree.number(f"{path}/scaling_max_freq"), 1e3),
        now_mhz=_mhz(tree.number(f"{path}/scaling_cur_freq"), 1e3),
        top_mhz=_mhz(tree.number(f"{path}/cpuinfo_max_freq"), 1e3),
        governor=tree.text(f"{path}/scaling_governor"),
        driver=tree.text(f"{path}/scaling_driver"),
        preference=tree.text(f"{path}/energy_performance_preference"),
    )


def _gpu(tree: Tree, path: str) -> Clock:
    return Clock(
        name="gpu",
        min_mhz=_mhz(tree.number(f"{path}/min_freq"), 1e6),
        max_mhz=_mhz(tree.number(f"{path}/max_freq"), 1e6),
        now_mhz=_mhz(tree.number(f"{path}/cur_freq"), 1e6),
        governor=tree.text(f"{path}/governor"),
    )


def _mhz(value: int | None, per_mhz: float) -> float | None:
    return None if value is None else value / per_mhz
