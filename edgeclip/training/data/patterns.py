"""A pattern with braces or wildcards in, the files, commands or addresses that it stands for out."""

from __future__ import annotations

import glob
import itertools
import re
from collections.abc import Sequence
from pathlib import Path

from edgeclip.errors import SourceError, TrainingError
from edgeclip.extras import require
from edgeclip.runtime.sources.address import without_password
from edgeclip.training.data.streams import PIPE, is_local

_RANGE = r"(\{\d+\.\.\d+\})"


def expand(pattern: str) -> list[str]:
    """What a pattern stands for: braces first, then the files that match, sorted; commands and addresses as they are.

    Raises:
        TrainingError: no file matches.
        SourceError: a ``pipe:`` without a command.
    """
    if pattern.startswith(PIPE) and not pattern.removeprefix(PIPE).strip():
        raise SourceError("expected a command behind pipe:, got none: for example pipe:cat train.tar")
    found: list[str] = []
    for text in [pattern] if is_local(pattern) and Path(pattern).is_file() else expand_braces(pattern):
        if not is_local(text) or Path(text).is_file():
            found.append(text)
        elif matches := sorted(glob.glob(text)):  # noqa: PTH207 - the pattern may be absolute
            found += matches
        else:
            raise TrainingError(f"expected files at {text}, got none: check the path and the working directory")
    return found


def short_names(shards: Sequence[str]) -> list[str]:
    """What messages and keys call files, commands and addresses: no folders, accounts or queries (which hold signatures
    that change), unless that would give two the same name.
    """
    short = [Path(shard).name if is_local(shard) else _bare(shard) for shard in shards]
    if len(set(short)) < len(short):
        short = [without_password(shard) for shard in shards]
    different = list(dict.fromkeys(shards))
    if len(set(short)) == len(different):
        return short
    # They differ in a secret only.
    return [f"{name} #{different.index(shard)}" for name, shard in zip(short, shards, strict=True)]


def _bare(shard: str) -> str:
    shown = without_password(shard)
    return shown if shard.startswith(PIPE) else re.split("[?#]", shown)[0]


def expand_braces(text: str) -> list[str]:
    """``a-{000..002}.tar`` and ``{a,b}.tar`` as the shell expands them; other braces stay as they are.

    In a ``pipe:`` only ranges are, as commands have a use of their own for braces with commas.
    """
    if "{" not in text:
        return [text]
    braces = require("braceexpand", purpose="read names with {000..123}")
    if text.startswith(PIPE):
        parts = [
            list(braces.braceexpand(part)) if re.fullmatch(_RANGE, part) else [part] for part in re.split(_RANGE, text)
        ]
        return ["".join(chosen) for chosen in itertools.product(*parts)]
    try:
        return list(braces.braceexpand(text, escape=False))
    except braces.UnbalancedBracesError:
        return [text]
