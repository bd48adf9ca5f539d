"""A graph's cost, a device's profile and what is asked of it in; variants that are legal there, their memory, their
speed as a range, how to build them, and whether the target is reachable, out.

A Jetson is planned for in the power mode that is asked for, or that its profile is in, or in its factory default. For
this machine, ``profile_here`` and ``demand_here`` find the profile in its present mode, and what is free for a model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from edgeclip.devices.catalogue.jetpack import JetPack, load_release, release_for_l4t, version_key
from edgeclip.devices.catalogue.profile import DeviceProfile, GpuTold, PowerMode
from edgeclip.devices.machine.clocks import read_clocks
from edgeclip.devices.machine.cpu import read_cpu
from edgeclip.devices.machine.jetson import read_jetson
from edgeclip.devices.machine.machine import match_profile, read_nvidia
from edgeclip.devices.machine.memory import read_memory
from edgeclip.devices.machine.software import read_gpus
from edgeclip.devices.machine.tree import Tree, field
from edgeclip.devices.plan.advice import notes_on, recipe, recommended, verdict
from edgeclip.devices.plan.calibration import Calibration
from edgeclip.devices.plan.cost import GraphCost
from edgeclip.devices.plan.memory import free_bytes, memory_of
from edgeclip.devices.plan.records import Demand, ModeFigures, Plan, VariantPlan
from edgeclip.devices.plan.speed import Estimate, device_of, engines_of, estimate, shares_of
from edgeclip.engine_list import built_engines
from edgeclip.errors import InputError

_OLDEST_PYTHON = (3, 10)
_LARGEST_BATCH = 8  # that a plan takes when nothing else is asked for, as `edgeclip build` has it
# Variant → precision of its products, the most exact first: those that are made for GPUs, and those for CPUs.
FOR_GPU = {"fp32": "fp32", "fp16": "fp16", "bf16": "bf16", "int8": "int8"}
FOR_CPU = {"fp32": "fp32", "bf16": "bf16", "int8-cpu": "int8"}
_NOTHING_ASKED = Demand()


def plan(
    cost: GraphCost,
    profile: DeviceProfile,
    demand: Demand = _NOTHING_ASKED,
    *,
    calibration: Calibration | None = None,
) -> Plan:
    """Plan for a device that need not be here.

    Args:
        calibration: of the engine, where it was measured on this device or another.

    Raises:
        InputError: a JetPack, a power mode or an engine that the device does not have, or a mode that its JetPack does
            not.
    """
    engine = demand.engine or engines_of(profile)[0]
    shares_of(engine, profile)
    demand = dataclasses.replace(demand, engine=engine)
    release = _release(profile, demand)
    free = free_bytes(profile, demand.memory_gib)
    profile, why = _in_mode(profile, demand, release)
    variants = _variants(cost, profile, demand, release, free, calibration)
    chosen = recommended(variants)
    return Plan(
        device=profile.name,
        title=profile.title,
        demand=demand,
        cost=cost,
        release=release.version if release else None,
        free_bytes=free,
        variants=variants,
        recommended=chosen.name if chosen else None,
        verdict=verdict(chosen, demand, variants),
        recipe=recipe(chosen, profile, free, engine=engine) if chosen and engine in built_engines() else (),
        notes=(
            *_mode_notes(profile),
            *notes_on(cost, profile, demand, release, free),
            *([calibration.told_of(profile)] if calibration else []),
        ),
        engine=engine,
        mode=_figures(profile, why, variants),
        beside=tuple(
            figures
            for other in _faster(profile, release)
            if (figures := _figures(other, "", _variants(cost, other, demand, release, free, calibration)))
        ),
    )


def variants_for(profile: DeviceProfile, wanted: Sequence[str] = ()) -> list[str]:
    """Forms to export beside FP32 for a device: those that pay there, or those wanted.

    Raises:
        InputError: one that is wanted and cannot run there.
    """
    known = FOR_CPU if profile.kind == "cpu" else FOR_GPU
    pays = [each.name for each in profile.precisions if each.wise]
    legal = [name for name, precision in known.items() if name != "fp32" and profile.allows(precision)]
    if refused := [name for name in wanted if name not in legal]:
        raise InputError(
            f"expected variants that run on {profile.name} ({', '.join(legal) or 'fp32 alone'}), "
            f"got {', '.join(refused)}"
        )
    return list(wanted) or [name for name in legal if known[name] in pays]


def profile_here(tree: Tree) -> DeviceProfile:
    """The profile that a machine fits best; a Jetson's in its present power mode, where that is known.

    Raises:
        InputError: none does.
    """
    # Cards of one name may differ in memory, which only their driver tells.
    names, told = read_gpus() if tree.live and read_nvidia(tree) else ((), GpuTold())
    if (found := match_profile(tree, names, told)) is None:
        raise InputError("no device profile fits this machine: name one with `device`; edgeclip devices lists them")
    mode = present_mode(found, tree)
    return found.at(mode) if isinstance(mode, PowerMode) else found


def present_mode(profile: DeviceProfile, tree: Tree) -> PowerMode | str | None:
    """The power mode that a machine of a profile is in; its name alone where the profile has none of that name, and
    None where nvpmodel left no word of it.
    """
    jetson = read_jetson(tree)
    if jetson is None or jetson.mode is None:
        return None
    boosted = any(mode.name == "MAXN_SUPER" for mode in jetson.modes)  # nvpmodel.conf is the Super configuration's
    try:
        return profile.power_mode(jetson.mode.name, boosted=boosted)
    except InputError:
        return jetson.mode.name


def demand_here(demand: Demand, profile: DeviceProfile, tree: Tree) -> Demand:
    """A demand with what the machine itself can tell filled in: free memory, a CPU's cores and clock, a Jetson's
    release, and whether the power mode of ``profile_here`` is its present one.

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
    if demand.jetpack is None and (jetson := read_jetson(tree)) is not None and jetson.l4t:
        release = release_for_l4t(jetson.l4t)
        if release is not None and release.version in profile.jetpacks:
            demand = dataclasses.replace(demand, jetpack=release.version)
    if demand.mode is None and profile.power_modes:
        demand = dataclasses.replace(demand, mode_why=_why_here(profile, present_mode(profile, tree)))
    return demand


