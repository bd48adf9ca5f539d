"""Facts of a machine in, findings on a Jetson out: release, TensorRT, power mode, clocks, swap."""

from __future__ import annotations

from collections.abc import Iterator

from edgeclip.devices.catalogue.jetpack import load_faults, load_releases, version_key
from edgeclip.devices.doctor.finding import OUR_PYTHON, Facts, Finding, Rule
from edgeclip.devices.machine.jetson import SystemTensorRt, fastest_mode

_OUR_TENSORRT = "8.5"
_OWN_PYTHON = (
    "curl -LsSf https://astral.sh/uv/install.sh | sh",
    "uv venv --python 3.10",
    "uv pip install 'edgeclip[opencv]'",
)
_SMALL_GIB = 16.0


def release(facts: Facts) -> Iterator[Finding]:
    """Which JetPack it is, and whether its Python can run edgeclip on the GPU."""
    jetson = facts.machine.jetson
    if jetson is None:
        return
    if jetson.l4t is None:
        inside = " (a container has it only if it is mounted)" if facts.machine.container else ""
        yield Finding(
            "jetpack",
            "note",
            f"no release named by /etc/nv_tegra_release{inside}",
            "which JetPack this is stays unknown",
        )
        return
    known = facts.release
    here = f"JetPack {known.version} (Jetson Linux {jetson.l4t})" if known else f"Jetson Linux {jetson.l4t}"
    if not facts.system_python_too_old:
        yield (
            Finding("jetpack", "ok", here)
            if known
            else Finding("jetpack", "note", here, "edgeclip knows no JetPack of this release")
        )
        return
    if facts.software and facts.software.loads("tensorrt"):
        yield Finding("jetpack", "ok", f"{here}, with a TensorRT of another source")
        return
    python = f"Python {known.python}" if known else "a Python older than 3.10"
    tensorrt = f"TensorRT {known.tensorrt}" if known and known.tensorrt else "TensorRT"
    too_old = (
        f" and is older than edgeclip takes ({_OUR_TENSORRT})" if _older(known.tensorrt if known else None) else ""
    )
    yield Finding(
        "jetpack",
        "note" if facts.software else "problem",  # edgeclip runs already, from another Python
        f"{here} has {python}",
        f"edgeclip needs Python 3.10. {tensorrt} is bound to {known.python if known else 'that one'}{too_old}, so the "
        f"GPU is out of reach here; the CPU is not, from a Python of its own. {_way_out(facts, jetson.l4t)}",
        () if facts.software else _OWN_PYTHON,
    )


def _way_out(facts: Facts, l4t: str) -> str:
    """What a later JetPack would change for a board whose Python is too old."""
    if facts.profile is None:
        return "Which JetPacks serve this board is not known here: NVIDIA's SDK Manager lists them"
    has = version_key(facts.release.python) if facts.release else ()
    later = [
        each
        for each in load_releases()
        if facts.profile.name in each.boards
        and (each.l4t is None or version_key(each.l4t) > version_key(l4t))
        and version_key(each.python) > has
    ]
    if not later:
        return "No later JetPack brings this board a newer Python"
    newest = later[-1]
    if version_key(newest.python) >= OUR_PYTHON:
        return f"JetPack {newest.version} serves this board: flash it with NVIDIA's SDK Manager"
    return (
        f"JetPack {newest.version} serves this board, with TensorRT {newest.tensorrt} for Python {newest.python}: that "
        "Python is still older than edgeclip takes"
    )


def tensorrt_visible(facts: Facts) -> Iterator[Finding]:
    """Whether JetPack's TensorRT is installed, and seen by this Python."""
    jetson, software = facts.machine.jetson, facts.software
    if jetson is None or facts.system_python_too_old:
        return
    system = jetson.tensorrt
    if software and software.loads("tensorrt"):
        yield Finding("tensorrt", "ok", f"TensorRT {software.library('tensorrt').version} loads")
    elif software and software.library("tensorrt").error:
        return  # said by the rule on libraries that do not load
    elif system is None and jetson.l4t is None:  # a container, or Ubuntu's own image: apt has no JetPack there
        yield Finding(
            "tensorrt",
            "note",
            "no TensorRT among the system's libraries",
            "without it encoders run on the CPU; NVIDIA's Jetson Linux brings it, and so do images and containers for "
            "TensorRT",
        )
    elif system is None:
        yield Finding(
            "tensorrt",
            "problem",
            "no TensorRT among the system's libraries",
            "without it encoders run on the CPU; an image or a container for TensorRT brings it too",
            ("sudo apt update", "sudo apt install nvidia-jetpack"),
        )
    elif not system.bindings:
        yield Finding(
            "tensorrt",
            "problem",
            f"TensorRT {system.version} is installed without its Python module",
            "edgeclip builds and runs engines through it",
            ("sudo apt install python3-libnvinfer",),
        )
    elif software is None:
        yield Finding("tensorrt", "ok", f"TensorRT {system.version} is installed, for Python {_python_of(system)}")
    else:
        yield Finding(
            "tensorrt",
            "problem",
            f"TensorRT {system.version} is installed, but this Python ({software.python}) does not see it",
            f"its module is for the system's Python {_python_of(system) or ''}; an environment of that one sees it if "
            "made with --system-site-packages",
            facts.see_system_packages() or ("sudo apt install --reinstall python3-libnvinfer",),
        )


