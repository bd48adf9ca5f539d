"""This tree's wheel run on 64-bit Arm under emulation, held against this machine's labels and scores.

``make aarch64-run`` runs it, as root, on Debian or Ubuntu with qemu-user-static, proot and mmdebstrap; it takes ten
minutes on two cores, so it is for the night. It shows that results are right, and says nothing of speed. A tree of
Debian's arm64 packages is unpacked; pip runs in it and takes what it takes on a device, in two environments: one that
sees the system's OpenCV as on a Jetson, and one with PyPI's.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from edgeclip.devices.machine.probe import describe_machine, summary

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.aarch64_wheels import build_wheel

SUITE = "bookworm"
MIRROR = "http://deb.debian.org/debian"
PACKAGES = "python3,python3-venv,python3-opencv"
# Of scikit-image: photographs, no drawings. The last is a JPEG, which each OpenCV decodes with a library of its own.
PHOTOGRAPHS = "astronaut.png camera.png chelsea.png coffee.png coins.png moon.png motorcycle_left.png rocket.jpg"
# Largest difference of a score. INT8 rounds: a last bit that differs may become a whole step.
LIMITS = {"fp32": 1e-3, "int8-cpu": 0.02}
PASSED_ON = ("PIP_CERT", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


def run(*command: object, expect: int = 0, env: dict[str, str] | None = None) -> str:
    """Run a command and return what it printed, or its errors if it is to fail; stop if it ends otherwise."""
    done = subprocess.run([str(part) for part in command], text=True, capture_output=True, check=False, env=env)
    if done.returncode != expect:
        sys.exit(f"{' '.join(map(str, command))}\nended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stderr if expect else done.stdout


class Tree:
    """Debian's arm64 packages in a folder, and commands run in it under emulation."""

    def __init__(self, folder: Path, shared: Path) -> None:
        self.folder, self.shared = folder, shared
        # Unpacked, not configured: no maintainer script runs, so nothing needs binfmt_misc or a change of this machine.
        run("mmdebstrap", "--architectures=arm64", "--variant=extract", f"--include={PACKAGES}", SUITE, folder, MIRROR)
        libraries = folder / "usr/lib/aarch64-linux-gnu"
        for name in ("blas/libblas.so.3", "lapack/liblapack.so.3"):  # what update-alternatives would have linked
            (libraries / Path(name).name).symlink_to(name)

    def run(self, *command: object, expect: int = 0) -> str:
        """Run a command of the tree; the shared folder is ``/work`` in it."""
        print("aarch64 $", *("'...'" if " " in str(part) else part for part in command), flush=True)
        # pip takes the emulated environment for one that it may not write to, unless told.
        env = {"HOME": "/tmp", "LANG": "C.UTF-8", "PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        env |= {"PATH": f"{os.environ['PATH']}:/usr/bin:/bin", "EDGECLIP_CACHE": "/work/cache", "COLUMNS": "120"}
        env |= {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        binds = [part for each in ("/proc", "/dev", "/etc/resolv.conf", "/etc/ssl") for part in ("-b", each)]
        emulated = ["proot", "-q", "qemu-aarch64-static", "-r", self.folder, *binds, "-b", f"{self.shared}:/work"]
        return run(*emulated, "-w", "/work", *command, expect=expect, env=env)


def label(
    run_it: Tree | None, program: str, photographs: str, variant: str, output: Path
) -> dict[str, dict[str, float]]:
    """The scores of the best classes of each photograph, by file name."""
    words = ["label", "starter", photographs, "--variant", variant, "--engine", "onnxruntime"]
    words += ["--preprocess", "exact", "--jsonl", output.name if run_it else output]
    if run_it:
        run_it.run(program, *words)
    else:
        run(program, "-m", "edgeclip", *words)
    lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    return {line["file"]: dict(line["top"]) for line in lines}


def compare(here: dict[str, dict[str, float]], there: dict[str, dict[str, float]], what: str, limit: float) -> bool:
    """Print how two machines' labels and scores differ; whether they agree."""
    assert here.keys() == there.keys()
    equal = sum(next(iter(here[name])) == next(iter(there[name])) for name in here)
    # Of the classes that are among the best five on both machines; the others have no score to compare.
    apart = max(abs(here[name][each] - there[name][each]) for name in here for each in here[name].keys() & there[name])
    print(f"{what}: {equal} of {len(here)} labels equal, largest difference of a score {apart:.2e} (limit {limit:g})")
    return equal == len(here) and apart <= limit


def main() -> None:
    """Install, verify, label; the exit code is 1 if a label or a score differs."""
    import skimage

    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        shared = work / "shared"
        (shared / "photographs").mkdir(parents=True)
        for photograph in PHOTOGRAPHS.split():
            shutil.copy(Path(skimage.__file__).parent / "data" / photograph, shared / "photographs")
        wheel = build_wheel(shared)
        qemu = run("qemu-aarch64-static", "--version").partition("\n")[0]
        print(
            f"emulated: {qemu}; Debian {SUITE} arm64. Correctness only: times under emulation say nothing of a device."
        )
        print(f"held against: {platform.machine()}, {summary(describe_machine())}")
        tree = Tree(work / "tree", shared)
        here = {
            variant: label(None, sys.executable, str(shared / "photographs"), variant, work / f"{variant}.jsonl")
            for variant in LIMITS
        }
        agree = []

        tree.run("/usr/bin/python3", "-m", "venv", "--copies", "--system-site-packages", "/opt/system")
        tree.run("/opt/system/bin/pip", "install", "--only-binary", ":all:", "--no-cache-dir", wheel.name, "numpy<2")
        versions = (
            "import cv2, numpy, onnxruntime, platform, re; "
            "print(platform.machine(), 'Python', platform.python_version(), "
            "'NumPy', numpy.__version__, 'ONNX Runtime', onnxruntime.__version__, 'OpenCV', cv2.__version__, "
            "'with' if re.search(r'GStreamer: +YES', cv2.getBuildInformation()) else 'without', 'GStreamer')"
        )
        print(last_line(tree.run("/opt/system/bin/python", "-c", versions)))
        print(tree.run("/opt/system/bin/edgeclip", "verify", "starter"), end="")
        for variant, limit in LIMITS.items():
            there = label(tree, "/opt/system/bin/edgeclip", "photographs", variant, shared / f"system-{variant}.jsonl")
            agree.append(compare(here[variant], there, f"{variant}, the system's OpenCV", limit))

        tree.run("/usr/bin/python3", "-m", "venv", "--copies", "/opt/alone")
        tree.run("/opt/alone/bin/pip", "install", "--only-binary", ":all:", "--no-cache-dir", wheel.name)
        refused = tree.run("/opt/alone/bin/edgeclip", "label", "starter", "photographs", expect=2)
        print("with no OpenCV, exit code 2:", last_line(refused))
        tree.run("/opt/alone/bin/pip", "install", "--only-binary", ":all:", "--no-cache-dir", f"{wheel.name}[opencv]")
        print(last_line(tree.run("/opt/alone/bin/python", "-c", versions)))
        there = label(tree, "/opt/alone/bin/edgeclip", "photographs", "fp32", shared / "alone.jsonl")
        agree.append(compare(here["fp32"], there, "fp32, edgeclip[opencv]", LIMITS["fp32"]))
    sys.exit(0 if all(agree) else 1)


def last_line(text: str) -> str:
    """The last line that says something."""
    return [line for line in text.splitlines() if line.strip()][-1]


if __name__ == "__main__":
    main()
