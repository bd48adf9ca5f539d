"""The house keeps its shape: rooms import one way, the device side loads no workstation library."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import edgeclip
from edgeclip.devices.machine.cuda import driver_loads

PACKAGE = Path(edgeclip.__file__).parent
DEVICE_SIDE = {"runtime", "devices"}
WORKSTATION_SIDE = {"training", "calibration", "export", "evaluation"}
SHARED_BY_BOTH = {
    "bundle",
    "decisions",
    "engine_list",
    "errors",
    "extras",
    "files",
    "key_cache",
    "manifest",
    "prompt_classes",
    "prompts",
    "spec",
    "templates",
}

# Whom a room may import, besides itself and what is shared by both sides.
MAY_IMPORT = {
    "runtime": {"devices"},
    "devices": set(),
    "training": {"runtime", "devices"},
    "calibration": {"runtime", "devices"},
    "export": {"runtime", "devices", "training", "calibration", "photographs"},
    "evaluation": {"runtime", "devices", "training", "calibration", "export"},
}


def imports(path: Path) -> set[str]:
    """Every module that a file imports, at the top or inside a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(str(node.module))
    return found


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_whom_it_may(room: str) -> None:
    allowed = MAY_IMPORT[room] | SHARED_BY_BOTH | {room}
    for path in sorted((PACKAGE / room).glob("*.py")):
        ours = {name.split(".")[1] for name in imports(path) if name.startswith("edgeclip.")}
        assert ours <= allowed, f"{path.name} imports {sorted(ours - allowed)}"


@pytest.mark.parametrize("module", sorted(SHARED_BY_BOTH))
def test_what_both_sides_share_imports_no_room(module: str) -> None:
    ours = {name.split(".")[1] for name in imports(PACKAGE / f"{module}.py") if name.startswith("edgeclip.")}
    assert ours <= SHARED_BY_BOTH


def test_rooms_are_flat_but_for_data() -> None:
    for room in DEVICE_SIDE | WORKSTATION_SIDE:
        for folder in (item for item in (PACKAGE / room).iterdir() if item.is_dir() and item.name != "__pycache__"):
            assert {path.suffix for path in folder.iterdir()} == {".toml"}, f"{folder} holds more than data"


def test_files_stay_readable_in_one_sitting() -> None:
    long = {path.name: n for path in PACKAGE.rglob("*.py") if (n := len(path.read_text().splitlines())) > 330}
    assert not long


@pytest.mark.parametrize(
    ("statement", "forbidden"),
    [
        ("import edgeclip", {"torch", "onnx", "onnxruntime", "cv2", "av"}),
        ("import edgeclip.runtime", {"torch", "onnx", "importlib.metadata"}),
        ("import edgeclip.cli", {"torch", "onnx", "onnxruntime", "open_clip", "transformers", "nncf", "openvino"}),
    ],
)
def test_importing_stays_light(statement: str, forbidden: set[str]) -> None:
    code = f"{statement}, sys; print(' '.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not forbidden & set(loaded)


@pytest.mark.skipif(driver_loads(), reason="this machine has NVIDIA's driver")
def test_without_a_driver_cudas_bindings_are_not_loaded_to_look_for_a_gpu() -> None:
    code = "import sys; from edgeclip.devices.machine.cuda import find_gpu; print(find_gpu(), 'cuda' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "None False\n"


def test_every_module_of_the_device_side_loads_no_workstation_library() -> None:
    modules = [f"edgeclip.{room}.{path.stem}" for room in DEVICE_SIDE for path in (PACKAGE / room).glob("[!_]*.py")]
    code = (
        f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\nprint(' '.join(sys.modules))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "onnx", "torchvision", "transformers", "open_clip", "skimage"} & set(loaded)


def test_the_public_names_are_these() -> None:
    public = {name for name in vars(edgeclip) if not name.startswith("_") and name not in SHARED_BY_BOTH}
    commands = {path.stem for path in PACKAGE.glob("cli*.py")}
    rooms = DEVICE_SIDE | WORKSTATION_SIDE | commands | {"card", "demo", "doctor_card", "photographs"}
    assert public - rooms | {"__version__"} == set(edgeclip.__all__)
