"""Files that are either whole or absent: write under a temporary name, then rename."""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import re
import shutil
import stat
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, TypeVar

import msgspec

from edgeclip.documents import decode_json, encode_json, read_json
from edgeclip.errors import EdgeclipError, InputError
from edgeclip.outputs import Output, check_folder_writable, find_output, is_mounted, is_shared

_log = logging.getLogger("edgeclip")

_SETTLED_NS = 2_000_000_000
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
_IN_PLACE = frozenset({errno.EBUSY, errno.EXDEV, errno.EPERM, errno.EACCES})
_PART = re.compile(r"\..+\.[0-9a-f]{8}\.part", re.DOTALL)
_OLD = ".old"
_NAME_BYTES = 100  # of a name that may have 255
_SWEPT: set[Path] = set()
_SPARE: list[Path] = []
_SPARE_LOCK = threading.Lock()
_T = TypeVar("_T")


def cache_dir(*parts: str) -> Path:
    """Folder for what can be made again, made if it is not there: under ``cache_place``.

    Where that cannot be written, a folder of this process stands in for it, and that is said once; what the cache holds
    can be read there all the same.

    Raises:
        InputError: there is no place for temporary files either.
    """
    try:
        folder = cache_place().joinpath(*parts)
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise InputError("it may not be written to")
    except (OSError, InputError) as error:
        return _stand_in(getattr(error, "strerror", None) or str(error), parts)
    sweep(folder)
    return folder


def cache_place() -> Path:
    """Where the cache is, or would be: ``$EDGECLIP_CACHE`` or ``~/.cache/edgeclip``.

    Raises:
        InputError: nothing names a place.
    """
    if own := os.environ.get("EDGECLIP_CACHE"):
        try:  # a service's settings and .env files reach us with the ~ that a shell would have replaced
            return Path(own).expanduser().absolute() if own.startswith("~") else Path(own).absolute()
        except RuntimeError as error:
            raise InputError(f"EDGECLIP_CACHE is {own}, and that user has no home folder") from error
    shared = Path(os.environ.get("XDG_CACHE_HOME") or "")
    if shared.is_absolute():  # its specification has others ignored
        return shared / "edgeclip"
    if (home := home_folder()) is None:
        raise InputError("this user has no home folder")
    return home / ".cache" / "edgeclip"


def home_folder() -> Path | None:
    """This user's home; None for a user that has none, as in a container with a number in place of a name."""
    try:
        home = Path.home()
    except RuntimeError:
        return None
    return home if home.is_absolute() else None


def _stand_in(reason: str, parts: tuple[str, ...]) -> Path:
    """A folder of the spare cache, in which links lead to what the real one holds."""
    with _SPARE_LOCK:
        if not _SPARE:
            _SPARE.append(_spare_cache(reason))
        folder = _SPARE[0]
        for number, part in enumerate(parts, start=1):
            folder = folder / part
            if folder.exists():
                continue
            folder.mkdir()
            with contextlib.suppress(OSError, InputError):
                for entry in cache_place().joinpath(*parts[:number]).iterdir():
                    (folder / entry.name).symlink_to(entry)
        return folder


def _spare_cache(reason: str) -> Path:
    """A folder that lives as long as this process."""
    held = contextlib.ExitStack()
    try:
        spare = held.enter_context(workshop())
    except (OSError, InputError) as error:
        raise InputError(
            f"the cache cannot be written ({reason}), nor can the folder for temporary files: set EDGECLIP_CACHE to a "
            "folder that can be"
        ) from error
    atexit.register(held.close)
    _log.warning(
        "the cache cannot be written (%s): going on without one, what it would keep is made anew each time; set "
        "EDGECLIP_CACHE to a folder that can be",
        reason,
    )
    return spare


def keep_file(path: Path, save: Callable[[Path], object]) -> None:
    """``atomic_file`` for what the cache keeps to save time: what cannot be written is not kept, and that is said.

    Args:
        save: writes to the path that it is given.
    """
    try:
        with atomic_file(path) as temporary:
            save(temporary)
    except InputError as error:
        _log.warning("not kept in the cache: %s", error)


class _Kept(msgspec.Struct):
    sha256: str  # of the value as it stands there
    value: msgspec.Raw


def keep_json(path: Path, value: Any) -> None:
    """A value and its digest as JSON by ``keep_file``, for ``kept_json``."""
    content = encode_json(value)
    kept = _Kept(hashlib.sha256(content).hexdigest(), msgspec.Raw(content))
    keep_file(path, lambda temporary: temporary.write_bytes(msgspec.json.encode(kept) + b"\n"))


