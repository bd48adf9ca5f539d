"""A path that shall be written in; how, or a refusal before any work is done, out.

A path may be a link, a device, a pipe, one of this process's own descriptors, or a file that is mounted by itself. None
of these may be renamed over: the link would be lost, the device replaced, and the mount refuses it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from edgeclip.errors import InputError

_log = logging.getLogger("edgeclip")

_LOOK_S = 0.1
_LINKS = 40  # as many as Linux follows
# Kinds of file systems on which a lock is no proof that nobody writes: another machine may not see it.
_SHARED = re.compile("9p|afs|ceph|cifs|fuse.*|gfs2|glusterfs|lustre|nfs4?|ocfs2|prl_fs|smb3|smbfs|vboxsf|virtiofs")


@dataclass(frozen=True)
class Output:
    """How a path is written.

    Attributes:
        path: as it was given.
        target: the file itself, where links led.
        way: ``rename`` a finished file over it, write it ``in place`` (it is mounted by itself, or its folder is closed
            to us), or as a ``stream`` (a device, a pipe, an open descriptor).
        descriptor: of this process, which ``/dev/stdout`` and the like stand for.
    """

    path: Path
    target: Path
    way: Literal["rename", "in place", "stream"]
    descriptor: int | None = None

    def open_stream(self) -> IO[bytes]:
        """The stream, unbuffered; a named pipe that nobody reads yet is waited for, and that is said.

        Raises:
            OSError: it cannot be opened.
        """
        if self.descriptor is not None:
            # Not opened anew: a file would be written from its start again, and a socket cannot be opened.
            return os.fdopen(os.dup(self.descriptor), "wb", buffering=0)
        said = False
        while True:
            try:
                descriptor = os.open(self.target, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
                break
            except OSError as error:
                if error.errno != errno.ENXIO or not self.target.is_fifo():
                    raise
            if not said:
                said = True
                _log.warning("waiting for somebody to read the pipe %s", self.path)
            time.sleep(_LOOK_S)
        os.set_blocking(descriptor, True)
        return os.fdopen(descriptor, "wb", buffering=0)

    @property
    def is_stdout(self) -> bool:
        """Whether it is what standard output goes to."""
        with contextlib.suppress(OSError):
            mine = os.fstat(1)
            return self.descriptor == 1 or (self.way == "stream" and os.path.samestat(mine, self.target.stat()))
        return False


def find_output(path: Path) -> Output:
    """How to write a file; nothing is made.

    Raises:
        InputError: it cannot be written there.
    """
    try:
        descriptor = _descriptor(path)
        if descriptor is not None:
            if (fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE) == os.O_RDONLY:
                raise _refusal(path, "it is open for reading only")
            return Output(path, path, "stream", descriptor)
        found = path.stat() if path.exists() else None
        target = Path(os.path.realpath(path))  # where a link leads that leads nowhere, that is made
        if path.is_symlink() and found is None and target.is_symlink():
            raise _refusal(path, "its link leads to itself")
        if found is None:
            folder = _nearest_folder(path, target)
            if not os.access(folder, os.W_OK | os.X_OK):
                raise _refusal(path, f"{folder} may not be written to")
            return Output(path, target, "rename")
        if stat.S_ISDIR(found.st_mode):
            raise InputError(f"expected a file name to write to, got the folder {path}: add a file name")
        if stat.S_ISSOCK(found.st_mode) or stat.S_ISBLK(found.st_mode):
            raise _refusal(path, f"it is a {'socket' if stat.S_ISSOCK(found.st_mode) else 'whole disk'}")
        stream = not stat.S_ISREG(found.st_mode)
        alone = not os.access(target.parent, os.W_OK | os.X_OK) or _is_mounted(target)
        if (stream or alone) and not os.access(path, os.W_OK):
            raise _refusal(path, "it may not be written to")
        return Output(path, target, "stream" if stream else "in place" if alone else "rename")
    except (OSError, ValueError) as error:  # a name that is too long, a folder that may not be looked into; a NUL
        raise _refusal(path, getattr(error, "strerror", None) or str(error)) from error


def check_writable(path: Path) -> None:
    """Refuse a file that could not be written, without making anything. Raises as ``find_output``."""
    find_output(path)


def check_folder_writable(path: Path) -> None:
    """Refuse a folder that could not be made or written to, without making anything.

    Raises:
        InputError: it could not.
    """
    try:
        folder = _nearest_folder(path, Path(os.path.realpath(path / "x")))
    except (OSError, ValueError) as error:
        raise _refusal(path, getattr(error, "strerror", None) or str(error)) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise _refusal(path, f"{folder} may not be written to")


def is_mounted(path: Path) -> bool:
    """Whether a file or folder is mounted by itself, so that nothing can be renamed over it."""
    return _is_mounted(Path(os.path.realpath(path)))


def is_shared(folder: Path) -> bool:
    """Whether other machines may write to a folder too, or nobody knows."""
    real = os.path.realpath(folder)
    inside = [(len(point), kind) for point, kind in _mounts() if _is_below(real, point)]
    if not inside:
        return True
    deepest = max(length for length, _ in inside)
    kind = [kind for length, kind in inside if length == deepest][-1]  # a later mount hides an earlier one
    return _SHARED.fullmatch(kind) is not None


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _nearest_folder(path: Path, target: Path) -> Path:
    folder = target.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise _refusal(path, f"{folder} is not a folder")
    return folder


def _descriptor(path: Path) -> int | None:
    """The number of the descriptor that ``/dev/stdout``, ``/dev/fd/3`` or a link to such stand for."""
    for _ in range(_LINKS):
        folder = os.path.realpath(path.parent)
        if re.fullmatch(rf"/proc/{os.getpid()}(/task/\d+)?/fd", folder) and path.name.isdigit():
            return int(path.name)
        if not path.is_symlink():
            return None
        path = Path(folder, path.readlink())
    return None


def _is_mounted(target: Path) -> bool:
    return any(point == str(target) for point, _ in _mounts())


def _mounts() -> list[tuple[str, str]]:
    """Each mount's place and kind of file system, in order; none where the system does not say.

    ``st_dev`` does not tell a file that is mounted from the same file system. Source: proc_pid_mountinfo(5).
    """
    try:
        lines = Path("/proc/self/mountinfo").read_bytes().decode(errors="surrogateescape").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        before, _, after = line.partition(" - ")
        place = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), before.split(" ")[4])
        found.append((place, after.partition(" ")[0]))
    return found


def _refusal(path: Path, reason: str) -> InputError:
    return InputError(f"cannot write {path} ({reason}): choose another place")
