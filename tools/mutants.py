"""Mutation testing of the modules that decide: the code changed in small ways, and a table of what its tests noticed.

    python tools/mutants.py [--module NAME]... [--survivors] [--seconds S] [--table FILE]

mutmut (``pip install -e .[mutation]``) makes the changes; they are tried by the tests that reach the changed function,
in forks of a process in which all is loaded. What mutmut passes over (numbers and truth values outside functions,
functions under a decorator) is changed by its operators too, and tried by all tests of the subject. The words of errors
and of log lines, and literals of several words, are not changed. A run that was stopped, or that ``--seconds`` ended,
goes on where it stood; those tried until then are a sample of those within functions, in an order that is drawn once. A
survivor that no test could notice stands in ``equivalent_mutants.toml`` with the reason.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import gc
import hashlib
import importlib
import json
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.toml")
TASK = "task.json"  # in the folder of the process that tries mutants: what it is to do
LOADED = "loaded.json"  # beside it: which of HEAVY the tests load
UNCHANGED = [r"^\s*raise ", r"_log\.", r"TypeVar\(|TypeAlias|getLogger\("]
PYTEST = ["-q", "--rootdir=.", "-p", "no:cacheprovider", "--assert=plain", "--tb=native"]
_WAITS = 4  # what waits for ever takes no processor time: it is ended by the clock, late enough for a busy machine
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


SUBJECTS = {
    "parity": _subject("runtime/proof/parity", "runtime/test_parity runtime/test_limits"),
    "proof": _subject(
        "runtime/proof/proof runtime/proof/in_the_loop runtime/proof/basis runtime/proof/what_runs "
        "runtime/proof/site runtime/proof/renew runtime/proof/distinct",
        "runtime/test_distinct runtime/test_basis runtime/test_kept_proofs runtime/test_in_the_loop "
        "runtime/test_site_images",
    ),
    "choose": _subject("runtime/proof/choose", "runtime/test_choose"),
    "golden": _subject("runtime/proof/golden", "runtime/test_golden"),
    "decisions": _subject(
        "decisions calibration/decisions/fit calibration/decisions/confidence calibration/decisions/background",
        "calibration/test_promises",
    ),
    "promises": _subject(
        "calibration/decisions/precision_bound",
        "calibration/test_promises",
        "fewest_images or sequence or level_with_the_last or likely_threshold or promised",
    ),
    "plan": _subject(
        "devices/plan/memory devices/plan/speed devices/plan/plan", "devices/test_plan_figures devices/test_power_modes"
    ),
    "bench": _subject(
        "evaluation/bench/bench evaluation/bench/records",
        "evaluation/test_bench_figures evaluation/test_bench",
        "bench_figures or by_hand or kept_result or setting_by_setting",
    ),
    "statistics": _subject(
        "evaluation/statistics/paired evaluation/statistics/rounds evaluation/statistics/metrics "
        "evaluation/statistics/effective_robustness",
        "evaluation/test_statistics",
    ),
    "tradeoff": _subject("evaluation/tradeoff/decide", "evaluation/test_ship_decision"),
    "guard": _subject("runtime/page/guard", "runtime/test_guard"),
    "fewshot": _subject("training/adapt/fewshot evaluation/fewshot", "training/test_fewshot_safeguard"),
    "manifest": _subject("manifest", "test_manifest"),
    "bundle": _subject(
        "bundle",
        "test_bundle test_bundle_parts test_bundle_writing test_api",
        "built_added or takes_no_table_but or test_bundle and not "
        "(three_processes or at_any_moment or shipped_bundle_verifies or flipped_byte_of_the_manifest)",
    ),
    "gate": _subject("runtime/gate", "runtime/test_gate", "not real_video"),
    "hysteresis": _subject("runtime/decision", "runtime/test_decision", "not of_100000_classes"),
    "lint": _subject(
        "export/lint/graph export/lint/lint export/lint/operators export/lint/qdq", "export/test_lint_findings"
    ),
    "precision": _subject("export/half/plan", "export/test_precision_plan"),
    "accuracy": _subject(
        "export/accuracy",
        "export/test_accuracy_figures export/test_accuracy",
        "accuracy_figures or bound and (score_test or 97_times or usual or never or grows) or in_pairs "
        "or other_images or as_are_asked_for or what_they_can_bound or no_number_of_images",
    ),
}


@dataclass
class Mutant:
    """One change: the lines that it takes and gives, and whether a test noticed."""

    name: str
    was: str
    becomes: str
    killed: bool


@dataclass
class Results:
    """What became of a module's mutants so far, by the digests of its code and of its tests."""

    code: str = ""
    tests: str = ""
    mutants: list[Mutant] = field(default_factory=list)
    complete: bool = False
    made: int = 0  # how many changes there are, tried or not
    again: list[str] = field(default_factory=list)  # names of survivors that are to be tried once more

    @classmethod
    def read(cls, file: Path) -> Results:
        """Those in a file, or none."""
        said = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"mutants": []}
        return cls(**said | {"mutants": [Mutant(**each) for each in said["mutants"]]})

    @property
    def done(self) -> set[str]:
        """Names of those that need not be tried."""
        return {mutant.name for mutant in self.mutants} - {*self.again}

    def write(self, file: Path) -> None:
        """Put them into a file."""
        file.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")