def faults(facts: Facts) -> Iterator[Finding]:
    """Known faults of what is here: TensorRT and the GPU that it builds for, on a PC too; and Jetson Linux."""
    jetson, tensorrt = facts.machine.jetson, facts.tensorrt_version
    if facts.system_python_too_old:
        return
    capability = facts.profile.compute_capability if facts.profile else None
    here = {
        "tensorrt": ("TensorRT", tensorrt),
        "compute-capability": ("compute capability", capability if tensorrt else None),
        "l4t": ("Jetson Linux", jetson.l4t if jetson else None),
    }
    for fault in load_faults():
        title, version = here.get(fault.component, ("", None))
        if version is not None and fault.affects(version):
            yield Finding(
                fault.id,
                "note",
                f"{title} {version}: {fault.what}",
                fault.advice,
                ("edgeclip build BUNDLE --engine tensorrt",) if fault.gate else (),
            )


def power_mode(facts: Facts) -> Iterator[Finding]:
    """Whether it is in the power mode that allows most."""
    jetson = facts.machine.jetson
    if jetson is None:
        return
    best = fastest_mode(jetson.modes)
    if jetson.mode is None or best is None:
        missing = "/etc/nvpmodel.conf" if best is None else "/var/lib/nvpmodel/status"
        yield Finding(
            "power-mode",
            "note",
            f"power mode unknown: {missing} says nothing",
            "ask nvpmodel itself",
            ("sudo nvpmodel -q",),
        )
    elif jetson.mode == best:
        yield Finding("power-mode", "ok", f"power mode {best.name}, the fastest of this board")
    else:
        yield Finding(
            "power-mode",
            "note",
            f"power mode {jetson.mode.name} (id {jetson.mode.id}); this board has {best.name} (id {best.id})",
            "it limits clocks and cores. The other takes a power supply and cooling for it, and may ask to reboot",
            (f"sudo nvpmodel -m {best.id}",),
        )


def clocks(facts: Facts) -> Iterator[Finding]:
    """Whether clocks are pinned, as they should be while latency matters or is measured."""
    if facts.machine.jetson is None:
        return
    known = [clock for clock in facts.machine.clocks if clock.pinned is not None]
    loose = [clock.name for clock in known if not clock.pinned]
    if not known:
        yield Finding(
            "clocks", "note", "clocks unknown: /sys shows none", "ask jetson_clocks", ("sudo jetson_clocks --show",)
        )
    elif loose:
        yield Finding(
            "clocks",
            "note",
            f"clocks follow the load: {', '.join(loose)}",
            "latency varies with them. This pins them at what the power mode allows, until the next boot",
            ("sudo jetson_clocks",),
        )
    else:
        yield Finding("clocks", "ok", f"clocks are pinned: {', '.join(clock.name for clock in known)}")


def swap(facts: Facts) -> Iterator[Finding]:
    """Whether a small Jetson can put memory aside while an engine is built."""
    memory = facts.machine.memory
    if facts.machine.jetson is None or memory.swaps is None or (memory.total_gib or 0) > _SMALL_GIB:
        return
    on_disk = sum(area.size_gib for area in memory.swaps if not area.compressed)
    if on_disk:
        yield Finding("swap", "ok", f"{on_disk:.1f} GiB of swap on disk")
        return
    what = "swap is compressed memory alone (zram)" if memory.swaps else "no swap"
    yield Finding(
        "swap",
        "note",
        what,
        "building an engine takes much more memory than running it. Until the next boot; better on an NVMe drive",
        (
            "sudo fallocate -l 8G /swapfile && sudo chmod 600 /swapfile && sudo mkswap /swapfile && "
            "sudo swapon /swapfile",
        ),
    )


def _python_of(system: SystemTensorRt) -> str | None:
    """``3.10`` of ``usr/lib/python3.10/dist-packages``; None for ``python3``, which any version sees."""
    name = system.bindings[-1].split("/")[2].removeprefix("python") if system.bindings else ""
    return name if "." in name else None


def _older(tensorrt: str | None) -> bool:
    return tensorrt is not None and version_key(tensorrt) < version_key(_OUR_TENSORRT)


RULES: tuple[Rule, ...] = (release, tensorrt_visible, faults, power_mode, clocks, swap)