def kept_json(path: Path, kind: type[_T]) -> _T | None:
    """What ``keep_json`` kept of that type; None if there is none, or another version's, or it was altered."""
    try:
        kept = read_json(path, _Kept)
        if hashlib.sha256(kept.value).hexdigest() != kept.sha256:
            return None
        return decode_json(bytes(kept.value), kind, where=str(path))
    except InputError:
        return None


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


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path of the same name; on success it takes the place of ``path``, on any failure it goes.

    A link stays and what it leads to is written; devices and pipes get the finished bytes; a file that is mounted by
    itself, or whose folder is closed to us, is written in place. The mode and owner of a file that is there stay.

    Raises:
        InputError: ``path`` cannot be written, which is found before anything is yielded, or there is no room.
    """
    output = find_output(path)
    beside = output.way == "rename"
    if beside:
        _make_folder(output.target.parent, path)
    elif output.way == "in place":
        sweep(output.target.parent)
    with _finishes(path), workshop(output.target.parent if beside else None, path.stem) as folder:
        temporary = folder / path.name
        yield temporary
        _put(temporary, output)


def _put(temporary: Path, output: Output) -> None:
    """Bring a finished file to where it belongs."""
    if output.way == "stream":
        with temporary.open("rb") as finished, output.open_stream() as stream:
            shutil.copyfileobj(finished, _Whole(stream))
        return
    target = output.target
    if output.way == "rename":
        temporary.chmod(0o644)  # some writers make files that only their owner can read
        with contextlib.suppress(OSError):  # nothing there, or not ours to give away
            there = target.stat()
            temporary.chmod(stat.S_IMODE(there.st_mode))
            os.chown(temporary, there.st_uid, there.st_gid)
        try:
            temporary.replace(target)
            return
        except OSError as error:
            if error.errno not in _IN_PLACE or not target.is_file():
                raise InputError(f"cannot write {output.path} ({error.strerror}): choose another place") from error
    with temporary.open("rb") as finished, target.open("r+b") as out:
        shutil.copyfileobj(finished, out)
        out.truncate()


class _Whole:
    """An unbuffered stream whose writes may take a part only; ``write`` here takes all."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def write(self, data: bytes) -> int:
        rest = memoryview(data)
        while rest:
            rest = rest[self._stream.write(rest) :]
        return len(data)


@contextlib.contextmanager
def atomic_folder(path: Path, *, overwrite: bool = False, holds: Sequence[str] = ()) -> Iterator[Path]:
    """Yield a temporary folder; on success it takes the place of ``path``, on any failure it goes.

    A link stays and the folder it leads to is replaced; of a folder that is mounted by itself the contents are.

    Args:
        overwrite: replace a folder that is there, with all that is in it.
        holds: names of which it must hold one for that, unless it is empty: what is not ours is not thrown away.

    Raises:
        InputError: ``path`` exists and ``overwrite`` is false, is something else, or cannot be written, or there is no
            room.
    """
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists already: choose another name or pass `overwrite`")
    if path.exists():
        _check_ours(path, holds)
    target = Path(os.path.realpath(path))
    within = is_mounted(target)
    check_folder_writable(target if within else target.parent)
    if not within:
        _make_folder(target.parent, path)
    with _finishes(path), workshop(target if within else target.parent, path.stem) as work:
        temporary = work / target.name
        temporary.mkdir()
        yield temporary
        _swap(temporary, target, work / _OLD, within=within)


def _swap(new: Path, target: Path, old: Path, *, within: bool) -> None:
    """Put a finished folder where another may be; what fails half-way brings the other back."""
    old.mkdir()
    try:
        if not within:
            if target.exists():
                target.rename(old / target.name)
            new.rename(target)
            return
        for entry in _contents(target):
            entry.rename(old / entry.name)
        for entry in _contents(new):
            entry.rename(target / entry.name)
    except OSError as error:
        if within:
            for entry in _contents(target):
                entry.rename(new / entry.name)
        _bring_back(old.parent)
        raise InputError(f"cannot write {target} ({error.strerror}): choose another place") from error


def _contents(folder: Path) -> list[Path]:
    """What is in a folder, but for what somebody works in."""
    return [entry for entry in folder.iterdir() if not _PART.fullmatch(entry.name)]


