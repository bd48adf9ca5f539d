"""What the documents show works: links lead somewhere, commands and examples run, the site is built from them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import edgeclip
from edgeclip.limits import LIMITS
from tests import command_line

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), ROOT / "deploy" / "README.md"])
TUTORIALS = sorted(path for path in (DOCS / "tutorials").glob("*.md") if path.name != "index.md")


def named(path: Path) -> str:
    """A test's id."""
    return str(path.relative_to(ROOT))


@dataclass(frozen=True)
class Block:
    """A fenced block of a document; what has ``*Not run by our tests: REASON.*`` above it is for reading only."""

    language: str
    text: str
    line: int
    run: bool


def blocks(path: Path, *languages: str) -> list[Block]:
    """The blocks of a document in these languages, in order."""
    text = path.read_text(encoding="utf-8")
    found = re.finditer(r"(\*Not run by our tests: [^*]+\.\*\n\n)?^```(\w+)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [
        Block(match[2], match[3], text.count("\n", 0, match.start(2)) + 1, match[1] is None)
        for match in found
        if match[2] in languages
    ]


# Links, and files that are named -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\((?![a-z]+:)([^)#]+)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), f"{named(path)} links to {target}"


def test_the_files_that_documents_name_exist() -> None:
    for path in DOCUMENTS:
        for name in re.findall(r"`((?:benchmarks|recipes|tests|edgeclip|docs|tools)/[\w./-]+\.\w+)`", path.read_text()):
            assert (ROOT / name).exists(), f"{named(path)} names {name}"


def test_every_benchmark_says_how_to_run_it() -> None:
    for path in sorted((ROOT / "benchmarks").glob("*.py")):
        assert f"python benchmarks/{path.name}" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_data_is_named_as_a_reader_can_get_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if path in (DOCS / "data.md", DOCS / "results" / "index.md"):
        assert "../shared/data" in text  # where it is told what that is
    else:
        assert "shared/data" not in text
        assert ("DATA/" in text) <= ("data.md)" in text), f"{named(path)} says DATA and not where to get it"


def test_installing_tells_every_extra() -> None:
    listed = re.findall(
        r"`([\w-]+)`", re.search(r"\| extra \|.*?\n\n", (DOCS / "install.md").read_text(), re.DOTALL)[0]
    )
    section = re.search(
        r"\[project\.optional-dependencies\]\n(.*?)\n\[", (ROOT / "pyproject.toml").read_text(), re.DOTALL
    )
    for extra in re.findall(r"^([\w-]+) = \[", section[1], re.MULTILINE):
        assert extra in listed, extra


# Figures -------------------------------------------------------------------------------------------------------------


def test_every_printout_is_listed() -> None:
    listed = set(re.findall(r"\]\(([\w.-]+)\)", (DOCS / "results" / "index.md").read_text(encoding="utf-8")))
    assert {path.name for path in (DOCS / "results").iterdir()} - {"index.md"} == listed - {"data.md", "measured.md"}


def test_every_figure_has_its_command_and_its_printout() -> None:
    text = (DOCS / "measured.md").read_text(encoding="utf-8")
    tables = re.findall(r"\| what \| figure \| beside it \| command, printout \|\n.*\n((?:\|.*\n)+)", text)
    rows = [line.strip("| ").split(" | ") for table in tables for line in table.splitlines()]
    assert len(rows) > 25
    for what, _, beside, command in rows:
        assert "`" in command or "as above" in command, what
        assert "](results/" in command, what
        assert beside.strip(), f"nothing stands beside {what}"


def test_every_bound_stands_in_the_document() -> None:
    text = (DOCS / "install.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `EDGECLIP_MAX_(\w+)` \| ([\d,]+) \| (.+) \|$", text, re.MULTILINE)
    assert rows == [(name.upper(), f"{bound.most:,}", bound.what) for name, bound in LIMITS.items()]


def test_the_readme_fits_two_screens() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 110


# Commands and examples -----------------------------------------------------------------------------------------------


def commands(document: str, heading: str) -> list[str]:
    """The lines of the first shell block below a heading."""
    text = (ROOT / document).read_text(encoding="utf-8")
    section = text[text.index(heading) :]
    block = re.search(r"```bash\n(.*?)```", section, re.DOTALL)
    assert block, f"{document}: no shell block below {heading}"
    return [line.partition("  #")[0].strip() for line in block[1].splitlines() if line.strip()]