def main() -> None:
    """Try the mutants, print each survivor and the table."""
    parser = argparse.ArgumentParser(description="Mutation testing of the modules that decide.")
    parser.add_argument("--module", action="append", choices=SUBJECTS, metavar="NAME", help=", ".join(SUBJECTS))
    parser.add_argument("--survivors", action="store_true", help="only what survived the last time, of unchanged code")
    parser.add_argument("--seconds", type=float, default=1e6, help="of trials within functions, and as many of others")
    parser.add_argument("--results", type=Path, default=ROOT / "build" / "mutants", help="a JSON file of each module")
    parser.add_argument("--table", type=Path, help="also write the table of all results that are current to this file")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        _try_here()
        return
    options.results.mkdir(parents=True, exist_ok=True)
    for name in options.module or ([] if options.table else SUBJECTS):
        _examine(name, options.results / f"{name}.json", options.seconds, survivors=options.survivors)
        for mutant in Results.read(options.results / f"{name}.json").mutants:
            if not mutant.killed and not _reason(name, mutant):
                print(f"\n{mutant.name}\n- {mutant.was}\n+ {mutant.becomes}".replace("\n", "\n    "))
    table = _table(options.results)
    print(table)
    if options.table:
        options.table.write_text(table, encoding="utf-8")


def _examine(name: str, file: Path, seconds: float, *, survivors: bool) -> None:
    """Try those mutants of one module of which it is not known what becomes of them."""
    subject, known = SUBJECTS[name], Results.read(file)
    code, tests = _digests(subject)
    mutants = known.mutants if (known.code, known.tests) == (code, tests) else []
    again: list[str] = []
    if known.code == code and survivors:
        mutants = known.mutants
        again = [mutant.name for mutant in mutants if not mutant.killed]
    elif mutants and known.complete:
        return
    Results(code, tests, mutants, made=known.made if known.code == code else 0, again=again).write(file)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        _try(subject, Path(folder), file, seconds)


def _digests(subject: Subject) -> tuple[str, str]:
    """Of the code and of the tests."""
    names = [f"edgeclip/{file}" for file in subject.files], [test for test in subject.tests if test.endswith(".py")]
    code, tests = (hashlib.sha256(b"\0".join((ROOT / name).read_bytes() for name in each)) for each in names)
    return code.hexdigest(), tests.hexdigest()


def equivalent() -> list[dict[str, Any]]:
    """The entries of the file of mutants that no test could notice."""
    entries: list[dict[str, Any]] = tomllib.loads(EQUIVALENT.read_text(encoding="utf-8"))["mutant"]
    return entries


def _reason(name: str, mutant: Mutant) -> str | None:
    """Why no test could notice a mutant, where that is said."""
    for each in equivalent():
        if each["module"] == name and each["was"] == mutant.was and mutant.becomes in each["becomes"]:
            return str(each["reason"])
    return None


def _table(results: Path) -> str:
    """A line for each module whose results are of the code and the tests that lie here."""
    lines = [f"{'module':<12}{'mutants':>9}{'killed':>8}{'equivalent':>12}{'survived':>10}{'rate':>9}"]
    for name, subject in SUBJECTS.items():
        known = Results.read(results / f"{name}.json")
        code, tests = _digests(subject)
        if known.code != code:
            lines.append(f"{name:<12}  not tried, or changed since")
            continue
        killed = sum(mutant.killed for mutant in known.mutants)
        equivalent = sum(not mutant.killed and _reason(name, mutant) is not None for mutant in known.mutants)
        survived = len(known.mutants) - killed - equivalent
        rate = f"{killed / max(killed + survived, 1):.1%}" if known.mutants else "-"
        note = "" if known.complete else f"  ({len(known.mutants)} of {known.made} tried)"
        note += "" if known.tests == tests else "  (tests changed since)"
        note += f"  ({len(known.again)} survivors of former tests)" if known.again else ""
        lines.append(f"{name:<12}{len(known.mutants):>9}{killed:>8}{equivalent:>12}{survived:>10}{rate:>9}{note}")
    return "\n".join(lines) + "\n"


