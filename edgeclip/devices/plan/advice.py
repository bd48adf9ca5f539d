"""Variants planned for a device in; which to take, whether it will do, and the commands that build it, out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from edgeclip.devices.catalogue.dla import dla_verdict
from edgeclip.devices.catalogue.jetpack import JetPack, faults_by_id
from edgeclip.devices.catalogue.profile import DeviceProfile, Dla
from edgeclip.devices.plan.cost import GraphCost
from edgeclip.devices.plan.records import Demand, VariantPlan
from edgeclip.devices.plan.speed import Range

# Swap in compressed memory takes of what a build needs. Disabling its service keeps it from the next boot, and leaves
# what is in use now: that is handed to the swap file, if there is any. A system may have neither.
WITHOUT_ZRAM = (
    r"awk '/^\/dev\/zram/ {print $1}' /proc/swaps | xargs -r sudo swapoff",
    "if systemctl cat nvzramconfig >/dev/null 2>&1; then sudo systemctl disable nvzramconfig; fi",
)
# What decoding a 1080p H.264 frame and preprocessing it took of a core of an AMD EPYC; cores of a Jetson take longer.
_FRAME_CORE_MS = Range(6.0, 18.0)


def recommended(variants: Sequence[VariantPlan]) -> VariantPlan | None:
    """The most exact variant that pays and surely meets the demand; else, of those that pay, the fastest expected."""
    usable = [each for each in variants if each.usable]
    worth = [each for each in usable if each.wise] or usable
    certain = [each for each in worth if each.reach == "yes"]
    if certain:
        return certain[0]
    known = [each for each in worth if each.estimate]
    return min(known, key=_expected_ms) if known else next(iter(worth), None)


def _expected_ms(each: VariantPlan) -> float:
    return each.estimate.latency_ms.middle if each.estimate else float("inf")


def verdict(chosen: VariantPlan | None, demand: Demand, variants: Sequence[VariantPlan]) -> str:
    """One sentence: what to expect of the chosen variant, and whether that will do."""
    if chosen is None:
        reasons = list(dict.fromkeys(each.refused for each in variants if each.refused))
        if large := [each.name for each in variants if not each.refused]:
            need = "needs" if len(large) == 1 else "need"
            reasons.append(f"{', '.join(large)} {need} more memory than is free")
        return f"nothing can run: {'; '.join(reasons)}"
    wanted = demand.images_per_s
    if chosen.estimate is None:
        return f"{chosen.name} can run; how fast is not known: measure with edgeclip build"
    speed = chosen.estimate.images_per_s
    expected = f"{chosen.name}: {speed.low:,.0f} to {speed.high:,.0f} images/s"
    if wanted is None:
        return f"{expected}, bound by {chosen.estimate.bound_by}"
    asked = f"{wanted:g} asked for"
    if chosen.reach == "yes":
        return f"{expected}, {asked}: within reach"
    if chosen.reach == "perhaps":
        return f"{expected}, {asked}: measure on the device before promising it"
    return f"{expected}, {asked}: out of reach; label fewer frames (`gate` skips still scenes) or take a smaller model"


def recipe(
    chosen: VariantPlan, profile: DeviceProfile, free: int | None, *, engine: str = "tensorrt"
) -> tuple[str, ...]:
    """Commands that build the variant on the device, within its memory.

    Args:
        engine: of a GPU; on a CPU it is OpenVINO.
    """
    if profile.kind == "cpu":
        return (f"edgeclip build BUNDLE --variant {chosen.name} --engine openvino",)
    batch = chosen.estimate.batch if chosen.estimate else 1
    named = "" if engine == "tensorrt" else f" --engine {engine}"  # which a build takes by itself on a GPU
    command = f"edgeclip build BUNDLE --variant {chosen.name}{named} --batch 1,{batch},{batch}"
    if free is None or chosen.memory is None:
        return (command,)
    lacking = chosen.memory.building - free
    steps = []
    if profile.kind == "jetson" and lacking > 0:
        swap_gib = max(4, -(-lacking // 2**30) + 2)
        steps = [
            "sudo systemctl isolate multi-user.target",
            f"sudo fallocate -l {swap_gib}G /swapfile && sudo chmod 600 /swapfile",
            "sudo mkswap /swapfile && sudo swapon /swapfile",
            *WITHOUT_ZRAM,
        ]
    workspace_mib = max(64, min(1024, int(free * 0.25) >> 20))
    return (*steps, f"{command} --workspace {workspace_mib}")


def notes_on(
    cost: GraphCost, profile: DeviceProfile, demand: Demand, release: JetPack | None, free: int | None
) -> list[str]:
    """What the device's owner should know besides."""
    notes = []
    if release:
        known = faults_by_id((*release.faults, *profile.faults))
        faults = [fault for fault in known if profile.dla or fault.component != "dla"]
        notes += [f"{'prove before use: ' if fault.gate else ''}{fault.what}; {fault.advice}" for fault in faults]
    if boost := profile.boost:
        (least, most), (slowest, fastest) = boost.watts, boost.mhz
        notes.append(
            f"these figures hold where the laptop grants its GPU {most:g} W; at {least:g} W it has "
            f"{slowest / fastest:.0%} of the arithmetic"
        )
    if profile.kind == "jetson" and demand.engine and not demand.engine.endswith(("tensorrt", "tensorrt-rtx")):
        notes.append(
            f"no latency of {demand.engine} on a Jetson was there to fit to: starting kernels takes longer there"
        )
    if profile.dla:
        notes.append(_dla(cost, profile.dla, release))
    if profile.kind == "cpu" and None in (demand.cores, demand.ghz):
        notes.append("a CPU's peaks are those of a core and GHz: give `cores` and `ghz` for its speed")
    if free is None:
        notes.append("what memory is free is not known: give `memory`, GiB")
    if (wanted := demand.images_per_s) is not None:
        low, high = (wanted * ms / 1e3 for ms in (_FRAME_CORE_MS.low, _FRAME_CORE_MS.high))
        notes.append(
            f"decoding and preprocessing {wanted:g} frames/s of 1080p H.264 on the CPU takes {low:.1f} to "
            f"{high:.1f} cores"
        )
    return notes


def _dla(cost: GraphCost, dla: Dla, release: JetPack | None) -> str:
    operators = Counter(cost.operators).elements()
    verdict = dla_verdict(operators, version=dla.version, tensorrt=release.tensorrt if release else None)
    if verdict.fit:
        return "fit for the DLA by its operators (docs/dla.md); the figures here are the GPU's"
    more = f", and {len(verdict.reasons) - 1} more reasons" if len(verdict.reasons) > 1 else ""
    return f"not for the DLA: {verdict.reasons[0]}{more}"