@pytest.mark.slow
def test_the_pipeline_of_the_readme_runs(tmp_path: Path, video: Path) -> None:
    shutil.copy(video, tmp_path / "video.mp4")
    lines = commands("README.md", "## Five commands")
    assert len(lines) == 5
    for line in lines:
        program, *words = shlex.split(line, comments=True)
        assert program == "edgeclip"
        command_line.edgeclip(*words, cwd=tmp_path)
    assert (tmp_path / "labels.jsonl").is_file()


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if path not in TUTORIALS], ids=named)
def test_python_examples_run(path: Path, tmp_path: Path, video: Path) -> None:
    shutil.copy(video, tmp_path / "video.mp4")
    for block in blocks(path, "python"):
        if block.run:
            command = [sys.executable, "-c", block.text]
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"line {block.line}: {done.stderr}"


def test_the_example_of_the_readme_says_something_of_an_image(tmp_path: Path, photographs_dir: Path) -> None:
    (example,) = blocks(ROOT / "README.md", "python")
    assert '"video.mp4"' in example.text
    code = example.text.replace('"video.mp4"', repr(str(photographs_dir / "chelsea.jpg")))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "cat" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("path", TUTORIALS, ids=named)
def test_tutorials_run(path: Path, tmp_path: Path, video: Path) -> None:
    """All commands and examples of a tutorial in order, in one folder, by a shell that stops at what fails."""
    programs, folder = tmp_path / "bin", tmp_path / "work"
    programs.mkdir()
    folder.mkdir()
    shutil.copy(video, folder / "video.mp4")
    program = programs / "edgeclip"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m edgeclip "$@"\n')
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    steps = [block for block in blocks(path, "bash", "python") if block.run]
    assert len(steps) >= 3
    for step in steps:
        shell = ["bash", "-euo", "pipefail", "-c"] if step.language == "bash" else [sys.executable, "-c"]
        done = subprocess.run(
            [*shell, step.text], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=1800
        )
        assert done.returncode == 0, f"{named(path)}, line {step.line}\n{done.stdout}{done.stderr}"


# The site ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as ``make docs`` builds it: any warning is an error."""
    pytest.importorskip("mkdocs", reason="needs the extra docs")
    pytest.importorskip("mkdocstrings_handlers.python", reason="needs the extra docs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_every_document_is_on_the_site(site: Path) -> None:
    for path in DOCS.rglob("*.md"):
        assert (site / path.relative_to(DOCS)).with_suffix(".html").is_file()


@pytest.mark.slow
def test_the_reference_has_every_verb_with_its_options(site: Path) -> None:
    page = (site / "reference" / "cli.html").read_text(encoding="utf-8")
    for verb in ("label", "export", "prompts build", "calibrate decisions", "devices show"):
        asked = subprocess.run(
            [sys.executable, "-m", "edgeclip", *verb.split(), "--help"], capture_output=True, text=True, check=True
        )
        assert f">edgeclip {verb}<" in page
        for option in set(re.findall(r"│ \*?\s+(--[\w-]+)", asked.stdout)) - {"--help"}:
            assert option in page, f"{verb} {option}"


@pytest.mark.slow
def test_the_reference_has_every_public_name(site: Path) -> None:
    page = (site / "reference" / "python.html").read_text(encoding="utf-8")
    for name in set(edgeclip.__all__) - {"EdgeclipError", "__version__"}:
        assert re.search(rf'id="edgeclip(\.\w+)*\.{name}"', page), name
    assert 'id="edgeclip.errors.EdgeclipError"' in page


@pytest.mark.slow
def test_the_site_loads_nothing_from_the_network(site: Path) -> None:
    loads = re.compile(r"""<(?:script|img|iframe|source|video)\b[^>]*?\bsrc=["']?(?:https?:)?//[^"'\s>]+""")
    links = re.compile(r"""<link\b[^>]*?\bhref=["']?(?:https?:)?//[^"'\s>]+""")
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert not loads.findall(text) + links.findall(text), path
        assert 'class="mermaid"' not in text  # which the theme would fetch a library for
    for path in site.rglob("*.css"):
        assert not re.findall(r"""(?:url\(|@import )["']?(?:https?:)?//""", path.read_text(encoding="utf-8")), path


@pytest.mark.slow
def test_search_works_in_pages_opened_from_the_disk(site: Path, tmp_path: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs chromium")
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path}",
        "--virtual-time-budget=60000",
    ]
    address = (site / "index.html").as_uri() + "?q=gating"
    page = subprocess.run([chromium, *flags, "--dump-dom", address], capture_output=True, text=True, check=True).stdout
    assert re.search(r"\d+ matching documents", page)
    assert "decisions.html" in page[page.index("matching documents") :]
