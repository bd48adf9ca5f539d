"""What a Jetson would install, what the walk-through says and what deploy/ holds: as far as it can be checked here."""

from __future__ import annotations

import base64
import hashlib
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import typer

from edgeclip.cli import app
from tests.aarch64_wheels import DOCUMENTED_EXTRAS, JETPACKS, OWN_PYTHON_EXTRAS, NoWheelError, resolve

ROOT = Path(__file__).resolve().parents[1]
WALK = ROOT / "docs/jetson.md"
UNIT = ROOT / "deploy/edgeclip@.service"
ENVIRONMENT = ROOT / "deploy/yard.env"
COMING = {"doctor"}  # verbs that the walk-through may name before they are there


def write_wheel(folder: Path, name: str, tags: str) -> None:
    """A wheel with nothing but its metadata."""
    info = f"{name}-1.0.dist-info"
    files = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {tags}\n",
    }
    digests = {
        path: base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
        for path, text in files.items()
    }
    files[f"{info}/RECORD"] = "".join(f"{path},sha256={digests[path]},\n" for path in digests) + f"{info}/RECORD,,\n"
    with zipfile.ZipFile(folder / f"{name}-1.0-{tags}.whl", "w") as packed:
        for path, text in files.items():
            packed.writestr(path, text)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packages that differ in what they have wheels for."""
    folder = tmp_path_factory.mktemp("index")
    write_wheel(folder, "for_arm", "cp310-abi3-manylinux_2_31_aarch64")
    write_wheel(folder, "for_x86", "cp310-abi3-manylinux_2_17_x86_64")
    write_wheel(folder, "for_a_later_glibc", "cp310-abi3-manylinux_2_40_aarch64")
    write_wheel(folder, "for_a_later_python", "cp314-cp314-manylinux_2_17_aarch64")
    source = folder / "as_source-1.0"
    source.mkdir()
    (source / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: as_source\nVersion: 1.0\n")
    with tarfile.open(folder / "as_source-1.0.tar.gz", "w:gz") as packed:
        packed.add(source, "as_source-1.0")
    return folder


@pytest.mark.parametrize("target", JETPACKS, ids=lambda target: f"JetPack {target.release}")
def test_what_has_no_wheel_for_a_jetson_is_refused(index: Path, target) -> None:
    offline = ("--no-index", "--find-links", str(index))
    # Markers are the Jetson's, not this machine's.
    wanted = ["for_arm; platform_machine == 'aarch64'", "for_x86; platform_machine == 'x86_64'"]
    assert resolve(wanted, target, *offline) == {"for-arm": "1.0"}
    for name in ("for_x86", "for_a_later_glibc", "for_a_later_python", "as_source"):
        with pytest.raises(NoWheelError, match=name.replace("_", "-")):
            resolve([name], target, *offline)


def shell_commands(path: Path) -> list[str]:
    """The lines of a document's shell blocks, continued ones joined, comments left out."""
    blocks = re.findall(r"^ *```bash\n(.*?)^ *```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip()]


def check_parses(words: list[str]) -> None:
    """Refuse a command line that ``edgeclip`` would refuse; nothing is run."""
    command = typer.main.get_command(app)
    context = command.make_context("edgeclip", list(words), resilient_parsing=True)
    rest = list(words)
    while hasattr(command, "commands"):
        verb = rest.pop(0)
        if verb in COMING and verb not in command.commands:
            return
        command = command.commands[verb]
    command.make_context(verb, rest, parent=context)


def test_the_commands_of_the_walk_through_are_edgeclips() -> None:
    found = []
    for line in shell_commands(WALK):
        words = shlex.split(line, comments=True)
        if words and Path(words[0]).name == "edgeclip":
            check_parses(words[1:])
            found.append(words[1])
    assert {"verify", "doctor", "export", "prompts", "build", "prove", "label"} == set(found)


@pytest.mark.parametrize("words", ["label starter 0 --no-such-flag", "build starter --workspace much", "nosuchverb"])
def test_a_command_that_is_not_edgeclips_would_be_seen(words: str) -> None:
    with pytest.raises(Exception, match=r"nosuchverb|[Nn]o such option|valid"):
        check_parses(words.split())


def test_the_walk_through_installs_what_was_resolved() -> None:
    installs = [
        (path.name, match[1], tuple(re.findall(r'"([^"$]+)"', match[2])))
        for path in (WALK, ROOT / "deploy/Dockerfile.jetpack6", ROOT / "deploy/Dockerfile.jetpack7")
        for match in re.finditer(r'edgeclip-\*\.whl\)\[([\w,]+)\]"((?: "[^"]+")*)', path.read_text(encoding="utf-8"))
    ]
    pins = {target.release: target.pins for target in JETPACKS}
    assert installs == [
        ("jetson.md", DOCUMENTED_EXTRAS, pins["6"]),
        ("jetson.md", OWN_PYTHON_EXTRAS, pins["5"]),
        ("Dockerfile.jetpack6", DOCUMENTED_EXTRAS, pins["6"]),
        ("Dockerfile.jetpack7", DOCUMENTED_EXTRAS, pins["7"]),
    ]
    assert f'"{pins["7"][0]}"' in WALK.read_text(encoding="utf-8")


def test_the_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    text = UNIT.read_text(encoding="utf-8").replace("/opt/edgeclip/bin/edgeclip", "/bin/true")
    unit = tmp_path / "edgeclip@yard.service"
    unit.write_text(text, encoding="utf-8")
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_example_environment_makes_a_command_that_label_takes() -> None:
    # As systemd reads them: a name and all that follows; $NAME is split into words, ${NAME} is one.
    lines = [line for line in ENVIRONMENT.read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
    values = dict(line.split("=", 1) for line in lines)
    (start,) = re.findall(
        r"^ExecStart=/opt/edgeclip/bin/edgeclip (.*)$", UNIT.read_text(encoding="utf-8"), re.MULTILINE
    )
    words: list[str] = []
    for word in start.split():
        name = word.strip("${}")
        words += [values[name]] if word.startswith("${") else shlex.split(values[name]) if word[0] == "$" else [word]
    assert words[:3] == ["label", "/opt/edgeclip/bundles/shop.edgeclip", "csi://0?width=1280&height=720&fps=30"]
    check_parses(words)


def test_a_system_opencv_of_numpy_1_says_what_to_do() -> None:
    """The system's Python may have such an OpenCV; NumPy 2 comes from this environment."""
    if np.__version__.startswith("1."):
        pytest.skip("needs NumPy 2")
    code = f"""
import sys
if sys.version_info[:2] != {sys.version_info[:2]}: sys.exit(77)
try:
    import importlib.metadata, cv2
    if not importlib.metadata.version("numpy").startswith("1."): sys.exit(77)
except ImportError:
    sys.exit(77)
"""
    found = subprocess.run(["/usr/bin/python3", "-c", code], capture_output=True, check=False)
    if found.returncode:
        pytest.skip("needs a system OpenCV built for NumPy 1, for the same Python version")
    code = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(Path(np.__file__).parents[1])!r}]
import importlib.util
import importlib.machinery
# This environment has an OpenCV of its own, which a Jetson has not: the system's is what is to be found.
system = "/usr/lib/python3/dist-packages"
class System:
    def find_spec(name, path=None, target=None):
        return importlib.machinery.PathFinder.find_spec(name, [system]) if name == "cv2" else None
sys.meta_path.insert(0, System)
from edgeclip.errors import MissingExtraError
from edgeclip.runtime.images import opencv
try:
    opencv()
except MissingExtraError as error:
    print(error)
"""
    done = subprocess.run(["/usr/bin/python3", "-c", code], capture_output=True, text=True, check=True)
    assert "does not load (numpy.core.multiarray failed to import)" in done.stdout
    assert "pip install 'numpy<2'" in done.stdout
