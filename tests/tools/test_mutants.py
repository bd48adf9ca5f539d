"""The table of mutants counts rightly, and what it leaves out is of code that is there."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tools.mutants import ROOT, SUBJECTS, Mutant, Results, _digests, _forked, _reason, _table, equivalent

ENTRIES = equivalent()


@pytest.mark.parametrize("name", SUBJECTS)
def test_every_subject_has_its_code_and_its_tests(name: str) -> None:
    files = [ROOT / "edgeclip" / file for file in SUBJECTS[name].files]
    tests = [ROOT / test for test in SUBJECTS[name].tests if test.endswith(".py")]
    assert tests
    assert [path for path in (*files, *tests) if not path.is_file()] == []


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["was"][:40])
def test_an_equivalent_mutant_is_of_lines_that_are_there_and_has_a_reason(entry: dict[str, str]) -> None:
    code = [(ROOT / "edgeclip" / file).read_text(encoding="utf-8") for file in SUBJECTS[entry["module"]].files]
    lines = {line.strip() for text in code for line in text.splitlines()}
    assert {line for line in entry["was"].splitlines() if line not in lines} == set()
    assert len(entry["reason"].split()) > 3


def test_the_rate_is_of_those_that_a_test_could_notice(tmp_path: Path) -> None:
    known = next(entry for entry in ENTRIES if entry["module"] == "gate")
    alike = Mutant("c", known["was"], known["becomes"][0], killed=False)
    assert _reason("gate", alike) == known["reason"]
    assert _reason("bundle", alike) is None
    mutants = [
        Mutant("a", "x", "y", killed=True),
        Mutant("b", "x", "z", killed=True),
        Mutant("d", "x", "", killed=False),
    ]
    code, tests = _digests(SUBJECTS["gate"])
    for results, said in {
        (code, tests, True): ["4", "2", "1", "1", "66.7%"],
        (code, "other", True): ["4", "2", "1", "1", "66.7%", "(tests", "changed", "since)"],
        (code, tests, False): ["4", "2", "1", "1", "66.7%", "(4", "of", "9", "tried)"],
        ("other", tests, True): ["not", "tried,", "or", "changed", "since"],
    }.items():
        Results(*results[:2], mutants=[*mutants, alike], complete=results[2], made=9).write(tmp_path / "gate.json")
        lines = {line.split()[0]: line.split()[1:] for line in _table(tmp_path).splitlines()}
        assert lines["gate"] == said
        assert lines["bundle"] == ["not", "tried,", "or", "changed", "since"]


def works_for_ever() -> bool:
    while True:
        pass


@pytest.mark.parametrize(
    ("passes", "survived"),
    [
        (lambda: True, True),
        (lambda: False, False),
        (lambda: time.sleep(1.3) is None, True),  # a busy machine lets it wait, and that is no fault of it
        (works_for_ever, False),
        (lambda: 1 / 0 > 0, False),
    ],
)
def test_a_mutant_has_its_time_of_the_processor_and_not_of_the_clock(
    passes: Callable[[], bool], survived: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    assert _forked(passes, 1.0) is survived