def _why_here(profile: DeviceProfile, present: PowerMode | str | None) -> str | None:
    """Where the mode of a plan for this machine comes from, in words; None where the machine has no part in it."""
    if profile.mode is not None:
        return "the present one" if profile.mode == present else None
    if isinstance(present, PowerMode):
        return None
    if present is None:
        return "the factory default: which is the present one is not known"
    return f"the factory default: nothing is known of the present one, {present}"


def _in_mode(profile: DeviceProfile, demand: Demand, release: JetPack | None) -> tuple[DeviceProfile, str]:
    """The profile in the power mode that is planned for, and where that mode comes from, in words."""
    if demand.mode is not None:
        profile, why = profile.at(demand.mode), "as asked"
    elif profile.mode is not None:
        why = "as asked"
    elif (default := profile.default_mode) is not None:
        profile, why = profile.at(default), "the factory default"
        boosted = next((mode for mode in profile.power_modes if mode.default and mode.super_only), None)
        if boosted is not None and _has(release, boosted):
            why += f" ({boosted.name} in the Super configuration)"
    else:
        why = ""
    # What a machine is in, it has, whatever the release that brought it to others.
    if profile.mode is not None and release is not None and not demand.mode_why and not _has(release, profile.mode):
        raise InputError(
            f"expected JetPack {profile.mode.jetpack} or later for {profile.mode.name} of {profile.name}, "
            f"got {release.version}"
        )
    return profile, demand.mode_why or why


def _has(release: JetPack | None, mode: PowerMode) -> bool:
    return not mode.jetpack or release is None or version_key(release.version) >= version_key(mode.jetpack)


def _faster(profile: DeviceProfile, release: JetPack | None) -> list[DeviceProfile]:
    """The device in the modes without a budget that are faster than the one it is in; the fastest where it has none."""
    if profile.mode is None:
        return []
    others = [profile.at(mode) for mode in profile.power_modes if _has(release, mode)]
    unlimited = [each for each in others if each.mode and each.mode.name.startswith("MAXN")]
    if not unlimited:
        unlimited = [max(others, key=_pace)]
    return [each for each in unlimited if _pace(each)[:2] > _pace(profile)[:2]]


def _pace(profile: DeviceProfile) -> tuple[float, float, int]:
    """What one mode is faster by than another, what counts most first."""
    peak, bandwidth = profile.peak("fp16"), profile.memory.bandwidth_gb_s
    cpus = profile.mode.cpus if profile.mode else None
    return (peak.total() if peak else 0.0, bandwidth.value if bandwidth else 0.0, cpus or 0)


def _figures(profile: DeviceProfile, why: str, variants: Sequence[VariantPlan]) -> ModeFigures | None:
    if profile.mode is None:
        return None
    bandwidth = profile.memory.bandwidth_gb_s
    return ModeFigures(
        name=profile.mode.name,
        why=", ".join(filter(None, (why, "in the Super configuration" if profile.mode.super_only else ""))),
        peak_tflops={peak.precision: peak.total() for peak in profile.peaks},
        bandwidth_gb_s=bandwidth.value if bandwidth else None,
        images_per_s={each.name: each.estimate.images_per_s for each in variants if each.estimate},
    )


