"""A pattern with braces or wildcards in, the files, commands or addresses that it stands for out."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from edgeclip.errors import SourceError, TrainingError
from edgeclip.runtime.sources.address import without_password
from edgeclip.training.data.streams import PIPE, is_local


def expand(pattern: str) -> list[str]:
    """What a pattern stands for: braces first, then the files that match, sorted; commands and addresses as they are.

    Raises:
        TrainingError: no file matches.
        SourceError: a ``pipe:`` without a command.
    """
    if pattern.startswith(PIPE) and not pattern.removeprefix(PIPE).strip():
        raise SourceError("expected a command behind pipe:, got none: for example pipe:cat train.tar")
    found: list[str] = []
    for text in expand_braces(pattern):
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
    short = [
        Path(shard).name if is_local(shard) else shard if shard.startswith(PIPE) else _bare(shard) for shard in shards
    ]
    return short if len(set(short)) == len(short) else [without_password(shard) for shard in shards]


def _bare(url: str) -> str:
    return urlsplit(without_password(url))._replace(query="", fragment="").geturl()


def expand_braces(text: str) -> list[str]:
    """``a-{000..002}.tar`` and ``{a,b}.tar`` as the shell expands them; other braces stay as they are.

    In a ``pipe:`` only ranges are, as commands have a use of their own for braces with commas.
    """
    listed = r"(?!)" if text.startswith(PIPE) else r"[^{}]*,[^{}]*"
    match = re.search(rf"\{{(?:(\d+)\.\.(\d+)|({listed}))\}}", text)
    if not match:
        return [text]
    if match[3] is not None:
        items = match[3].split(",")
    else:
        first, last, width = int(match[1]), int(match[2]), len(match[1]) if match[1].startswith("0") else 1
        step = 1 if first <= last else -1
        items = [f"{n:0{width}}" for n in range(first, last + step, step)]
    return [found for item in items for found in expand_braces(text[: match.start()] + item + text[match.end() :])]