def _try(subject: Subject, folder: Path, results: Path, seconds: float) -> None:
    """Try mutants in a copy, by a process that has nothing of edgeclip loaded."""
    for part in ("edgeclip", "tests"):
        shutil.copytree(ROOT / part, folder / part)
    (folder / "docs").symlink_to(ROOT / "docs")  # some tests read figures there
    settings = {"source_paths": ["edgeclip"], "do_not_mutate_patterns": UNCHANGED}
    said = "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
    (folder / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text() + f"\n[tool.mutmut]\n{said}")
    (folder / TASK).write_text(json.dumps([*asdict(subject).values(), str(results.resolve()), seconds]))
    paths = [str(folder), *os.environ.get("PYTHONPATH", "").split(":")]
    environment = os.environ | {"PYTHONPATH": ":".join(path for path in paths if path and Path(path) != ROOT)}
    with (folder / "log").open("w+") as log:
        command = [sys.executable, __file__, "--inside"]
        if subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=log, check=False).returncode:
            log.seek(0)
            raise SystemExit(f"expected mutants to be tried, got\n{log.read()[-4000:]}")


def _try_here() -> None:
    from mutmut.mutation import mutators

    as_it_was = mutators.operator_string

    def operator_string(node: Any) -> Iterator[Any]:
        yield from () if " " in getattr(node, "value", "") else as_it_was(node)

    at = [operator for _, operator in mutators.mutation_operators].index(as_it_was)
    mutators.mutation_operators[at] = (mutators.mutation_operators[at][0], operator_string)  # type: ignore[index]
    files, tests, results, seconds = json.loads(Path(TASK).read_text())
    files = [f"edgeclip/{file}" for file in files]
    if not _forked(lambda: _in_functions(files, tests, Path(results), seconds), 1e6):
        raise SystemExit("expected tests that pass without any change, got a failure")
    for name in json.loads(Path(LOADED).read_text()) if Path(LOADED).is_file() else HEAVY:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    _outside_functions(files, tests, Path(results), seconds)
    known = Results.read(Path(results))
    known.complete = len(known.mutants) >= known.made and not known.again
    known.write(Path(results))


def _in_functions(files: list[str], tests: list[str], results: Path, seconds: float) -> bool:
    """Try the changes that mutmut puts beside each function, which it chooses by a word while all is loaded."""
    import pytest
    from mutmut.mutation.file_mutation import mutate_file_contents
    from mutmut.utils.format_utils import get_mutant_name, mangled_name_from_mutant_name

    known = Results.read(results)
    tried, known.made = known.done, 0
    mutants: list[Mutant] = []
    sources = {file: Path(file).read_text(encoding="utf-8") for file in files}
    for file, source in sources.items():
        made = mutate_file_contents(file, source)
        known.made += len(made.mutant_names) + len(_changes(file, source)[1])
        Path(file).write_text(made.code, encoding="utf-8")
        lines, spans = made.code.splitlines(), made.line_span_by_function_name

        def body(function: str, lines: list[str] = lines, spans: Any = spans) -> list[str]:
            span = spans[function]
            return [line.replace(function, "") for line in lines[span.start - 1 : span.end]]

        for function in made.mutant_names:
            name = get_mutant_name(Path(file), function)
            if name not in tried:
                diff = difflib.unified_diff(
                    body(f"{mangled_name_from_mutant_name(function)}__mutmut_orig"), body(function), n=0
                )
                mutants.append(Mutant(name, *_lines(diff), killed=False))
    known.write(results)
    mutants.sort(key=lambda mutant: hashlib.sha256(mutant.name.encode()).digest())
    try:
        return not mutants or pytest.main([*PYTEST, *tests], plugins=[Tries(mutants, results, seconds)]) == 0
    finally:
        Path(LOADED).write_text(json.dumps([name for name in HEAVY if name in sys.modules]))
        for file, source in sources.items():
            Path(file).write_text(source, encoding="utf-8")


