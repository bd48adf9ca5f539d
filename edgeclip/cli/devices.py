"""The verbs ``devices`` and ``devices show``: what is known of devices, as tables or as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from edgeclip.cli.common import console, echo_json

if TYPE_CHECKING:
    from edgeclip.devices.catalogue.jetpack import Fault, JetPack
    from edgeclip.devices.catalogue.profile import DeviceProfile, Figure, Peak, PowerMode
    from edgeclip.devices.machine.tree import Tree

app = typer.Typer(help="What is known of devices: memory, peaks, precisions, power modes, faults.")

_JSON_HELP = "Print the same as JSON."


@app.callback(invoke_without_command=True)
def devices(context: typer.Context, as_json: Annotated[bool, typer.Option("--json", help=_JSON_HELP)] = False) -> None:
    """List all devices that edgeclip has a profile of."""
    if context.invoked_subcommand:
        return
    from edgeclip.devices.catalogue.profile import load_profiles

    if as_json:
        _print_json(msgspec.to_builtins(load_profiles()))
    else:
        print_devices(load_profiles(), console)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Name or alias of a device, e.g. orin-nano.")],
    mode: Annotated[str | None, typer.Option(help="Peaks and bandwidth in this power mode, e.g. MAXN_SUPER.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help=_JSON_HELP)] = False,
) -> None:
    """Print everything that is known of one device, with sources and the faults of its JetPack releases."""
    from edgeclip.devices.catalogue.profile import load_profile
    from edgeclip.devices.machine.tree import Tree

    profile = load_profile(name)
    if mode is not None:
        profile = profile.at(mode)
    present = present_here(profile, Tree())
    if as_json:
        _print_json(as_values(profile, present))
    else:
        print_profile(profile, console, present)


def _print_json(value: object) -> None:
    echo_json(json.dumps(value, indent=2, ensure_ascii=False))


_COLUMNS = ("fp32", "fp16", "bf16", "fp8", "int8")
_IN_A_MODE = ("fp16", "int8")


def print_devices(profiles: Iterable[DeviceProfile], console: Console) -> None:
    """One line a device: memory, compute capability, bandwidth, peaks by precision."""
    table = Table("device", box=None, header_style="bold", padding=(0, 1, 0, 0))
    for title in ("GiB", "cap.", "GB/s", *_COLUMNS):
        table.add_column(title, justify="right", no_wrap=True)
    kind = ""
    for profile in sorted(profiles, key=lambda each: (("jetson", "gpu", "cpu").index(each.kind), each.name)):
        if kind not in ("", profile.kind):
            table.add_row()
        kind = profile.kind
        table.add_row(
            profile.name,
            _value(profile.memory.gib),
            profile.compute_capability or "",
            _value(profile.memory.bandwidth_gb_s),
            *(_short(profile.peak(name)) for name in _COLUMNS),
        )
    console.print(table, highlight=False)
    console.print(
        "\nPeaks: dense, 1e12 operations a second; a CPU's (c): operations a cycle and core.\n"
        "Empty: not supported, not published, or the machine's own.\n"
        "All that is known of one, with sources: edgeclip devices show NAME",
        highlight=False,
        markup=False,
    )


def releases_of(profile: DeviceProfile) -> tuple[JetPack, ...]:
    """The JetPack releases that run on a device, oldest first."""
    from edgeclip.devices.catalogue import jetpack  # when asked for: start-up counts

    return tuple(release for release in jetpack.load_releases() if release.version in profile.jetpacks)


def faults_on(profile: DeviceProfile) -> dict[Fault, tuple[str, ...]]:
    """Known faults of a device and its releases → the JetPacks that have them; none for a fault of all."""
    from edgeclip.devices.catalogue import jetpack

    releases = releases_of(profile)
    ids = {*profile.faults, *(each for release in releases for each in release.faults)}
    if profile.dla is None:
        ids.discard("trt-no-dla")
    return {
        fault: ()
        if fault.id in profile.faults
        else tuple(release.version for release in releases if fault.id in release.faults)
        for fault in jetpack.faults_by_id(ids)
    }


def present_here(profile: DeviceProfile, tree: Tree) -> PowerMode | str | None:
    """The power mode that a machine is in, as ``present_mode``; None where it is another device than the profile's."""
    from edgeclip.devices.machine.machine import match_profile
    from edgeclip.devices.plan.plan import present_mode

    found = match_profile(tree) if profile.power_modes else None
    return present_mode(profile, tree) if found and found.name == profile.name else None


