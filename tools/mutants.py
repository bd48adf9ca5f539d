"""Mutation testing of the modules that decide: the code changed in small ways, and a table of what its tests noticed.

    python tools/mutants.py [--module NAME]... [--survivors] [--table FILE]

mutmut (``pip install -e .[mutation]``) makes the changes, and tries each by the tests that reach the changed function.
What it passes over (constants of modules and classes, functions under a decorator) is changed here by its own operators
and tried by all tests of the subject. The words of errors and of log lines, and literals of several words, are not
changed. A survivor that no test could notice stands in ``equivalent_mutants.toml`` with the reason.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import hashlib
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.toml")
RESULTS = "mutants.json"  # what the process that tries them leaves in its folder
UNCHANGED = [r"^\s*raise ", r"_log\.", r"TypeVar\(|TypeAlias|getLogger\("]
# Imported once, before processes are forked that import edgeclip each for itself.
HEAVY = ["av", "cv2", "msgspec", "numpy", "onnx", "onnxruntime", "pytest", "scipy.stats", "skimage.data"]


@dataclass(frozen=True)
class Subject:
    """Files below ``edgeclip/`` that decide something, and the arguments by which pytest runs their tests."""

    files: tuple[str, ...]
    tests: tuple[str, ...]


def _subject(files: str, tests: str, chosen: str = "") -> Subject:
    named = tuple(f"tests/{name}.py" for name in tests.split())
    return Subject(tuple(f"{name}.py" for name in files.split()), named + (("-k", chosen) if chosen else ()))


_PROOF = "runtime/test_proof runtime/test_stream_proof"
SUBJECTS = {
    "parity": _subject("runtime/proof/parity", _PROOF),
    "proof": _subject("runtime/proof/proof runtime/proof/in_the_loop runtime/proof/basis", _PROOF),
    "choose": _subject("runtime/proof/choose", _PROOF),
    "golden": _subject("runtime/proof/golden", _PROOF),
    "decisions": _subject(
        "decisions calibration/decisions/fit calibration/decisions/confidence calibration/decisions/background",
        "calibration/test_decisions",
    ),
    "promises": _subject("calibration/decisions/precision_bound", "calibration/test_decisions"),
    "plan": _subject("devices/plan/memory devices/plan/speed devices/plan/plan", "devices/test_plan"),
    "bench": _subject("evaluation/bench/bench evaluation/bench/records", "evaluation/test_bench"),
    "statistics": _subject(
        "evaluation/statistics/paired evaluation/statistics/rounds evaluation/statistics/metrics "
        "evaluation/statistics/effective_robustness",
        "evaluation/test_evaluation evaluation/test_bench evaluation/test_robustness",
    ),
    "tradeoff": _subject("evaluation/tradeoff/decide", "evaluation/test_tradeoff"),
    "guard": _subject("runtime/page/guard", "runtime/test_guard"),
    "fewshot": _subject("training/adapt/fewshot", "training/test_fewshot"),
    "manifest": _subject("manifest", "test_bundle test_bundle_writing"),
    "bundle": _subject("bundle", "test_bundle test_bundle_writing"),
    "gate": _subject("runtime/gate", "runtime/test_gate", "not real_video"),
    "hysteresis": _subject("runtime/decision", "runtime/test_decision", "not of_100000_classes"),
    "lint": _subject("export/lint/graph export/lint/lint export/lint/operators export/lint/qdq", "export/test_lint"),
    "precision": _subject("export/half/plan", "export/test_precision"),
}


@dataclass
class Mutant:
    """One change: the lines that it takes and gives, and whether a test noticed."""

    name: str
    was: str
    becomes: str
    killed: bool


def main() -> None:
    """Try the mutants, print each survivor and the table."""
    parser = argparse.ArgumentParser(description="Mutation testing of the modules that decide.")
    parser.add_argument("--module", action="append", choices=SUBJECTS, metavar="NAME", help=", ".join(SUBJECTS))
    parser.add_argument("--survivors", action="store_true", help="only what survived the last time, of unchanged code")
    parser.add_argument("--results", type=Path, default=ROOT / "build" / "mutants", help="a JSON file of each module")
    parser.add_argument("--table", type=Path, help="also write the table of all results that are current to this file")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        _try_here()
        return
    options.results.mkdir(parents=True, exist_ok=True)
    for name in options.module or ([] if options.table else SUBJECTS):
        _examine(name, options.results / f"{name}.json", survivors=options.survivors)
        for mutant in _read(options.results / f"{name}.json"):
            if not mutant.killed and not _reason(name, mutant):
                print(f"\n{mutant.name}\n- {mutant.was}\n+ {mutant.becomes}".replace("\n", "\n    "))
    table = _table(options.results)
    print(table)
    if options.table:
        options.table.write_text(table, encoding="utf-8")


def _examine(name: str, results: Path, *, survivors: bool) -> None:
    """Write what became of the mutants of one module, unless that is known."""
    subject, known = SUBJECTS[name], _read(results)
    code, tests = _digest(f"edgeclip/{file}" for file in subject.files), _digest(subject.tests)
    said = json.loads(results.read_text()) if known else {}
    if (said.get("code"), said.get("tests")) == (code, tests):
        return
    alive = [mutant.name for mutant in known if not mutant.killed]
    again = alive if survivors and said.get("code") == code else None
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        found = _try(subject, Path(folder), again)
    if again is not None:
        tried = {mutant.name: mutant for mutant in found}
        found = [tried.get(mutant.name, mutant) for mutant in known]
    document = {"code": code, "tests": tests, "mutants": [asdict(mutant) for mutant in found]}
    results.write_text(json.dumps(document, indent=1), encoding="utf-8")


def _digest(files: Iterator[str] | Sequence[str]) -> str:
    paths = [ROOT / file for file in files if file.endswith(".py")]
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in paths)).hexdigest()


def _read(results: Path) -> list[Mutant]:
    return [Mutant(**each) for each in json.loads(results.read_text())["mutants"]] if results.is_file() else []


def _reason(name: str, mutant: Mutant) -> str | None:
    """Why no test could notice a mutant, where that is said."""
    for each in tomllib.loads(EQUIVALENT.read_text(encoding="utf-8")).get("mutant", []):
        if each["module"] == name and each["was"] == mutant.was and mutant.becomes in each["becomes"]:
            return str(each["reason"])
    return None


def _table(results: Path) -> str:
    """A line for each module whose results are of the code and the tests that lie here."""
    lines = [f"{'module':<12}{'mutants':>9}{'killed':>8}{'equivalent':>12}{'survived':>10}{'rate':>9}"]
    for name, subject in SUBJECTS.items():
        file = results / f"{name}.json"
        said = json.loads(file.read_text()) if file.is_file() else {}
        if said.get("code") != _digest([f"edgeclip/{each}" for each in subject.files]):
            lines.append(f"{name:<12}  not tried, or changed since")
            continue
        mutants = _read(file)
        killed = sum(mutant.killed for mutant in mutants)
        equivalent = sum(not mutant.killed and _reason(name, mutant) is not None for mutant in mutants)
        survived = len(mutants) - killed - equivalent
        rate = killed / max(killed + survived, 1)
        changed = "" if said["tests"] == _digest(subject.tests) else "  (tests changed since)"
        lines.append(f"{name:<12}{len(mutants):>9}{killed:>8}{equivalent:>12}{survived:>10}{rate:>9.1%}{changed}")
    return "\n".join(lines) + "\n"


def _try(subject: Subject, folder: Path, names: list[str] | None) -> list[Mutant]:
    """Try mutants in a folder, where a process that has nothing of edgeclip loaded sets out."""
    for part in ("edgeclip", "tests"):
        (folder / part).symlink_to(ROOT / part)
    settings = {
        "source_paths": ["edgeclip"],
        "only_mutate": [f"edgeclip/{file}" for file in subject.files],
        "do_not_mutate_patterns": UNCHANGED,
        "pytest_add_cli_args": ["-p", "no:cacheprovider"],
        "pytest_add_cli_args_test_selection": list(subject.tests),
        "use_git_change_detection": False,
        "timeout_constant": 10.0,
    }
    said = "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
    (folder / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text() + f"\n[tool.mutmut]\n{said}")
    (folder / RESULTS).write_text(json.dumps(names))
    paths = [str(folder / "mutants"), *os.environ.get("PYTHONPATH", "").split(":")]
    environment = os.environ | {"PYTHONPATH": ":".join(path for path in paths if path and Path(path) != ROOT)}
    with (folder / "log").open("w+") as log:
        command = [sys.executable, __file__, "--inside"]
        if subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=log, check=False).returncode:
            log.seek(0)
            raise SystemExit(f"expected mutants to be tried, got\n{log.read()[-4000:]}")
    return [Mutant(**each) for each in json.loads((folder / RESULTS).read_text())]


def _try_here() -> None:
    from mutmut.mutation import mutators

    as_it_was = mutators.operator_string

    def operator_string(node: Any) -> Iterator[Any]:
        yield from () if " " in getattr(node, "value", "") else as_it_was(node)

    at = [operator for _, operator in mutators.mutation_operators].index(as_it_was)
    mutators.mutation_operators[at] = (mutators.mutation_operators[at][0], operator_string)  # type: ignore[index]
    names = json.loads(Path(RESULTS).read_text())
    found = [*_outside_functions(names), *_in_functions(names)]
    Path(RESULTS).write_text(json.dumps([asdict(mutant) for mutant in found]))


def _in_functions(names: list[str] | None) -> Iterator[Mutant]:
    """Let mutmut try what it knows to try."""
    from mutmut.__main__ import cli
    from mutmut.mutation.data import SourceFileMutationData
    from mutmut.mutation.diff_apply import get_diff_for_mutant
    from mutmut.stats import status_by_exit_code
    from mutmut.utils.file_utils import walk_mutatable_files

    own = [name for name in names or () if ":" not in name]
    if names is not None and not own:
        return
    try:
        cli(["run", "--max-children", "1", *own], standalone_mode=False)
    except SystemExit as end:
        if end.code:
            raise
    for path in walk_mutatable_files():
        tried = SourceFileMutationData(path=path)
        tried.load()
        for name, code in tried.exit_code_by_key.items():
            if names is None or name in own:
                killed = status_by_exit_code[code] in ("killed", "timeout", "segfault")
                yield Mutant(name, *_lines(get_diff_for_mutant(name, path=path).splitlines()), killed)


def _outside_functions(names: list[str] | None) -> Iterator[Mutant]:
    """Try what mutmut passes over, a file at a time."""
    from mutmut.configuration import config

    if names is not None and not any(":" in name for name in names):
        return
    tree = Path("whole").absolute()
    for part in ("edgeclip", "tests"):
        shutil.copytree(part, tree / part)
    shutil.copy("pyproject.toml", tree)
    for name in HEAVY:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    started = time.monotonic()
    if not _passes(tree, 600.0):
        raise SystemExit("expected tests that pass without any change, got a failure")
    limit_s = 30 + 5 * (time.monotonic() - started)
    for number, file in enumerate(config().only_mutate):
        source = (tree / file).read_text(encoding="utf-8")
        for index, mutated in enumerate(_mutated(file, source), 1):
            name = f"{file}:{index}"
            if names is None or name in names:
                (tree / file).write_text(mutated, encoding="utf-8")
                os.utime(tree / file, (index + 1000 * number,) * 2)  # bytecode is known by these seconds
                lines = _lines(list(difflib.unified_diff(source.splitlines(), mutated.splitlines(), n=0)))
                yield Mutant(name, *lines, killed=not _passes(tree, limit_s))
        (tree / file).write_text(source, encoding="utf-8")


def _mutated(file: str, source: str) -> Iterator[str]:
    """Texts of a file with one change each outside the functions that mutmut changes itself."""
    import libcst
    from libcst.metadata import MetadataWrapper
    from mutmut.mutation import file_mutation, mutators, pragma_handling

    class Visitor(file_mutation.MutationVisitor):
        """mutmut's, which also goes into functions under a decorator."""

        def _skip_node_and_children(self, node: libcst.CSTNode) -> bool:
            if isinstance(node, libcst.FunctionDef) and node.decorators:
                return False
            return bool(super()._skip_node_and_children(node))

    wrapper = MetadataWrapper(libcst.parse_module(source))
    visitor = Visitor(mutators.mutation_operators, pragma_handling.get_ignored_lines(file, source, wrapper))
    module = wrapper.visit(visitor)
    for mutation in visitor.mutations:
        inside = mutation.contained_by_top_level_function
        if not isinstance(inside, libcst.FunctionDef):
            if isinstance(mutation.original_node, libcst.Assign | libcst.AnnAssign):
                continue  # a constant of None seldom survives its import
        else:
            decorators = [libcst.Module([]).code_for_node(each.decorator) for each in inside.decorators]
            if not decorators or decorators in (["staticmethod"], ["classmethod"]):
                continue
        yield file_mutation.deep_replace(module, mutation.original_node, mutation.mutated_node).code  # type: ignore[union-attr]


def _passes(tree: Path, limit_s: float) -> bool:
    """Whether the tests pass in a tree, run by a fork of this process."""
    from mutmut.configuration import config

    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        os.chdir(tree)
        sys.path.insert(0, str(tree))
        os.environ["PYTHONPATH"] = f"{tree}:{os.environ['PYTHONPATH']}"
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        import pytest

        chosen = config().pytest_add_cli_args_test_selection
        os._exit(int(pytest.main(["-x", "-q", "--rootdir=.", "-p", "no:cacheprovider", *chosen])))
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.02)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return False


def _lines(diff: Sequence[str]) -> tuple[str, str]:
    """What a diff takes and what it gives, without the space around lines."""
    changed = [line for line in diff if not re.match(r"\+\+\+|---|@@", line)]
    return tuple("\n".join(line[1:].strip() for line in changed if line[:1] == sign) for sign in "-+")  # type: ignore[return-value]


if __name__ == "__main__":
    main()
