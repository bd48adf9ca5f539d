"""Facts of a machine in, findings on its processor, memory, disk, temperature and container out."""

from __future__ import annotations

from collections.abc import Iterator

from edgeclip.devices.doctor.finding import Facts, Finding, Rule
from edgeclip.devices.machine.clocks import Clock
from edgeclip.devices.machine.temperatures import is_constant

# Chosen, not measured. The 87.8 million weights of ViT-B-32's image tower take 0.33 GiB in FP32.
_MEMORY_GIB = (1.0, 2.0)  # below the first a problem, below the second a note
_DISK_GIB = (0.25, 2.0)


def profile(facts: Facts) -> Iterator[Finding]:
    """Which known device it is."""
    if facts.profile:
        yield Finding("profile", "ok", f"known device: {facts.profile.asked_as}")
    else:
        yield Finding(
            "profile",
            "note",
            "no device profile fits",
            "plans and targets have to be named by hand: --device of the nearest one",
            ("edgeclip devices",),
        )


def int8(facts: Facts) -> Iterator[Finding]:
    """Whether INT8 is exact, and worth anything, on this processor."""
    cpu = facts.machine.cpu
    if cpu.cores is None:  # /proc/cpuinfo says nothing
        return
    if not cpu.adds_int8_exactly:
        yield Finding(
            "cpu-int8",
            "note",
            "this CPU has no VNNI",
            "it adds INT8 products in 16 bits, which overflow: INT8 is computed in float32 here, with no gain, "
            "and not at all by OpenVINO",
            ("edgeclip label BUNDLE SOURCE --variant fp32",),
        )
    elif not cpu.multiplies_int8:
        yield Finding(
            "cpu-int8",
            "note",
            "this CPU has no dot product of bytes (asimddp)",
            "INT8 saves memory here but may be no faster than FP32: measure both",
        )
    else:
        has = [name for name in cpu.features if name in {"avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm"}]
        yield Finding("cpu-int8", "ok", f"CPU fit for INT8: {', '.join(has)}")


def governor(facts: Facts) -> Iterator[Finding]:
    """Whether the CPU may speed up at all."""
    slow = [clock for clock in facts.machine.clocks if clock.saves_power]
    if not slow:
        return
    prefers = slow[0].preference == "power"
    setting = "energy_performance_preference" if prefers else "scaling_governor"
    yield Finding(
        "governor",
        "note",
        f"CPU set to save power ({setting} {'power' if prefers else 'powersave'}): {_names(slow)}",
        "it stays at low clocks under load. Until the next boot this lets it go",
        (f"echo performance | sudo tee /sys/devices/system/cpu/cpufreq/policy*/{setting}",),
    )


def _names(clocks: list[Clock]) -> str:
    return ", ".join(clock.name for clock in clocks) if len(clocks) <= 4 else f"{len(clocks)} groups of cores"


def memory(facts: Facts) -> Iterator[Finding]:
    """Memory that is left for a model and for building an engine."""
    found = facts.machine.memory
    if found.available_gib is None:
        yield Finding("memory", "note", "free memory unknown: /proc/meminfo says nothing", "limits cannot be checked")
        return
    free = found.available_gib
    if found.limit_gib is not None and found.limit_gib < free:
        free = found.limit_gib
    least, wanted = _MEMORY_GIB
    if free >= wanted:
        yield Finding("memory", "ok", f"{free:.1f} GiB of memory free")
        return
    jetson = facts.machine.jetson is not None
    yield Finding(
        "memory",
        "problem" if free < least else "note",
        f"{free:.1f} GiB of memory free",
        "building an engine may be killed. "
        + ("Without its desktop there is more (graphical.target starts it)" if jetson else "This tells what takes it"),
        ("sudo systemctl isolate multi-user.target",) if jetson else ("ps aux --sort=-rss | head",),
    )


def limits(facts: Facts) -> Iterator[Finding]:
    """What a container is granted of the machine."""
    cpu, found = facts.machine.cpu, facts.machine.memory
    if cpu.quota_cores is not None and cpu.cores and cpu.quota_cores < cpu.cores:
        yield Finding(
            "cpu-quota",
            "note",
            f"the control group grants {cpu.quota_cores:g} of {cpu.cores} cores' time",
            f"an engine starts {max(1, int(cpu.quota_cores))} of {cpu.cores} threads; decoding and other programs in "
            "it have the rest, and where that is too little all are made to wait, which makes latency uneven: give "
            "whole cores",
        )
    if found.limit_gib is not None and found.total_gib and found.limit_gib < found.total_gib:
        yield Finding(
            "memory-limit",
            "note",
            f"the control group grants {found.limit_gib:.1f} of {found.total_gib:.1f} GiB of memory",
            "beyond it the process is killed: give the container more for building engines",
            ("docker update --memory SIZE --memory-swap SIZE CONTAINER",)
            if facts.machine.container == "docker"
            else (),
        )


def disk(facts: Facts) -> Iterator[Finding]:
    """Room for engines and proofs."""
    found = facts.software.disk if facts.software else None
    if found is None:
        return
    fix = ("export EDGECLIP_CACHE=/FOLDER/ON/ANOTHER/DISK",)
    if not found.writable:
        yield Finding(
            "disk",
            "problem",
            f"{found.folder} cannot be written",
            "proofs and engines are kept there, and are made anew at every start where they cannot be: choose another "
            "folder",
            fix,
        )
    elif found.free_gib < _DISK_GIB[1]:
        full = found.free_gib < _DISK_GIB[0]
        yield Finding(
            "disk",
            "problem" if full else "note",
            f"{found.free_gib:.2f} GiB free for engines in {found.folder}",
            "an engine holds its weights (0.33 GiB for ViT-B-32 in FP32): make room, or choose another folder",
            (f"du -sh {found.folder}/*", *fix),
        )
    else:
        yield Finding("disk", "ok", f"{found.free_gib:.0f} GiB free for engines in {found.folder}")


def temperature(facts: Facts) -> Iterator[Finding]:
    """Whether it is so hot that Linux slows it down."""
    for zone in facts.machine.temperatures:
        if is_constant(zone.name):
            continue
        if zone.celsius is not None and zone.throttles_at is not None and zone.celsius >= zone.throttles_at:
            yield Finding(
                "temperature",
                "problem",
                f"{zone.name} is at {zone.celsius:.0f} °C, and is slowed down from {zone.throttles_at:.0f} °C on",
                "clocks are lowered until it is cooler: clean or add a fan, or choose a lower power mode",
                ("sudo nvpmodel -q",) if facts.machine.jetson else ("sensors",),
            )


def windows(facts: Facts) -> Iterator[Finding]:
    """What Windows' subsystem for Linux lacks."""
    if facts.machine.wsl:
        yield Finding(
            "wsl",
            "note",
            "this is Windows' subsystem for Linux",
            "USB cameras are seen only when they are attached to it from PowerShell, and its kernel has their driver; "
            "network cameras work",
            ("usbipd list", "usbipd bind --busid BUSID", "usbipd attach --wsl --busid BUSID"),
        )


RULES: tuple[Rule, ...] = (profile, int8, governor, memory, limits, disk, temperature, windows)
