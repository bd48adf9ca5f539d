"""What `make test` did not check, it names; what it needs of Debian stands in one list."""

from __future__ import annotations

import re
from pathlib import Path

from tests.conftest import debian_packages, not_checked

TESTS = Path(__file__).parent
CI = TESTS.parent / ".ci" / "run"


def test_packages_that_skipped_tests_want_come_with_one_command() -> None:
    reasons = [
        "Skipped: needs ffmpeg, which is not installed",
        "Skipped: needs Debian's chromium",
        "Skipped: needs an NVIDIA GPU",
    ]
    lines = not_checked(reasons, lambda package: package == "openssl")
    assert lines[0].startswith("3 skipped: ")
    assert lines[1:] == ["2 of them want Debian packages: sudo apt-get install chromium ffmpeg"]


def test_what_is_installed_is_not_asked_for_and_a_full_run_says_nothing() -> None:
    assert len(not_checked(["needs a system OpenCV with GStreamer, for the same Python version"], lambda _: True)) == 1
    assert not_checked([], lambda _: False) == []


def test_every_skip_for_want_of_a_program_is_on_the_list() -> None:
    words = set(debian_packages().values())
    asked = re.compile(r"""skip.*needs (?:Debian's (?:package )?)?([a-z][\w.-]+)(?:"|, which)|\bneed\("([\w.-]+)"\)""")
    texts = [path.read_text(encoding="utf-8") for path in TESTS.rglob("*.py") if path != Path(__file__)]
    programs = {one or other for text in texts for one, other in asked.findall(text)}
    assert programs >= {"chromium", "ffmpeg", "mosquitto", "openssl", "systemd-analyze", "wordnet-base"}
    assert programs <= words, f"not in debian-packages.txt: {sorted(programs - words)}"


def test_ci_installs_that_list() -> None:
    text = CI.read_text(encoding="utf-8")
    assert "tests/debian-packages.txt" in text
    assert not [package for package in debian_packages() if package in text]
