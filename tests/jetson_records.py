"""Records of real Jetsons in; lines, releases and machines as folders of files, and what each is, out."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from edgeclip.devices.catalogue.jetpack import version_key
from edgeclip.devices.doctor.examine import Report

RECORDS = Path(__file__).parent / "devices" / "records"
Row = dict[str, str]


def rows(name: str, records: Path = RECORDS) -> list[Row]:
    """The rows of one of the tables."""
    with (records / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def machines(records: Path = RECORDS) -> dict[str, dict[str, Any]]:
    """The recorded machines by name."""
    found: dict[str, dict[str, Any]] = json.loads((records / "machines.json").read_text(encoding="utf-8"))
    return found


def releases(records: Path = RECORDS) -> list[Row]:
    """The releases, one row for each version of Jetson Linux: ``32.7.1-32.7.6`` and ``38.2.x`` are several."""
    found = []
    for row in rows("jetpack.tsv", records):
        first, _, last = row["l4t"].partition("-")
        if last:
            stem, _, number = first.rpartition(".")
            jetpack = row["jetpack"].partition("-")[0].rpartition(".")[0]
            numbers = range(int(number), int(last.rpartition(".")[2]) + 1)
            found += [row | {"l4t": f"{stem}.{each}", "jetpack": f"{jetpack}.{each}"} for each in numbers]
        elif first.endswith(".x"):
            found += [row | {"l4t": first.replace("x", str(each))} for each in range(3)]
        else:
            found.append(row)
    return [row | {"tensorrt": row["tensorrt"].partition(" (")[0]} for row in found]


def make(record: dict[str, Any], root: Path) -> Path:
    """Write the files that a recorded machine's kernel and system show, below ``root``."""
    files = {
        "proc/device-tree/model": f"{record['model']}\0",
        "proc/device-tree/compatible": "".join(f"{name}\0" for name in record["compat"]),
        "proc/sys/kernel/osrelease": f"{record['kernel']}\n",
        "proc/cpuinfo": "\n".join(_core(record, number) for number in range(record["cpus"])),
        "proc/meminfo": f"MemTotal: {record['mem'][0]:.0f} kB\nMemAvailable: {record['mem'][1] * 2**20:.0f} kB\n",
        "proc/swaps": _swaps(record["swap"]),
        "etc/os-release": f'ID=ubuntu\nPRETTY_NAME="{record["os"]}"\n',
    }
    if release := record.get("rel") or _release(record["l4t"]):
        files["etc/nv_tegra_release"] = release
    if record["modes"]:
        modes = record.get("link", "/etc/nvpmodel.conf").lstrip("/")
        files[modes] = "".join(f"< POWER_MODEL ID={number} NAME={name} >\n" for number, name in record["modes"])
    if record["mode"] is not None:
        files["var/lib/nvpmodel/status"] = f"pmode:{record['mode']:04d}"
    if "gpu" in record:
        name, least, most = record["gpu"]
        files |= {f"sys/class/devfreq/{name}/min_freq": f"{least}", f"sys/class/devfreq/{name}/max_freq": f"{most}"}
    if "cpu" in record:
        limits = zip(("scaling_min_freq", "scaling_max_freq", "cpuinfo_max_freq"), record["cpu"], strict=True)
        files |= {f"sys/devices/system/cpu/cpufreq/policy0/{name}": f"{khz}" for name, khz in limits}
    for number, (name, millicelsius) in enumerate(record.get("temps", {}).items()):
        zone = f"sys/class/thermal/thermal_zone{number}"
        files |= {f"{zone}/type": name, f"{zone}/temp": "" if millicelsius is None else f"{millicelsius}"}
    if "trt" in record:
        files[f"usr/lib/aarch64-linux-gnu/libnvinfer.so.{record['trt']}"] = ""
        files[f"usr/lib/python{record['py']}/dist-packages/tensorrt/__init__.py"] = ""
    if "driver" in record:
        files["proc/driver/nvidia/version"] = record["driver"]
        files["proc/driver/nvidia/gpus/0000:01:00.0/information"] = record["gpus"]
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    if "link" in record:
        (root / "etc/nvpmodel.conf").symlink_to(record["link"])
    return root


def misses(record: dict[str, Any], report: Report) -> list[str]:
    """Where doctor differs from what the machine is."""
    jetpack, jetson, expected = report.jetpack, report.machine.jetson, record["expect"]
    told: dict[str, str | None] = {
        "jetpack": jetpack.version if jetpack else None,
        "cuda": jetpack.cuda if jetpack else None,
        "cudnn": jetpack.cudnn if jetpack else None,
        "tensorrt": jetpack.tensorrt if jetpack else None,
    }
    wrong = [
        f"{name} {told[name]}, not {expected[name]}"
        for name in told
        if name in expected and not _agree(told[name], expected[name])
    ]
    # What is null there was no device that we know when the record was made.
    if expected["profile"] is not None and report.profile != expected["profile"]:
        wrong.append(f"profile {report.profile}, not {expected['profile']}")
    mode = jetson.mode if jetson else None
    named = dict(record["modes"]).get(record["mode"])
    if (mode.id, mode.name) != (record["mode"], named) if mode else record["mode"] is not None:
        wrong.append(f"mode {mode}, not {named} (id {record['mode']})")
    return wrong


def _agree(told: str | None, expected: str | None) -> bool:
    """Whether two versions are the same as far as both go: ``10.3.0`` and ``10.3.0.30``."""
    if told is None or expected is None:
        return told is expected
    return all(mine == its for mine, its in zip(version_key(told), version_key(expected), strict=False))


def _release(l4t: str | None) -> str:
    major, _, minor = (l4t or "").partition(".")
    return f"# R{major} (release), REVISION: {minor}, GCID: 1, BOARD: generic, EABI: aarch64\n" if l4t else ""


def _core(record: dict[str, Any], number: int) -> str:
    return (
        f"processor\t: {number}\nFeatures\t: {record['flags']}\nCPU implementer\t: {record.get('impl', '0x41')}\n"
        f"CPU architecture: 8\nCPU part\t: {record.get('part', '0xd42')}\n"
    )


def _swaps(text: str) -> str:
    zram, _, file = text.partition("+")
    areas = [f"/dev/zram{number} partition 646620 0 5" for number in range(int(zram.removeprefix("zram") or 0))]
    areas += ["/swapfile file 8388604 0 -2"] if file else []
    return "\n".join(["Filename Type Size Used Priority", *areas, ""])
