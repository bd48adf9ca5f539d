"""The house keeps its shape: rooms import one way, the device side stays light, a name means one thing."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

import edgeclip
from edgeclip.devices.machine.cuda import driver_loads

PACKAGE = Path(edgeclip.__file__).parent
DEVICE_SIDE = {"runtime", "devices"}

# Whom a room may import, besides itself and the single files at the package's root, which every room may.
MAY_IMPORT = {
    "devices": set(),
    "runtime": {"devices"},
    "training": {"runtime", "devices"},
    "calibration": {"runtime", "devices"},
    "export": {"runtime", "devices", "training", "calibration"},
    "evaluation": {"runtime", "devices", "training", "calibration", "export"},
    "cli": {"runtime", "devices", "training", "calibration", "export", "evaluation"},
}
# The parts of a frame's way know nothing of what ties them together.
PARTS = ("sources", "preprocess", "engines", "proof", "sinks", "page")
WHOLE = {"edgeclip.runtime.stream", "edgeclip.runtime.labeller"}

# A class name stands in one file. Each exception says why both may keep the name.
SAID_TWICE = {
    "Finding": "what a check found, of a graph (lint) and of a machine (doctor): one idea, two subjects",
    "Plan": "which precision a node gets, and what to expect of a device: the usual word for both",
    "Range": "between two values, of activations and of estimates: one idea, two subjects",
}


def module_name(path: Path) -> str:
    """``edgeclip.runtime.stream`` of the file; a package's own name of its ``__init__.py``."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
ROOT_FILES = sorted(name for name in FILES if name.count(".") == 1 and FILES[name].name != "__init__.py")


def room_of(module: str) -> str:
    """``runtime`` of ``edgeclip.runtime.stream``; empty for the package's root."""
    return module.split(".")[1] if "." in module else ""


@cache
def imports(path: Path) -> frozenset[str]:
    """Every module that a file imports, at the top or inside a function, also as ``from package import module``."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            package, names = str(node.module), [alias.name for alias in node.names]
            modules = {f"{package}.{name}" for name in names} & FILES.keys()
            found |= modules
            if len(modules) < len(names) or package == "edgeclip":  # something that the package itself holds
                found.add(package)
    return frozenset(found)


def ours(path: Path) -> set[str]:
    return {name for name in imports(path) if name.partition(".")[0] == "edgeclip"}


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_whom_it_may(room: str) -> None:
    allowed = MAY_IMPORT[room] | {room} | {room_of(name) for name in ROOT_FILES}
    paths = sorted((PACKAGE / room).rglob("*.py"))
    assert paths
    for path in paths:
        found = {room_of(name) for name in ours(path)} - {""}
        assert found <= allowed, f"{module_name(path)} imports {sorted(found - allowed)}"


def test_every_room_is_on_the_map() -> None:
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms == MAY_IMPORT.keys()


@pytest.mark.parametrize("module", [name for name in ROOT_FILES if name != "edgeclip.__main__"])
def test_a_file_at_the_root_imports_no_room(module: str) -> None:
    found = {room_of(name) for name in ours(FILES[module])} & MAY_IMPORT.keys()
    assert not found, f"{module} imports {sorted(found)}"


def test_nobody_inside_imports_the_packages_root() -> None:
    guilty = [name for name, path in FILES.items() if "edgeclip" in ours(path)]
    assert not guilty, f"{guilty} import edgeclip itself: import what is meant from where it stands"


@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_a_frames_way_knows_nothing_of_the_stream(part: str) -> None:
    paths = sorted((PACKAGE / "runtime" / part).rglob("*.py"))
    assert paths
    for path in paths:
        found = imports(path) & WHOLE
        assert not found, f"{module_name(path)} imports {sorted(found)}"


def test_rooms_have_one_level_of_sub_rooms_that_say_what_they_are() -> None:
    for path in FILES.values():
        inside = path.relative_to(PACKAGE).parts[:-1]
        assert len(inside) <= 2, f"{path} lies {len(inside)} folders deep: a room has one level of sub-rooms"
        init = path.parent / "__init__.py"
        assert init.is_file(), f"{path.parent} has no __init__.py"
        if len(inside) == 2:
            statements = ast.parse(init.read_text(encoding="utf-8"))
            assert (ast.get_docstring(statements) or "").strip(), f"{init} does not say what goes in and what comes out"
            assert len(statements.body) == 1, f"{init} holds more than its docstring"


def test_a_class_name_stands_in_one_file() -> None:
    files: dict[str, list[str]] = defaultdict(list)
    for name, path in FILES.items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                files[node.name].append(name)
    twice = {name: where for name, where in files.items() if len(where) > 1 and name not in SAID_TWICE}
    said = "\n".join(f"  {name}: {', '.join(where)}" for name, where in sorted(twice.items()))
    assert not twice, f"one name, several things:\n{said}"


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
    modules = [name for name in FILES if room_of(name) in DEVICE_SIDE]
    assert "edgeclip.runtime.engines.openvino" in modules
    code = (
        f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\nprint(' '.join(sys.modules))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "onnx", "torchvision", "transformers", "open_clip", "skimage"} & set(loaded)


def test_the_public_names_are_these() -> None:
    for room in MAY_IMPORT:  # whose names then stand at the root too
        importlib.import_module(f"edgeclip.{room}")
    own = {room_of(name) for name in FILES} - {""}
    public = {name for name in dir(edgeclip) if not name.startswith("_")}
    assert public - own | {"export"} == set(edgeclip.__all__) - {"__version__"}  # a room that can be called
    assert len(edgeclip.__all__) == len(set(edgeclip.__all__))


@pytest.mark.parametrize("name", edgeclip.__all__)
def test_a_public_name_resolves_whatever_was_imported_before(name: str) -> None:
    for room in MAY_IMPORT:
        importlib.import_module(f"edgeclip.{room}")
    found = getattr(edgeclip, name)
    assert callable(found) or not isinstance(found, ModuleType), f"edgeclip.{name} is a room, not what __all__ promises"


def test_the_librarys_errors_speak_of_parameters_and_not_of_the_command_lines_flags() -> None:
    """A Python user has no flags. A command that is to be run may be named whole: ``edgeclip build … --engine``."""
    flag = re.compile(r"(?<![\w-])--[a-z]")
    commands = re.compile(r"\b(edgeclip \w+|python|pip|uv|apt|docker|sudo|torchrun|virtual\s+environment)\b")
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.is_relative_to(PACKAGE / "cli"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Raise) or node.exc is None:
                continue
            texts = (part.value for part in ast.walk(node.exc) if isinstance(part, ast.Constant))
            said = "".join(text for text in texts if isinstance(text, str))
            if flag.search(said) and not commands.search(said):
                found.append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
    assert not found
