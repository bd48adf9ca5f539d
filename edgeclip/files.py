"""Files that are either whole or absent: write under a temporary name, then rename."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from edgeclip.documents import encode_json
from edgeclip.errors import InputError

_SETTLED_NS = 2_000_000_000
_T = TypeVar("_T")


def cache_dir(*parts: str) -> Path:
    """Folder for what can be made again, made if it is not there: under ``cache_place``."""
    folder = cache_place().joinpath(*parts)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def cache_place() -> Path:
    """Where the cache is, or would be: ``$EDGECLIP_CACHE`` or ``~/.cache/edgeclip``."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeclip"
    return Path(os.environ.get("EDGECLIP_CACHE") or default)


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes, read once as long as the file stays as it is.

    What tells a change is what ``stat`` says, the time of the inode's last change above all, which no program can set.
    That clock ticks in milliseconds, so a file that changed just now is read again each time.
    """
    found = path.stat()
    if time.time_ns() - found.st_ctime_ns < _SETTLED_NS:
        return _sha256(path)
    return _known_sha256(path, (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns))


@lru_cache(maxsize=64)
def _known_sha256(path: Path, _stamp: tuple[int, ...]) -> str:
    return _sha256(path)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """Hex sha256 of a value's canonical JSON: the name under which what it decides is kept."""
    return hashlib.sha256(encode_json(value, order="deterministic")).hexdigest()


def external_data(graph: Path) -> Path:
    """Where the weights of an ONNX graph lie that are too large for its own file."""
    return graph.with_name(f"{graph.name}.data")


def _temporary_beside(path: Path) -> Path:
    # The suffix stays last: encoders and savers choose their format by it.
    return path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}.part{path.suffix}")


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it over ``path`` on success, delete it on any failure.

    Raises:
        InputError: the folder cannot be made, or ``path`` is a folder.
    """
    if path.is_dir():
        raise InputError(f"expected a file name to write to, got the folder {path}: add a file name")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {path.parent} ({error.strerror}): choose another place") from error
    temporary = _temporary_beside(path)
    try:
        yield temporary
        temporary.chmod(0o644)  # some writers make files that only their owner can read
        _rename(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path, *, overwrite: bool = False, holds: Sequence[str] = ()) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; rename it to ``path`` on success, delete it on any failure.

    Args:
        overwrite: replace a folder that is there, with all that is in it.
        holds: names of which it must hold one for that, unless it is empty: what is not ours is not thrown away.

    Raises:
        InputError: ``path`` exists and ``overwrite`` is false, is something else, or cannot be written.
    """
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists already: choose another name or pass `overwrite`")
    if path.exists():
        _check_ours(path, holds)
    temporary = _temporary_beside(path)
    retired = _temporary_beside(path)
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"cannot make {path} ({error.strerror}): choose another place") from error
    try:
        yield temporary
        if path.exists():
            _rename(path, retired)
        _rename(temporary, path)
    finally:
        if retired.exists() and not path.exists():
            _rename(retired, path)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(retired, ignore_errors=True)


def _check_ours(path: Path, holds: Sequence[str]) -> None:
    if not path.is_dir():
        raise InputError(f"expected a folder to replace, got the file {path}: choose another name")
    if holds and any(path.iterdir()) and not any((path / name).exists() for name in holds):
        raise InputError(
            f"expected a folder with {' or '.join(holds)} to replace, got {path}, which holds other things: choose "
            "another name, or move them away"
        )


def _rename(source: Path, target: Path) -> None:
    try:
        source.replace(target)
    except OSError as error:
        raise InputError(f"cannot write {target} ({error.strerror}): choose another place") from error


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a value (msgspec struct, dataclass or plain) as indented JSON atomically."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(msgspec.json.format(encode_json(value), indent=2) + b"\n")


def read_json(path: Path, kind: type[_T]) -> _T | None:
    """What ``write_json`` wrote of that type; None if there is none, or another version's, or it is damaged."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
