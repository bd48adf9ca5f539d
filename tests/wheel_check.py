"""Build the wheel and the sdist, install the wheel in an empty environment, and label from there with no torch.

Run by ``make wheel-test``; needs the package registry. Not collected by pytest.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("python3.10", "python3.11", "python3.12", "python3.13")
UV = Path(sys.executable).with_name("uv")  # unpacks four environments in the time that pip takes for one


def run(*command: object, cwd: Path | None = None) -> str:
    """Run a command, show it, and return its output; stop at the first that fails."""
    print("$", *command, flush=True)
    done = subprocess.run([str(part) for part in command], cwd=cwd, text=True, capture_output=True, check=False)
    if done.returncode:
        sys.exit(f"failed with exit code {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def check(name: str, python: str, wheel: Path, work: Path) -> None:
    """Install the wheel for one Python and use it from an empty folder."""
    environment = work / f"env-{name}"
    run(UV, "venv", "--quiet", "--python", python, environment)
    run(UV, "pip", "install", "--quiet", "--python", environment / "bin/python", wheel)
    edgeclip = environment / "bin/edgeclip"
    empty = work / f"run-{name}"
    empty.mkdir()
    photograph = empty / "chelsea.png"
    shutil.copy(sample_photograph(), photograph)
    print(run(edgeclip, "verify", "starter", cwd=empty))
    print(run(edgeclip, "devices", cwd=empty))
    print(run(edgeclip, "label", "starter", photograph.name, "--jsonl", "labels.jsonl", cwd=empty))
    line = json.loads((empty / "labels.jsonl").read_text())
    if line["label"] != "cat":
        sys.exit(f"expected the label cat, got {line}")
    heavy = "import edgeclip.runtime.stream, sys; print([m for m in ('torch', 'onnx', 'skimage') if m in sys.modules])"
    if run(environment / "bin/python", "-c", heavy, cwd=empty).strip() != "[]":
        sys.exit("the runtime loaded a workstation library")


def sample_photograph() -> Path:
    """A photograph of a cat, from the development environment's scikit-image."""
    import skimage

    return Path(skimage.__file__).parent / "data" / "chelsea.png"


def find(python: str) -> str | None:
    """A working interpreter of that name, on the path or among pyenv's versions."""
    version = python.removeprefix("python")
    managed = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/{python}"))
    for candidate in (shutil.which(python), *managed):
        # A version manager's stub is found, but does not run.
        if candidate and subprocess.run([candidate, "--version"], capture_output=True, check=False).returncode == 0:
            return str(candidate)
    return None


def main() -> None:
    """Check the wheel with every supported Python on this machine, and with the running one at least."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        run(sys.executable, "-m", "build", "--outdir", work / "dist", ROOT)
        (wheel,) = (work / "dist").glob("*.whl")
        (sdist,) = (work / "dist").glob("*.tar.gz")
        print(f"{wheel.name} {wheel.stat().st_size / 1e6:.1f} MB, {sdist.name} {sdist.stat().st_size / 1e6:.1f} MB")
        with zipfile.ZipFile(wheel) as packed:
            needed = {"py.typed", "assets/starter.edgeclip/manifest.json", "runtime/page/static/index.html"}
            needed |= {"devices/catalogue/releases.toml", "devices/catalogue/profiles/orin-nano-8gb.toml"}
            needed |= {"evaluation/templates/base.html.j2", "evaluation/static/tradeoff.js"}
            lacking = {f"edgeclip/{name}" for name in needed} - set(packed.namelist())
        if lacking:
            sys.exit(f"the wheel lacks {sorted(lacking)}")
        found = {python: path for python in PYTHONS if (path := find(python))} or {"python": sys.executable}
        for name, path in found.items():
            check(name, path, wheel, work)
        print(f"the wheel works on {', '.join(found)}")


if __name__ == "__main__":
    main()
