"""The verb ``doctor``: what this machine is, what it can use and what to mend, on one screen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from edgeclip.cli.common import console, echo_json, notices, output_file

if TYPE_CHECKING:
    from edgeclip.devices.doctor.examine import Report
    from edgeclip.devices.doctor.finding import Finding
    from edgeclip.devices.machine.clocks import Clock
    from edgeclip.devices.machine.machine import Machine
    from edgeclip.devices.machine.software import Software


def doctor(
    json_output: Annotated[bool, typer.Option("--json", help="Print all of it as JSON, and nothing else.")] = False,
    root: Annotated[
        Path, typer.Option(help="Look at another machine: a tar made there with --record, or a copy of its files.")
    ] = Path("/"),
    record: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.tar",
            help="Keep what was read, for support: system files alone, nothing personal.",
            callback=output_file,
        ),
    ] = None,
) -> None:
    """Say what this machine is, which engines load, and what to mend with which command.

    Exit code 0; 1 if something keeps edgeclip from running here at all; 2 if the options cannot be used.
    """
    from edgeclip.devices.doctor.examine import examine

    with notices.status("trying libraries"):
        report = examine(root, record=record)
    if json_output:
        _print_json(report)
    else:
        print_report(report, console)
    if record:
        notices.print(f"recorded: {record} (tar -tf lists it)", highlight=False, soft_wrap=True)
    if report.stops:
        raise typer.Exit(1)


def _print_json(report: Report) -> None:
    import msgspec

    echo_json(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())


_MARKS = {"problem": ("✗", "bold red"), "note": ("!", "bold yellow"), "ok": ("✓", "green")}


def print_report(report: Report, console: Console) -> None:
    """Print what the machine is, how its libraries do, and what was found; problems come last, where the eye ends."""
    console.print(_title(report), highlight=False)
    console.print(Padding(_rows(_machine(report)), (0, 0, 1, 2)), highlight=False)
    if report.software:
        console.print(Padding(_rows(_software(report.software)), (0, 0, 1, 2)), highlight=False)
    else:
        console.print(
            "  libraries, rights and disk were not looked at: these are the files of another machine\n", style="dim"
        )
    fine = report.of("ok")
    if fine:
        console.print(_line(fine[0].level, " · ".join(finding.what for finding in fine)), highlight=False)
    for finding in [*report.of("note"), *report.of("problem")]:
        _print_finding(finding, console)
    console.print(_verdict(report), highlight=False)


def _title(report: Report) -> Text:
    title = Text(report.machine.title, style="bold")
    if report.device:
        title.append(f"  {report.device}", style="cyan")
    title.append("  (recorded files)" if report.recorded else "", style="dim")
    return title


def _rows(rows: list[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, value in rows:
        table.add_row(name, Text(value))
    return table


def _machine(report: Report) -> list[tuple[str, str]]:
    machine = report.machine
    system = [machine.distribution, f"Linux {machine.kernel}" if machine.kernel else None]
    system += [f"in a {machine.container} container" if machine.container else None, "WSL" if machine.wsl else None]
    rows = [("system", _joined(system))]
    if machine.jetson:
        release = report.jetpack
        brings = [f"JetPack {release.version}" if release else "JetPack unknown"]
        brings.append(f"Jetson Linux {machine.jetson.l4t}" if machine.jetson.l4t else "")
        brings += [f"CUDA {release.cuda}" if release and release.cuda else ""]
        rows.append(("jetpack", _joined(brings)))
        mode = machine.jetson.mode
        rows.append(("power", f"{mode.name} (id {mode.id})" if mode else "mode unknown"))
    cpu = machine.cpu
    has = " ".join(cpu.features)
    count = (
        f"{cpu.cores} core{'s' if cpu.cores != 1 else ''}" if cpu.cores and not (cpu.name or "")[:1].isdigit() else ""
    )
    rows.append(("cpu", _joined([cpu.name, count, cpu.architecture, has]) or "unknown"))
    if machine.nvidia:
        names = ", ".join(machine.nvidia.names) or f"{machine.nvidia.on_bus or ''} NVIDIA GPU".strip()
        rows.append(("gpu", _joined([names, f"driver {machine.nvidia.driver or 'absent'}"])))
    if machine.intel_gpus:
        rows.append(("gpu", "Intel"))
    rows.append(("memory", _memory(machine)))
    rows.append(("clocks", _clocks(machine.clocks) or "not shown by Linux"))
    rows.append(("hottest", _hottest(machine)))
    rows.append(("cameras", _joined([_camera(machine, index) for index in range(len(machine.cameras))]) or "none seen"))
    return rows


def _software(software: Software) -> list[tuple[str, str]]:
    kind = "virtual environment" if software.environment else "the system's" if software.system_python else "its own"
    sees = ", sees the system's packages" if software.environment and software.system_packages else ""
    rows = [("python", f"{software.python}, {kind}{sees}")]
    absent = []
    for tried in software.libraries:
        if tried.error:
            rows.append((tried.name, f"does not load: {tried.error}"))
        elif tried.version is None or tried.version == "not found":
            absent.append(tried.name)
        else:
            told = "" if tried.version == "found" else tried.version
            rows.append((tried.name, _joined([told, *tried.details])))
    if absent:
        rows.append(("absent", ", ".join(absent)))
    return rows


def _memory(machine: Machine) -> str:
    memory = machine.memory
    parts = [f"{memory.total_gib:.1f} GiB" if memory.total_gib else "size unknown"]
    parts.append(f"{memory.available_gib:.1f} free" if memory.available_gib is not None else "free unknown")
    if memory.limit_gib is not None:
        parts.append(f"limited to {memory.limit_gib:.1f}")
    if memory.swaps is None:
        parts.append("swap unknown")
    else:
        disk = sum(area.size_gib for area in memory.swaps if not area.compressed)
        zram = sum(area.size_gib for area in memory.swaps if area.compressed)
        parts += [f"{disk:.1f} swap" if disk else "", f"{zram:.1f} zram" if zram else ""]
        parts.append("" if memory.swaps else "no swap")
    return _joined(parts)


def _clocks(clocks: Sequence[Clock]) -> str:
    """Groups of cores that are set alike told together: ``cpu 0-3 and 2 more 115–1510 MHz``."""
    alike: dict[str, list[str]] = {}
    for clock in clocks:
        if clock.min_mhz is None or clock.max_mhz is None:
            setting = "unknown"
        elif clock.pinned:
            setting = f"pinned at {clock.max_mhz:.0f} MHz"
        else:
            setting = f"{clock.min_mhz:.0f}–{clock.max_mhz:.0f} MHz"
        alike.setdefault(setting, []).append(clock.name)
    return _joined(
        [
            f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''} {setting}"
            for setting, names in alike.items()
        ]
    )


def _hottest(machine: Machine) -> str:
    from edgeclip.devices.machine.temperatures import hottest  # when asked for: start-up counts

    zone = hottest(machine.temperatures)
    return f"{zone.name} {zone.celsius:.0f} °C" if zone else "no sensor shown"


def _camera(machine: Machine, index: int) -> str:
    camera = machine.cameras[index]
    if camera.kind == "usb":
        return f"{camera.device} {camera.name}"
    if machine.jetson is None:  # csi:// is a Jetson's
        return f"{camera.device} {camera.name} (CSI)"
    number = sum(each.kind == "csi" for each in machine.cameras[:index])
    return f"csi://{number} {camera.sensor or camera.name} ({camera.device})"


def _print_finding(finding: Finding, console: Console) -> None:
    console.print(_line(finding.level, finding.what), highlight=False)
    if finding.why:
        console.print(Padding(Text(finding.why), (0, 0, 0, 4)), highlight=False)
    for command in finding.fix:
        # Never broken into lines: it is there to be copied.
        console.print(Text(f"    $ {command}", style="cyan"), highlight=False, soft_wrap=True)


def _line(level: str, text: str) -> Table:
    mark, style = _MARKS[level]
    table = Table.grid(padding=(0, 1))
    table.add_row("", Text(mark, style=style), Text(text, style="" if level == "ok" else "bold"))
    return table


def _verdict(report: Report) -> Text:
    problems, notes = len(report.of("problem")), len(report.of("note"))
    counted = f"{problems} problem{'s' if problems != 1 else ''}, {notes} note{'s' if notes != 1 else ''}"
    if report.stops:
        return Text(f"\nedgeclip cannot run here: {counted}", style="bold red")
    return Text(f"\n{counted}" if problems or notes else "\nnothing to mend", style="bold")


def _joined(parts: Sequence[str | None]) -> str:
    return ", ".join(part for part in parts if part)
