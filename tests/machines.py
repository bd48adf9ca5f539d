"""Machines whose files are written down in tests/trees, made by us from documented formats: a name in, a folder out.

python -m tests.machines orin-nano-jp62 FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

TREES = Path(__file__).parent / "trees"
NAMES = tuple(sorted(path.stem for path in TREES.glob("*.txt")))


def files(name: str) -> dict[str, str]:
    r"""The files of a machine by path: what follows a line ``=== path``; ``\0`` stands for a NUL."""
    _about, *parts = (TREES / f"{name}.txt").read_text(encoding="utf-8").split("\n=== ")
    found = (part.partition("\n") for part in parts)
    return {path: text.replace("\\0", "\0") for path, _, text in found}


def make(name: str, root: Path, changed: dict[str, str | None] | None = None) -> Path:
    """Write a machine's files below ``root``; ``changed`` has other texts by path, None for a file to leave out."""
    for path, text in (files(name) | (changed or {})).items():
        if text is not None:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text, encoding="utf-8")
    return root


if __name__ == "__main__":
    make(sys.argv[1], Path(sys.argv[2]))