def as_values(profile: DeviceProfile, present: PowerMode | str | None = None) -> dict[str, Any]:
    """All that is known of a device, JSON-able: the profile, its JetPack releases, its faults with their sources.

    Of each power mode it has the peaks and the bandwidth in it, and whether it is the present one.
    """
    from edgeclip.devices.catalogue import jetpack

    sources = jetpack.release_sources()
    releases = releases_of(profile)
    faults = faults_on(profile)
    return {
        **msgspec.to_builtins(profile),
        "power_modes": [
            {
                **msgspec.to_builtins(mode),
                "peaks": {peak.precision: peak.total() for peak in there.peaks},
                "bandwidth_gb_s": there.memory.bandwidth_gb_s.value if there.memory.bandwidth_gb_s else None,
                "present": mode == present,
            }
            for mode in profile.power_modes
            for there in (profile.at(mode),)
        ],
        "releases": msgspec.to_builtins(releases),
        "known_faults": [{**msgspec.to_builtins(fault), "jetpacks": versions} for fault, versions in faults.items()],
        "release_sources": {
            key: sources[key] for key in sorted({each.source for each in releases} | {each.source for each in faults})
        },
    }


def print_profile(profile: DeviceProfile, console: Console, present: PowerMode | str | None = None) -> None:
    """Everything that is known of one device, each figure with the number of its source.

    Args:
        present: its power mode, if it is this machine.
    """
    from edgeclip.devices.catalogue import jetpack
    from edgeclip.devices.catalogue import profile as profiles

    used = list(dict.fromkeys(profiles.cited(profile)))
    number = {key: index for index, key in enumerate(used, 1)}

    def figure(value: Figure | None, unit: str) -> str:
        if value is None:
            return "not known"
        return f"{value.value:g} {unit} [{number[value.source]}]" + (f" ({value.note})" if value.note else "")

    def heading(text: str) -> None:
        console.print(f"\n{text}", style="bold", highlight=False)

    memory, gpu = profile.memory, profile.compute_capability
    facts = _grid()
    facts.add_row("device", f"{profile.name}: {profile.title}" + (f", {profile.year}" if profile.year else ""))
    if profile.mode:
        facts.add_row("power mode", f"{profile.mode.name}: the figures down to the precisions are those in it")
    if names := (
        *profile.aliases,
        *(f"{name} (in {mode})" for name, mode in profile.alias_modes.items()),
        *(f"{size.name} (with {size.gib.value:g} GiB)" for size in profile.sizes),
    ):
        facts.add_row("also", ", ".join(names))
    facts.add_row("architecture", profile.architecture + (f", compute capability {gpu}" if gpu else ""))
    facts.add_row("memory", figure(memory.gib, "GiB") + (", shared by CPU and GPU" if profile.kind == "jetson" else ""))
    facts.add_row("bandwidth", figure(memory.bandwidth_gb_s, "GB/s"))
    if profile.kind == "jetson":
        facts.add_row("system takes", figure(memory.system_reserved_gib, "GiB"))
    if profile.gpu_mhz:
        facts.add_row("GPU clock", figure(profile.gpu_mhz, "MHz"))
    if profile.power_w:
        facts.add_row("power limit", figure(profile.power_w, "W"))
    if boost := profile.boost:
        facts.add_row(
            "laptops",
            f"{boost.watts[0]:g} to {boost.watts[1]:g} W by the laptop, at which it boosts to {boost.mhz[0]:g} to "
            f"{boost.mhz[1]:g} MHz [{number[boost.source]}]; the peaks are those of the upper end",
        )
    if profile.tpcs:
        facts.add_row("TPCs on", figure(profile.tpcs, "").replace("  ", " "))
    if profile.dla:
        tops = figure(profile.dla.int8_tops, "TOPS INT8")
        takes = ", ".join(profile.dla.precisions)
        facts.add_row("DLA", f"{profile.dla.count} of version {profile.dla.version}, {takes}; together {tops}")
    _print(facts, console)

    heading("Peaks, dense")
    peaks = _grid()
    for peak in profile.peaks:
        unit = "TOPS" if peak.precision == "int8" else "TFLOPS"
        unit += " for each core and GHz" if peak.per == "core_ghz" else ""
        peaks.add_row(f"  {peak.precision}", f"{peak.units} units", figure(peak.tflops, unit))
        if peak.fp32_sums:
            peaks.add_row("", "  summed in fp32", figure(peak.fp32_sums, unit))
    _print(peaks, console)

    heading("Precisions that engines take there")
    precisions = _grid()
    for precision in profile.precisions:
        precisions.add_row(f"  {precision.name}", "wise" if precision.wise else "legal", precision.why)
    _print(precisions, console)

    if profile.power_modes:
        _print_modes(profile, present, console, heading, number)
    _print_releases(releases_of(profile), console, heading)
    if faults := faults_on(profile):
        heading("Known faults")
        for fault, versions in faults.items():
            where = f" (JetPack {', '.join(versions)})" if versions else ""
            gate = "; the gate is mandatory" if fault.gate else ""
            text = f"  {fault.id}{where}: {fault.what}{gate}.\n    → {fault.advice}"
            text += f"\n    {jetpack.release_sources()[fault.source]}"
            console.print(text, markup=False, highlight=False, soft_wrap=True)
    lists = {
        "Cameras": [f"{each.interface}: {each.note}".removesuffix(": ") for each in profile.cameras],
        "Wheels": list(profile.wheels),
        "Notes": list(profile.notes),
        "Known by": [
            f"{name.replace('_', ' ')}: {', '.join(values)}"
            for name, values in msgspec.structs.asdict(profile.match).items()
            if values
        ],
        "Sources": [f"[{number[key]}] {profile.sources[key]}" for key in used],
    }
    for title, lines in lists.items():
        if lines:
            heading(title)
            console.print("\n".join(f"  {line}" for line in lines), markup=False, highlight=False, soft_wrap=True)


