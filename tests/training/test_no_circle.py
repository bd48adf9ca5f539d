"""The modules of training know each other one way: from recipes and towers up to the loop."""

from __future__ import annotations

import ast
import graphlib
import itertools
import subprocess
import sys
from pathlib import Path

import edgeclip.training

TRAINING = Path(edgeclip.training.__file__).parent


def modules() -> dict[str, Path]:
    """Every module of training by its full name, sub-rooms' own among them."""
    package = TRAINING.parents[1]
    names = {path: ".".join(path.relative_to(package).with_suffix("").parts) for path in TRAINING.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for path, name in names.items()}


def imported(path: Path, known: dict[str, Path]) -> set[str]:
    """Those of the known modules that a file imports, at its top, inside a function or for its types alone."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)  # a module imported from its package
    return found & known.keys()


def circle_of(known: dict[str, Path]) -> list[str]:
    """The modules of a circle, the first one also last; none if there is no circle."""
    graph = {name: imported(path, known) - {name} for name, path in known.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return [*reversed(error.args[1])]  # each imports the next
    return []


def test_trainings_modules_import_each_other_in_no_circle() -> None:
    known = modules()
    assert len(known) > 40
    circle = circle_of(known)
    assert not circle, "a circle of imports: " + " → ".join(circle)


def test_a_circle_is_found_and_told_wherever_the_import_stands(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("from package import b")
    (tmp_path / "b.py").write_text("import package.c")
    (tmp_path / "c.py").write_text("def late():\n    from package.a import anything")
    known = {f"package.{path.stem}": path for path in tmp_path.glob("*.py")}
    circle = circle_of(known)
    assert circle[0] == circle[-1]
    assert set(circle) == set(known)
    assert all(second in imported(known[first], known) for first, second in itertools.pairwise(circle))
    (tmp_path / "c.py").write_text("")
    assert circle_of(known) == []


def test_what_a_device_asks_of_training_does_not_load_torch() -> None:
    """Which text tower a checkpoint has, and the samples of every form of data."""
    code = (
        "import sys\n"
        "from edgeclip.training.checkpoint.files import checkpoint_folder, read_config\n"
        "from edgeclip.training.data import folders, pairs, shards, tables\n"
        "assert read_config(checkpoint_folder('starter')).text\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, cwd=TRAINING.parents[1], capture_output=True)
    assert done.returncode == 0, done.stderr.decode() or "torch was loaded"
