"""A benchmark in; by how much the planner's estimates of an engine are to be changed out."""

from __future__ import annotations

from edgeclip.devices.catalogue.profile import DeviceProfile, load_profile
from edgeclip.devices.plan.calibration import Calibration, Timed, calibrate
from edgeclip.devices.plan.plan import FOR_CPU, FOR_GPU
from edgeclip.devices.plan.speed import engines_of
from edgeclip.errors import InputError
from edgeclip.evaluation.bench.records import BenchResult, Measured


def calibration_of(result: BenchResult, engine: str | None = None) -> Calibration:
    """Compare the batches that were timed on one engine with what is estimated of them.

    Args:
        engine: None for the one that a plan takes by itself, or else the first that was measured.

    Raises:
        InputError: a machine that fits no profile, or nothing that was measured of the engine can be estimated.
    """
    if result.device is None:
        raise InputError(
            "expected a benchmark that names its device, got one of a machine that fits no profile, or of an edgeclip "
            "that did not write it: measure again, and see edgeclip devices"
        )
    profile = load_profile(result.device)
    if profile.power_modes:
        if (mode := result.machine.get("power_mode")) is None:  # as in a container, which does not see nvpmodel's files
            raise InputError(
                f"expected a benchmark that tells the power mode of the {profile.title}, got one that does not: its "
                "times cannot be compared; measure outside of a container"
            )
        profile = profile.at(str(mode))
    known = engines_of(profile)
    timed = {
        name: found
        for name in known
        if (found := [_timed(each, result, profile) for each in result.measured if _counts(each, name, result)])
    }
    chosen = engine or next(iter(timed), known[0])
    if chosen not in timed:
        measured = ", ".join(timed) or "none that can be estimated"
        raise InputError(
            f"expected measurements of {chosen} on {profile.title}, got {measured}: measure it, or name one"
        )
    return calibrate(chosen, profile, timed[chosen], ghz=result.ghz)


def _counts(each: Measured, engine: str, result: BenchResult) -> bool:
    setting = each.setting
    return (
        setting.stage == "engine"
        and setting.engine == engine
        and setting.model in result.costs
        and setting.variant in {**FOR_GPU, **FOR_CPU}
    )


def _timed(each: Measured, result: BenchResult, profile: DeviceProfile) -> Timed:
    setting = each.setting
    cores = setting.threads or result.machine.get("cores_usable")
    return Timed(
        cost=result.costs[setting.model],
        precision={**FOR_GPU, **FOR_CPU}[setting.variant],
        batch=setting.batch,
        ms=each.p50.mean,
        cores=cores if profile.kind == "cpu" and isinstance(cores, int) and cores > 0 else None,
    )