class Tries:
    """Of pytest: runs the tests once to see which reach which function, then those of each mutant in a fork.

    mutmut's own runner begins a session of pytest for each, which takes ten times as long.
    """

    def __init__(self, mutants: list[Mutant], results: Path, seconds: float) -> None:
        self._mutants = mutants
        self._results = results
        self._seconds = seconds

    def pytest_runtestloop(self, session: Any) -> bool:
        """Instead of the loop over the tests."""
        from mutmut.mutation.trampoline import set_mutant_under_test
        from mutmut.state import state
        from mutmut.utils.format_utils import mangled_name_from_mutant_name

        if session.testsfailed:
            raise session.Failed("tests that cannot be loaded hold nothing")
        reached: dict[str, list[tuple[float, Any]]] = {}
        set_mutant_under_test("stats")
        total_s = 0.0
        for item in session.items:
            started = time.process_time()
            if not _passes(item):
                print(f"expected tests that pass without any change, got a failure of {item.nodeid}")
                raise session.Failed(f"{item.nodeid} fails without any change")
            took_s = time.process_time() - started
            total_s += took_s
            for function in state()._stats:
                reached.setdefault(function, []).append((took_s, item))
            state()._stats.clear()
        gc.freeze()  # so that a fork copies less
        set_mutant_under_test("")
        if not _forked(lambda: all(map(_passes, session.items)), 10 + 10 * total_s):
            print("expected tests that pass in a fork, got a failure, or a library whose threads are not there")
            raise session.Failed("what fails in a fork kills every mutant")
        until = time.monotonic() + self._seconds
        for mutant in self._mutants:
            if time.monotonic() > until:
                break
            items = sorted(reached.get(mangled_name_from_mutant_name(mutant.name), []), key=lambda each: each[0])
            limit_s = 10 + 10 * sum(seconds for seconds, _ in items)

            def alive(name: str = mutant.name, items: list[tuple[float, Any]] = items) -> bool:
                set_mutant_under_test(name)
                return all(_passes(item) for _, item in items)

            mutant.killed = not _forked(alive, limit_s)
            _note(mutant, self._results)
        return True


def _passes(item: Any) -> bool:
    """Whether a test passes; what it shares with others of its file and of the session stays."""
    from _pytest.runner import runtestprotocol

    item.session._setupstate.teardown_exact(item)
    return not any(report.failed for report in runtestprotocol(item, log=False, nextitem=item.parent))


def _note(mutant: Mutant, results: Path) -> None:
    known = Results.read(results)
    known.mutants = [each for each in known.mutants if each.name != mutant.name] + [mutant]
    known.again = [name for name in known.again if name != mutant.name]
    known.write(results)


def _forked(passes: Callable[[], bool], limit_s: float) -> bool:
    """What a function says in a process of its own; False where that ends otherwise or takes too long.

    Args:
        limit_s: of processor time, so that a busy machine kills no mutant.
    """
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setpgid(0, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(limit_s),) * 2)
            signal.setitimer(signal.ITIMER_REAL, _WAITS * limit_s)
            code = 0 if passes() else 1
            sys.stdout.flush()
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # what it started
    return status == 0


def _outside_functions(files: list[str], tests: list[str], results: Path, seconds: float) -> None:
    """Try what mutmut passes over, each by a process that loads edgeclip anew."""
    known = Results.read(results).done

    def passes() -> bool:
        import pytest

        return pytest.main([*PYTEST, "-x", *tests]) == 0

    until = time.monotonic() + seconds
    for number, file in enumerate(files):
        source = Path(file).read_text(encoding="utf-8")
        for index, mutated in enumerate(_mutated(file, source), 1):
            if (name := f"{file}:{index}") not in known and time.monotonic() < until:
                Path(file).write_text(mutated, encoding="utf-8")
                os.utime(file, (index + 1000 * number,) * 2)  # bytecode is known by these seconds
                lines = _lines(difflib.unified_diff(source.splitlines(), mutated.splitlines(), n=0))
                _note(Mutant(name, *lines, killed=not _forked(passes, 120.0)), results)
        Path(file).write_text(source, encoding="utf-8")


def _mutated(file: str, source: str) -> Iterator[str]:
    """Texts of a file with one change each outside the functions that mutmut changes itself."""
    from mutmut.mutation import file_mutation

    module, changes = _changes(file, source)
    for change in changes:
        yield file_mutation.deep_replace(module, change.original_node, change.mutated_node).code


def _changes(file: str, source: str) -> tuple[Any, list[Any]]:
    """A file's module, and mutmut's changes of nodes in it outside the functions that it changes itself."""
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
    changes = []
    for mutation in visitor.mutations:
        inside = mutation.contained_by_top_level_function
        if not isinstance(inside, libcst.FunctionDef):
            if not isinstance(mutation.original_node, libcst.BaseNumber | libcst.Name | libcst.BinaryOperation):
                continue  # a constant of another kind seldom survives its import
        else:
            decorators = [libcst.Module([]).code_for_node(each.decorator) for each in inside.decorators]
            if not decorators or decorators in (["staticmethod"], ["classmethod"]):
                continue
        changes.append(mutation)
    return module, changes


def _lines(diff: Iterable[str]) -> tuple[str, str]:
    """What a diff takes and what it gives, without the space around lines."""
    changed = [line for line in diff if not re.match(r"\+\+\+|---|@@", line)]
    return tuple("\n".join(line[1:].strip() for line in changed if line[:1] == sign) for sign in "-+")  # type: ignore[return-value]


if __name__ == "__main__":
    main()
