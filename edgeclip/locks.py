"""The path of a lock file in; the lock held, by one thread of one process at a time, out."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgeclip.errors import BundleError

_PATIENCE_S = 300.0
_BETWEEN_S = 0.02


@contextmanager
def locked(path: Path) -> Iterator[int]:
    """Hold the lock of a file, which is made for it; yields its descriptor, and removes the file if it is empty then.

    The kernel lets go of it when the process ends, however it ends: then the file stays, with what was written to it.

    Raises:
        BundleError: somebody else holds it for minutes, or the file system has no locks.
        OSError: the file cannot be made.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            _wait(descriptor, path, deadline)
            if not _is_at(descriptor, path):
                continue  # whoever held it has removed the file, or its folder was replaced
            try:
                yield descriptor
            finally:  # before it is let go of: who waits for it then finds another file there, or none
                if not os.fstat(descriptor).st_size:
                    path.unlink(missing_ok=True)
            return
        finally:
            os.close(descriptor)


def _wait(descriptor: int, path: Path, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise BundleError(
                    f"another process has held {path} for {_PATIENCE_S:g} s: wait for it, or end it"
                ) from error
            time.sleep(_BETWEEN_S)
        except OSError as error:
            raise BundleError(f"cannot lock {path} ({error.strerror}): copy the folder to a local disk") from error
        else:
            return


def _is_at(descriptor: int, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    return False
