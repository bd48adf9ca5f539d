"""Build the wheel and the sdist, install the wheel in an empty environment, and label from there with no torch.

Run by ``make wheel-test``; needs the package registry. Not collected by pytest.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("python3.10", "python3.11", "python3.12", "python3.13")


def run(*command: object, cwd: Path | None = None) -> str:
    """Run a command, show it, and return its output; stop at the first that fails."""
    print("$", *command, flush=True)
    done = subprocess.run([str(part) for part in command], cwd=cwd, text=True, capture_output=True, check=False)
    if done.returncode:
        sys.exit(f"failed with exit code {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def check(python: str, wheel: Path, work: Path) -> None:
    """Install the wheel for one Python and use it from an empty folder."""
    environment = work / f"env-{python}"
    run(python, "-m", "venv", environment)
    run(environment / "bin/pip", "install", "--quiet", "--disable-pip-version-check", wheel)
    edgeclip = environment / "bin/edgeclip"
    empty = work / f"run-{python}"
    empty.mkdir()
    photograph = empty / "chelsea.png"
    shutil.copy(sample_photograph(), photograph)
    print(run(edgeclip, "verify", "starter", cwd=empty))
    print(run(edgeclip, "label", "starter", photograph.name, "--jsonl", "labels.jsonl", cwd=empty))
    line = json.loads((empty / "labels.jsonl").read_text())
    if line["label"] != "cat":
        sys.exit(f"expected the label cat, got {line}")
    heavy = "import edgeclip.runtime.label, sys; print([m for m in ('torch', 'onnx', 'skimage') if m in sys.modules])"
    if run(environment / "bin/python", "-c", heavy, cwd=empty).strip() != "[]":
        sys.exit("the runtime loaded a workstation library")


def sample_photograph() -> Path:
    """A photograph of a cat, from the development environment's scikit-image."""
    import skimage

    return Path(skimage.__file__).parent / "data" / "chelsea.png"


def usable(python: str) -> bool:
    """Whether this interpreter is on the machine and works (a version manager's stub may not)."""
    found = shutil.which(python)
    return bool(found) and subprocess.run([found, "--version"], capture_output=True, check=False).returncode == 0


def main() -> None:
    """Check the wheel with every supported Python on this machine, and with the running one at least."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        run(sys.executable, "-m", "build", "--outdir", work / "dist", ROOT)
        (wheel,) = (work / "dist").glob("*.whl")
        (sdist,) = (work / "dist").glob("*.tar.gz")
        print(f"{wheel.name} {wheel.stat().st_size / 1e6:.1f} MB, {sdist.name} {sdist.stat().st_size / 1e6:.1f} MB")
        pythons = [python for python in PYTHONS if usable(python)] or [sys.executable]
        for python in pythons:
            check(python, wheel, work)
        print(f"the wheel works on {', '.join(pythons)}")


if __name__ == "__main__":
    main()