def _mode_notes(profile: DeviceProfile) -> list[str]:
    """What the owner of a Jetson should know of the power mode it is in."""
    mode = profile.mode
    if mode is None:
        unknown = "its power modes are not known here: all figures are those of its highest clocks, with all TPCs on"
        return [unknown] if profile.kind == "jetson" else []
    notes = [f"{mode.name}: {mode.note}"] if mode.note else []
    most = max((each.tpcs or 0 for each in profile.power_modes), default=0)
    if mode.tpcs and mode.tpcs < most:
        notes.append(
            f"{mode.name} leaves {mode.tpcs} of {most} TPCs of the GPU on: entering and leaving it takes a reboot"
        )
    if mode.super_only:
        notes.append("the Super configuration is chosen when the module is flashed")
    return notes


def _release(profile: DeviceProfile, demand: Demand) -> JetPack | None:
    if demand.jetpack is not None:
        if demand.jetpack not in profile.jetpacks:
            known = ", ".join(profile.jetpacks) or "none: it is no Jetson"
            raise InputError(f"expected a JetPack of {profile.name}, got {demand.jetpack!r}: known are {known}")
        return load_release(demand.jetpack)
    releases = sorted((load_release(each) for each in profile.jetpacks), key=lambda each: version_key(each.version))
    return releases[-1] if releases else None


def _variants(
    cost: GraphCost,
    profile: DeviceProfile,
    demand: Demand,
    release: JetPack | None,
    free: int | None,
    calibration: Calibration | None,
) -> tuple[VariantPlan, ...]:
    return tuple(
        _variant(name, precision, cost, profile, demand, release, free, calibration)
        for name, precision in (FOR_CPU if profile.kind == "cpu" else FOR_GPU).items()
    )


def _variant(
    name: str,
    precision: str,
    cost: GraphCost,
    profile: DeviceProfile,
    demand: Demand,
    release: JetPack | None,
    free: int | None,
    calibration: Calibration | None,
) -> VariantPlan:
    if why := _refusal(precision, profile, release):
        return VariantPlan(name, precision, refused=why)
    allowed = next(each for each in profile.precisions if each.name == precision)
    batch = demand.batch or (1 if profile.kind == "cpu" else min(demand.cameras, _LARGEST_BATCH))
    memory = memory_of(cost, precision, profile, batch=batch, cameras=demand.cameras)
    speed = _speed(cost, precision, profile, demand, batch, calibration)
    return VariantPlan(
        name,
        precision,
        wise=allowed.wise,
        why=allowed.why,
        memory=memory,
        fits=None if free is None else memory.running <= free,
        estimate=speed,
        reach=_reach(speed, demand),
    )


def _speed(
    cost: GraphCost,
    precision: str,
    profile: DeviceProfile,
    demand: Demand,
    batch: int,
    calibration: Calibration | None,
) -> Estimate | None:
    """None where the peak is not published, or a CPU's cores and clock were not given."""
    assert demand.engine is not None  # plan() saw to it
    device = device_of(profile, precision, demand.engine, cores=demand.cores, ghz=demand.ghz)
    if device is None:
        return None
    shares = shares_of(demand.engine, profile)
    if calibration is not None:
        device, shares = calibration.applied(profile, precision, device, shares)
    return estimate(cost, precision, device, batch=batch, shares=shares)


def _refusal(precision: str, profile: DeviceProfile, release: JetPack | None) -> str | None:
    """Why a precision cannot run there, or None."""
    if release and release.python and version_key(release.python) < _OLDEST_PYTHON:
        return f"JetPack {release.version} brings Python {release.python}; edgeclip needs 3.10 or later"
    if not profile.allows(precision):
        return f"{profile.title} has no {precision.upper()}"
    if precision == "bf16" and release and release.tensorrt and version_key(release.tensorrt) < (10,):
        return f"TensorRT {release.tensorrt} takes no BF16 from the graph: expected 10 or later"
    return None


def _reach(speed: Estimate | None, demand: Demand) -> str | None:
    wanted = demand.images_per_s
    if speed is None or wanted is None:
        return None
    if wanted <= speed.images_per_s.low:
        return "yes"
    return "perhaps" if wanted <= speed.images_per_s.high else "no"


def _ghz(tree: Tree) -> float | None:
    """Highest clock of the cores; where cpufreq tells none, as in a virtual machine, what /proc/cpuinfo shows now."""
    highest = [clock.max_mhz for clock in read_clocks(tree) if clock.name != "gpu" and clock.max_mhz]
    now = field(tree.text("proc/cpuinfo"), "cpu MHz")
    mhz = max(highest, default=float(now) if now else None)
    return None if mhz is None else mhz / 1e3
