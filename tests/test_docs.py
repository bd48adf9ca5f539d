"""What the documents show works: links resolve, the commands of the README's pipeline run."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), f"{path.name} links to {target}"


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
        words = shlex.split(line)
        assert words[0] == "edgeclip"
        done = subprocess.run(
            [sys.executable, "-m", *words], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=900
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    assert (tmp_path / "labels.jsonl").is_file()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_python_examples_run(path: Path, tmp_path: Path, video: Path) -> None:
    shutil.copy(video, tmp_path / "video.mp4")
    for block in re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL):
        done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_the_files_that_documents_name_exist() -> None:
    for path in DOCUMENTS:
        for name in re.findall(r"`((?:benchmarks|recipes|tests|edgeclip|docs)/[\w./-]+\.\w+)`", path.read_text()):
            assert (ROOT / name).exists(), f"{path.name} names {name}"


def test_every_benchmark_says_how_to_run_it() -> None:
    for path in sorted((ROOT / "benchmarks").glob("*.py")):
        assert f"python benchmarks/{path.name}" in path.read_text(encoding="utf-8")