@contextlib.contextmanager
def workshop(beside: Path | None = None, name: str = "edgeclip") -> Iterator[Path]:
    """Yield a new hidden folder to work in; it is deleted at the end, or by a later run if this process is killed.

    It is locked as long as it is in use, and a lock goes with the process that holds it: one that can be taken is of a
    dead one. Where other machines write too, a lock proves nothing, and nothing is swept.

    Args:
        beside: where to make it; by default where the system keeps temporary files.
        name: what it is for, in its name.

    Raises:
        InputError: it cannot be made.
    """
    parent = Path(tempfile.gettempdir()) if beside is None else beside
    sweep(parent)
    short = name.encode("utf-8", "surrogateescape")[:_NAME_BYTES].decode("utf-8", "ignore") or "edgeclip"
    descriptor = -1
    try:
        while descriptor < 0:
            folder = parent / f".{short.lstrip('.') or 'edgeclip'}.{uuid.uuid4().hex[:8]}.part"
            folder.mkdir(mode=0o777 if beside else 0o700)
            descriptor = _locked(folder, wait=True)
    except OSError as error:
        raise InputError(f"cannot make a folder in {parent} ({error.strerror}): choose another place") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _locked(folder: Path, *, wait: bool) -> int:
    """A descriptor of a folder that holds its lock; -1 where another process has it, or took the folder away."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return -1
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        if os.path.samestat(os.fstat(descriptor), folder.stat()):
            return descriptor
    except FileNotFoundError:
        pass
    except OSError:
        if wait:  # a file system without locks: nobody can take this one for a dead one's
            return descriptor
    os.close(descriptor)
    return -1


def sweep(folder: Path) -> None:
    """Delete what killed processes left in a folder; looked for once a process and folder."""
    if folder in _SWEPT:
        return
    _SWEPT.add(folder)
    with contextlib.suppress(OSError):  # not there yet, or not to be looked into
        left = [entry for entry in folder.iterdir() if _PART.fullmatch(entry.name)]
        if not left or is_shared(folder):
            return
        for part in left:
            with contextlib.suppress(OSError):  # a file of that name, or another user's
                descriptor = _locked(part, wait=False)
                if descriptor >= 0:
                    _bring_back(part)
                    shutil.rmtree(part, ignore_errors=True)
                    os.close(descriptor)


def _bring_back(work: Path) -> None:
    """What was about to be replaced goes back where it was, unless something is there by now."""
    old = work / _OLD
    for entry in list(old.iterdir()) if old.is_dir() else []:
        if not (work.parent / entry.name).exists():
            entry.rename(work.parent / entry.name)


@contextlib.contextmanager
def _finishes(path: Path) -> Iterator[None]:
    """A full disk, or a size limit, becomes one sentence; whatever library met it."""
    try:
        yield
    except EdgeclipError:
        raise
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) and error.errno in _NO_ROOM else _told(error)
        if reason is None:
            raise
        raise InputError(f"cannot write {path} ({reason}): make room or choose another place") from error


def _told(error: Exception) -> str | None:
    """Why there is no room, where a library written in another language says so in its message."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    number = int(found[1]) if found else -1
    return os.strerror(number) if number in _NO_ROOM else None


def _make_folder(folder: Path, path: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot make the folder {folder} for {path} ({error.strerror}): choose another place"
        ) from error


@contextlib.contextmanager
def atomic_files(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder; on success every file in it takes its place in ``folder``, on any failure none does.

    Raises:
        InputError: ``folder`` cannot be made or written to, or there is no room.
    """
    check_folder_writable(folder)
    target = Path(os.path.realpath(folder))
    made = not target.exists()
    _make_folder(target, folder)
    try:
        with _finishes(folder), workshop(target) as work:
            yield work
            for entry in list(work.iterdir()):
                _put(entry, find_output(target / entry.name))
    finally:
        if made:
            with contextlib.suppress(OSError):  # it holds something, as it does but for a failure
                target.rmdir()


def _check_ours(path: Path, holds: Sequence[str]) -> None:
    if not path.is_dir():
        raise InputError(f"expected a folder to replace, got the file {path}: choose another name")
    if holds and any(path.iterdir()) and not any((path / name).exists() for name in holds):
        raise InputError(
            f"expected a folder with {' or '.join(holds)} to replace, got {path}, which holds other things: choose "
            "another name, or move them away"
        )


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a value (msgspec struct, dataclass or plain) as indented JSON atomically."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(msgspec.json.format(encode_json(value), indent=2) + b"\n")
