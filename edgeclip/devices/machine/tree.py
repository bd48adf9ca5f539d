"""A root folder, or a tar recorded on another machine, in; the text of its small files out.

Everything that ``edgeclip doctor`` knows of a machine from files comes through a ``Tree``, which keeps what it
read: so a recording holds just these files, and nothing that doctor would not read there.
"""

from __future__ import annotations

import errno
import fnmatch
import io
import os
import re
import tarfile
from pathlib import Path, PurePosixPath

from edgeclip.errors import InputError
from edgeclip.files import atomic_file, home_folder
from edgeclip.tars import plain_files

_LARGEST = 1 << 20
_MOST_LINKS = 40  # on the way to one file, as Linux has it
# Lines that name this one machine and that nothing is read from: a Raspberry Pi's cpuinfo, NVIDIA's driver.
_PERSONAL = re.compile(r"^(Serial|GPU UUID|Bus Location)\b.*\n?", re.MULTILINE)
_HOME = re.compile(r"/(?:home|Users)/[^/\s:'\"]+|/root(?![\w.-])")


class Tree:
    """The files below a folder, by their paths without the leading slash.

    Links lead where they lead on the machine whose files these are: ``/etc/nvpmodel.conf``, a link to
    ``/etc/nvpmodel/nvpmodel_t194.conf``, is read below the folder, never on the machine that reads.

    Args:
        root: ``/`` for this machine, or a folder with a copy of another's files.

    Attributes:
        live: whether it is this machine.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root
        self.live = root.resolve() == Path("/")
        self._seen: dict[str, bytes] = {}

    def text(self, path: str) -> str | None:
        """A file's text without the blanks and NULs around it; None where it is absent or cannot be read."""
        data = self._bytes(path)
        if data is None:
            return None
        self._seen[path] = data
        return data.decode("utf-8", "replace").strip(" \t\r\n\0")

    def number(self, path: str) -> int | None:
        """A file that holds one whole number; None where it is absent or holds something else."""
        try:
            return int(self.text(path) or "")
        except ValueError:
            return None

    def strings(self, path: str) -> tuple[str, ...]:
        """The strings of a device tree's list, each ended by a NUL."""
        return tuple(part for part in (self.text(path) or "").split("\0") if part)

    def exists(self, path: str) -> bool:
        """Whether there is a file, folder or device of that path."""
        found = self._exists(path)
        if found:
            self._seen.setdefault(path, b"")
        return found

    def glob(self, pattern: str) -> list[str]:
        """The paths that match a pattern of the same depth, ``video2`` before ``video10``."""
        return sorted(self._glob(pattern), key=_by_number)

    def save(self, path: Path, extra: dict[str, bytes]) -> list[str]:
        """Write what was read so far, and ``extra`` files, as a tar; what names this one machine is left out.

        Returns:
            The paths in it.

        Raises:
            InputError: it cannot be written.
        """
        # What only has to be there is an empty file, unless it is a folder of which more was read.
        folders = {str(parent) for name in self._seen for parent in PurePosixPath(name).parents}
        files = {name: _without_personal(data) for name, data in self._seen.items() if name not in folders} | extra
        try:
            with atomic_file(path) as temporary, tarfile.open(temporary, "w") as tar:
                for name in sorted(files):
                    entry = tarfile.TarInfo(name)
                    entry.size = len(files[name])
                    tar.addfile(entry, io.BytesIO(files[name]))
        except OSError as error:
            raise InputError(f"cannot write {path} ({error.strerror}): choose another place") from error
        return sorted(files)

    def _bytes(self, path: str) -> bytes | None:
        try:
            with self._place(path).open("rb") as stream:
                return stream.read(_LARGEST)
        except OSError:  # absent, forbidden, or a sensor that is switched off
            return None

    def _exists(self, path: str) -> bool:
        try:
            return self._place(path).exists()
        except OSError:
            return False

    def _glob(self, pattern: str) -> list[str]:
        found = [""]
        for part in PurePosixPath(pattern).parts:
            found = [
                (PurePosixPath(folder) / name).as_posix() for folder in found for name in self._names(folder, part)
            ]
        return found

    def _names(self, folder: str, pattern: str) -> list[str]:
        """The names in a folder that match one part of a pattern."""
        if not set(pattern) & set("*?["):
            return [pattern] if self._exists(f"{folder}/{pattern}".lstrip("/")) else []
        try:
            return fnmatch.filter((path.name for path in self._place(folder).iterdir()), pattern)
        except OSError:
            return []

    def _place(self, path: str) -> Path:
        """Where a path lies here.

        Raises:
            OSError: links lead in a circle.
        """
        if self.live:
            return self.root / path
        inside: list[str] = []
        ahead = [*reversed(PurePosixPath(path).parts)]
        links = 0
        while ahead:
            name = ahead.pop()
            if name == "..":  # above the root is the root
                del inside[-1:]
                continue
            try:
                target = str(self.root.joinpath(*inside, name).readlink())
            except OSError:  # no link, or nothing there
                inside.append(name)
                continue
            links += 1
            if links > _MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            if target.startswith("/"):
                inside.clear()
            ahead += reversed(PurePosixPath(target.lstrip("/")).parts)
        return self.root.joinpath(*inside)


class RecordedTree(Tree):
    """The files of a tar that ``Tree.save`` wrote, held in memory: nothing is unpacked.

    Raises:
        InputError: it is no tar, or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.root = path
        self.live = False
        self._seen = {}
        self._files: dict[str, bytes] = {}
        try:
            for name, read in plain_files(path, mode="r:*", strict=False, most="recording_bytes", error=InputError):
                self._files[str(PurePosixPath(name))] = read(_LARGEST)
        except InputError as error:
            raise InputError(f"expected a tar written by edgeclip doctor --record ({error})") from error

    def _bytes(self, path: str) -> bytes | None:
        return self._files.get(path)

    def _exists(self, path: str) -> bool:
        return path in self._files or any(name.startswith(f"{path}/") for name in self._files)

    def _glob(self, pattern: str) -> list[str]:
        depth = len(PurePosixPath(pattern).parts)
        # Folders are not recorded: the paths of the files, cut to the depth of the pattern, stand for them.
        cut = {PurePosixPath(*PurePosixPath(name).parts[:depth]) for name in self._files}
        return [str(name) for name in cut if len(name.parts) == depth and name.match(pattern)]


def open_tree(root: Path) -> Tree:
    """A folder's tree, or a recorded tar's.

    Raises:
        InputError: it is neither.
    """
    if root.is_file():
        return RecordedTree(root)
    if not root.is_dir():
        raise InputError(f"expected a folder with a machine's files, or a tar of edgeclip doctor --record, got {root}")
    return Tree(root)


def field(text: str | None, key: str) -> str | None:
    """The value of the first line ``key: value``, as in /proc/cpuinfo and /proc/meminfo; None where there is none."""
    for line in (text or "").splitlines():
        name, separator, value = line.partition(":")
        if separator and name.strip() == key:
            return value.strip()
    return None


def without_home(text: str) -> str:
    """A text in which ``~`` stands for home folders, whose names are those of users."""
    home = str(home_folder() or "")
    return _HOME.sub("~", text.replace(home, "~") if len(home) > 1 else text)


def _by_number(path: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path)]


def _without_personal(data: bytes) -> bytes:
    text = _PERSONAL.sub("", data.decode("utf-8", "surrogateescape"))
    return without_home(text).encode("utf-8", "surrogateescape")
