"""A bundle in; which variant and engine a measured trade-off recommends for this machine, out.

``edgeclip tradeoff --apply`` writes it into the bundle. It is advice: what it names is proved on the machine before it
runs, as anything else is, and on another machine it does not count.
"""

from __future__ import annotations

from contextlib import suppress

import msgspec

from edgeclip.bundle import Bundle
from edgeclip.devices.cuda import find_gpu
from edgeclip.devices.probe import Description, describe_machine
from edgeclip.errors import BundleError, MissingExtraError

FILE = "reports/recommendation.json"
# What makes two machines the same to a recommendation. Versions of libraries do not: the proof looks after these.
_SAME = ("architecture", "board", "cpu", "cores_usable", "l4t", "power_mode")


class Recommendation(msgspec.Struct, frozen=True, kw_only=True):
    """What to run on one kind of machine, and why.

    Attributes:
        machine: what of the machine it depends on, see :func:`this_machine`.
        variant, engine: names.
        why: one sentence, with figures.
        data: the labelled set that accuracies were measured on.
        top1: share of its images labelled right, and the images it was measured on.
        latency_ms: median of ``stage``, milliseconds.
        stage: as ``edgeclip bench`` calls it.
        limits: that were asked for, by the names of their options.
    """

    machine: Description
    variant: str
    engine: str
    why: str
    data: str
    top1: float
    n: int
    latency_ms: float
    stage: str
    limits: dict[str, float]


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    recommendations: tuple[Recommendation, ...]


def this_machine() -> Description:
    """What of this machine a recommendation depends on: board or CPU, cores, power mode, GPU."""
    here = {key: value for key, value in describe_machine().items() if key in _SAME}
    with suppress(MissingExtraError):
        if (gpu := find_gpu()) is not None:
            here["gpu"] = gpu.name
    return here


def recommendations(bundle: Bundle) -> tuple[Recommendation, ...]:
    """All that a bundle holds, for whatever machines.

    Raises:
        IntegrityError: the file was altered.
        BundleError: it is not what ``edgeclip tradeoff`` writes.
    """
    if FILE not in bundle.manifest.files:
        return ()
    path = bundle.file(FILE)
    try:
        return msgspec.json.decode(path.read_bytes(), type=_File).recommendations
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BundleError(f"expected a recommendation in {path}, got {error}: run edgeclip tradeoff again") from error


def recommended_here(bundle: Bundle) -> Recommendation | None:
    """The bundle's recommendation for this machine, if it has one and what it names is still there."""
    if FILE not in bundle.manifest.files:
        return None  # without asking what this machine is
    here, names = this_machine(), {variant.name for variant in bundle.manifest.variants}
    for found in recommendations(bundle):
        if found.machine == here and found.variant in names:
            return found
    return None


def add_recommendation(bundle: Bundle, recommendation: Recommendation) -> Bundle:
    """Write a recommendation into a bundle, in place of an earlier one for the same machine.

    Raises:
        BundleError: the bundle cannot be written to.
    """
    others = tuple(found for found in recommendations(bundle) if found.machine != recommendation.machine)
    return bundle.add_file(FILE, msgspec.json.format(msgspec.json.encode(_File((*others, recommendation)))))
