"""The wheel of edgeclip in, what pip would install on a Jetson out: wheels only, nothing compiled.

Run by ``make aarch64-check``; needs the package registry. Not collected by pytest; ``test_aarch64.py`` shows offline
that it refuses. The resolver is uv, which evaluates environment markers for the target; ``pip --platform`` evaluates
them for the machine it runs on, and would ask for the OpenCV that a Jetson must not get.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEVICE_EXTRAS = "opencv,openvino,cuda,web,mqtt,prometheus"
DOCUMENTED_EXTRAS = "cuda,web,mqtt"
OWN_PYTHON_EXTRAS = "opencv,web,mqtt"


@dataclass(frozen=True)
class JetPack:
    """What decides which wheels a Jetson takes.

    Attributes:
        release: of JetPack.
        python: of its Ubuntu.
        glibc: of its Ubuntu, as wheel tags write it.
        pins: what docs/jetson.md asks for besides edgeclip: its driver's CUDA, and the NumPy of its OpenCV.
        extras: that docs/jetson.md asks for.
    """

    release: str
    python: str
    glibc: str
    pins: tuple[str, ...]
    extras: str = DOCUMENTED_EXTRAS


JETPACKS = (
    # Ubuntu 20.04, with a Python of one's own, which sees neither the system's OpenCV nor its TensorRT.
    JetPack("5", "3.10", "2_31", (), OWN_PYTHON_EXTRAS),
    JetPack("6", "3.10", "2_35", ("cuda-bindings==12.*", "numpy<2")),  # Ubuntu 22.04
    JetPack("7", "3.12", "2_39", ("cuda-bindings==13.0.*", "numpy<2")),  # Ubuntu 24.04
)


class NoWheelError(Exception):
    """A requirement, or something that it requires, has no wheel for the target; the text is the resolver's."""


def resolve(requirements: list[str], target: JetPack, *options: str) -> dict[str, str]:
    """The packages that a Jetson would install, by name, with their versions.

    Args:
        requirements: as on pip's command line.
        options: of uv, besides.

    Raises:
        NoWheelError: no set of wheels meets the requirements.
    """
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate"]
    command += ["--python", sys.executable]  # only runs the resolver: no search for others
    command += ["--no-python-downloads", "--only-binary", ":all:", "--python-version", target.python]
    command += ["--python-platform", f"aarch64-manylinux_{target.glibc}", *options, "-"]
    done = subprocess.run(command, input="\n".join(requirements), text=True, capture_output=True, check=False)
    if done.returncode:
        raise NoWheelError(done.stderr.strip())
    lines = [line.replace(" @ ", "==", 1) for line in done.stdout.splitlines()]
    return dict(line.split("==", 1) for line in lines)


def build_wheel(folder: Path) -> Path:
    """Build this tree's wheel into a folder."""
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT], check=True, capture_output=True
    )
    (wheel,) = folder.glob("*.whl")
    return wheel


def check(wheel: Path, target: JetPack) -> None:
    """Resolve the wheel with no extra, as the walk-through installs it, and with every extra of the device side."""
    ours = wheel.resolve().as_uri()
    wanted = {
        "no extra": [f"edgeclip @ {ours}"],
        "docs/jetson.md": [f"edgeclip[{target.extras}] @ {ours}", *target.pins],
        DEVICE_EXTRAS: [f"edgeclip[{DEVICE_EXTRAS}] @ {ours}"],
    }
    print(f"JetPack {target.release}: Python {target.python}, manylinux_{target.glibc}_aarch64")
    for name, requirements in wanted.items():
        try:
            found = resolve(requirements, target)
        except NoWheelError as error:
            sys.exit(f"no wheels for {requirements}:\n{error}")
        if "opencv-python-headless" in found and "opencv" not in requirements[0].partition("@")[0]:
            sys.exit(f"{name} brings an OpenCV, which would shadow a Jetson's own: see pyproject.toml")
        told = ("numpy", "onnxruntime", "av", "opencv-python-headless", "openvino", "cuda-bindings")
        print(f"  {name}: {len(found)} wheels; {', '.join(f'{each} {found[each]}' for each in told if each in found)}")


def main() -> None:
    """Check the wheel that is given, or build one."""
    with tempfile.TemporaryDirectory() as folder:
        wheel = Path(sys.argv[1]) if len(sys.argv) > 1 else build_wheel(Path(folder))
        for target in JETPACKS:
            check(wheel, target)


if __name__ == "__main__":
    main()
