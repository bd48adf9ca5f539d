"""Records of real Jetsons in; what edgeclip reads of each line, says of each machine and knows of each release out.

    python -m tools.jetson_records [RECORDS]

``RECORDS`` is a folder such as ``tests/devices/records``, which is taken if none is given. The exit status is 1 if a
machine or a release comes out other than recorded.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from edgeclip.devices.catalogue.jetpack import release_for_l4t
from edgeclip.devices.doctor.examine import examine
from edgeclip.devices.machine.temperatures import hottest
from edgeclip.devices.sensors.jetson import doubt_of
from edgeclip.devices.sensors.tegrastats import UnitReading, channels_of, parse_tegrastats, values_of
from tests.jetson_records import RECORDS, machines, make, misses, releases, rows


def print_lines(records: Path) -> None:
    """Every line of tegrastats: what is read of it, and which channels of telemetry that gives."""
    for number, row in enumerate(rows("tegrastats.tsv", records), 1):
        line = parse_tegrastats(row["line"])
        values = values_of(line)
        channels = channels_of(tuple(values))
        print(f"{number:2d}  {row['board']}; {row['l4t']}")
        off = sum(core is None for core in line.cpus)
        cores = f"{len(line.cpus)} cores" + (f", {off} off" if off else "")
        print(f"    RAM    {line.ram_mib:.0f} of {line.ram_total_mib:.0f} MiB; {cores}, {line.cpu_clock_mhz:.0f} MHz")
        if line.engines:
            print(f"    units  {', '.join(f'{name} {_unit(unit)}' for name, unit in line.engines.items())}")
        rest = [channel for channel in channels if channel.kind in ("load", "clock_mhz")]
        print(
            f"    GPU    {', '.join(f'{each.kind} {values[each.name, each.kind]:g}' for each in rest) or 'not named'}"
        )
        zones = [channel for channel in channels if channel.kind == "temperature_c"]
        print(f"    °C     {', '.join(f'{each.name} {values[each.name, each.kind]:g}' for each in zones)}")
        if rails := [channel for channel in channels if channel.kind == "power_w"]:
            shown = [
                f"{each.name} {values[each.name, each.kind]:g} ({'+'.join(each.feeds) or '-'}: {each.part})"
                for each in rails
            ]
            total = [each.name for each in rails if each.in_total]
            watts = sum(values[name, "power_w"] for name in total)
            print(f"    W      {', '.join(shown)}")
            print(f"    total  {watts:.3f} W = {' + '.join(total)}")
        if doubt := doubt_of(line.powers_w):
            print(f"    doubt  {doubt}")


def _unit(unit: UnitReading) -> str:
    load = "" if unit.load is None else f"{unit.load:.0%}"
    return load + ("" if unit.clock_mhz is None else f"@{unit.clock_mhz:g}")


def print_machines(records: Path) -> int:
    """What doctor says of every machine; how many it mistook."""
    wrong = 0
    for name, record in machines(records).items():
        with tempfile.TemporaryDirectory() as folder:
            report = examine(make(record, Path(folder)))
        jetson, jetpack = report.machine.jetson, report.jetpack
        l4t, mode = (jetson.l4t, jetson.mode) if jetson else (None, None)
        zone = hottest(report.machine.temperatures)
        missed = misses(record, report)
        wrong += bool(missed)
        brings = [jetpack.version, f"CUDA {jetpack.cuda}", f"TensorRT {jetpack.tensorrt}"] if jetpack else ["not known"]
        brings += [f"cuDNN {jetpack.cudnn}"] if jetpack else []
        print(f"{name}: {'; '.join(missed) if missed else 'as expected'}")
        print(f"    {report.machine.board}: profile {report.profile or 'none'}; Jetson Linux {l4t or 'not named'}")
        print(f"    JetPack {', '.join(brings)}")
        print(
            f"    mode {f'{mode.name} (id {mode.id})' if mode else 'not named'}; hottest {zone.name if zone else '-'}"
        )
    return wrong


def main(records: Path) -> int:
    """Print all; 1 if anything is other than recorded."""
    print("tegrastats: what is read of each line\n")
    print_lines(records)
    print("\ndoctor: what each machine is\n")
    wrong = print_machines(records)
    print("\nJetson Linux: JetPack, CUDA, TensorRT, cuDNN\n")
    for row in releases(records):
        known = release_for_l4t(row["l4t"])
        told = [known.version, known.cuda, known.tensorrt, known.cudnn] if known else []
        same = told == [row[name] or None for name in ("jetpack", "cuda", "tensorrt", "cudnn")]
        wrong += not same
        print(f"{row['l4t']:8} {', '.join(each or '-' for each in told)}{'' if same else '   OTHER THAN RECORDED'}")
    print(f"\n{wrong} other than recorded")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else RECORDS))