def _print_modes(
    profile: DeviceProfile, present: PowerMode | str | None, console: Console, heading: Any, number: dict[str, int]
) -> None:
    """A line for each power mode: what it caps, and the peaks and the bandwidth that follow."""
    for boosted in (False, True):
        modes = [mode for mode in profile.power_modes if mode.super_only == boosted]
        if not modes:
            continue
        heading(
            f"Power modes{' of the Super configuration' if boosted else ''} (nvpmodel -m ID); fp16, int8: dense, T/s"
        )
        table = Table(box=None, header_style="", padding=(0, 1, 0, 0))
        for title in ("  ID", "mode", "W", "GPU MHz", "TPCs", *_IN_A_MODE, "GB/s", "CPUs×MHz", ""):
            table.add_column(title, no_wrap=True)
        for mode in modes:
            there = profile.at(mode)
            state = ("default" if mode.default else "", "present" if mode == present else "")
            table.add_row(
                f"  {'?' if mode.id is None else mode.id}",
                mode.name,
                "–" if mode.watts is None else f"{mode.watts:g}",
                f"{mode.gpu_mhz:g}" if mode.gpu_mhz else "?",
                f"{mode.tpcs}" if mode.tpcs else "",
                *(_short(there.peak(name)) for name in _IN_A_MODE),
                _value(there.memory.bandwidth_gb_s),
                "×".join(f"{value:.0f}" for value in (mode.cpus, mode.cpu_mhz) if value),
                ", ".join(filter(None, state)),
            )
        console.print(table, highlight=False)
        for mode in modes:
            if about := "; ".join(filter(None, (mode.jetpack and f"from JetPack {mode.jetpack}", mode.note))):
                _say(f"  {mode.name}: {about}", console)
        _say(
            f"  Clocks and TPCs: {', '.join(f'[{n}]' for n in sorted({number[mode.source] for mode in modes}))}",
            console,
        )
    if isinstance(present, str):
        _say(f"  {present} is the present one, and nothing is known of it", console)


def _say(text: str, console: Console) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _print_releases(releases: tuple[JetPack, ...], console: Console, heading: Any) -> None:
    if not releases:
        return
    heading("JetPack releases")
    columns = ("  JetPack", "L4T", "CUDA", "cuDNN", "TensorRT", "Python", "Ubuntu")
    table = Table(*columns, box=None, header_style="", padding=(0, 2, 0, 0))
    for each in releases:
        versions = (each.l4t, each.cuda, each.cudnn, each.tensorrt, each.python, each.ubuntu)
        table.add_row(f"  {each.version}", *(version or "?" for version in versions))
    console.print(table, highlight=False)


def _grid() -> Table:
    return Table.grid(padding=(0, 2, 0, 0))


def _print(table: Table, console: Console) -> None:
    for column in table.columns[:-1]:
        column.no_wrap = True
    console.print(table, highlight=False, markup=False)


def _value(figure: Figure | None) -> str:
    return "" if figure is None else f"{figure.value:.4g}"


def _short(peak: Peak | None) -> str:
    if peak is None:
        return ""
    value = peak.tflops.value
    if peak.per == "core_ghz":
        return f"{value * 1000:g}c"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
