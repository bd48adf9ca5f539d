"""A ``.safetensors`` file in, arrays of the asked-for type and shape and typed metadata out.

What the file says of itself is held against the bounds, and against what is expected, before memory is taken for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from edgeclip.documents import decode_json
from edgeclip.errors import EdgeclipError
from edgeclip.limits import check_limit

_T = TypeVar("_T")

_TYPES = {"F32": np.float32, "F64": np.float64, "I64": np.int64, "U8": np.uint8}
_MOST_STRINGS = 20_000  # some three a tensor, two an entry of metadata
_MOST_STRUCTURE = 1 << 20  # bytes of a header outside of its strings: brackets, shapes, offsets


class Tensors:
    """An opened file; of ``open_tensors``.

    Attributes:
        metadata: its texts by name.
        names: of its tensors.
    """

    def __init__(self, stored: Any, path: Path, error: type[EdgeclipError]) -> None:
        self._stored = stored
        self._path = path
        self._error = error
        self.metadata: dict[str, str] = stored.metadata() or {}
        self.names = frozenset(stored.keys())

    def array(
        self, name: str, kind: str, shape: Sequence[int | None], *, widest: int | None = None
    ) -> npt.NDArray[Any]:
        """A tensor.

        Args:
            kind: its type, as the format calls it: ``F32``, ``F64``, ``I64``, ``U8``.
            shape: as it is expected; None for any length.
            widest: the most that its last length may be.

        Raises:
            EdgeclipError: of the file's type: there is none, it is of another type or shape, or holds numbers that are
                not finite.
        """
        if name not in self.names:
            raise self._error(f"expected a tensor {name} in {self._path}, got none of that name")
        about = self._stored.get_slice(name)
        found_kind, found = about.get_dtype(), tuple(about.get_shape())
        fits = len(found) == len(shape) and all(b in (None, a) for a, b in zip(found, shape, strict=True))
        if fits and widest is not None and found[-1] > widest:
            raise self._error(f"expected {name} of a width up to {widest:,} in {self._path}, got {found[-1]:,}")
        if found_kind != kind or not fits:
            expected = ", ".join("any" if length is None else str(length) for length in shape)
            raise self._error(
                f"expected {name} of {kind} ({expected}) in {self._path}, got {found_kind} {found}: make the file again"
            )
        array: npt.NDArray[Any] = self._stored.get_tensor(name)
        assert array.dtype == _TYPES[kind]
        if kind.startswith("F") and not all_finite(array):
            raise self._error(f"expected finite numbers in {name} of {self._path}, got others: make the file again")
        return array

    def text(self, name: str) -> str:
        """A text of the metadata.

        Raises:
            EdgeclipError: of the file's type: there is none.
        """
        if name not in self.metadata:
            raise self._error(f"expected {name} in the metadata of {self._path}, got none: make the file again")
        return self.metadata[name]

    def json(self, name: str, kind: type[_T], default: _T | None = None) -> _T:
        """A text of the metadata that is JSON, as a value of a type.

        Args:
            default: what it is where there is no such text; None to refuse that.

        Raises:
            EdgeclipError: of the file's type: there is none, or it is no JSON of that type.
        """
        if default is not None and name not in self.metadata:
            return default
        return decode_json(self.text(name), kind, where=f"{name} of {self._path}", error=self._error)


@contextmanager
def open_tensors(path: Path, *, error: type[EdgeclipError]) -> Iterator[Tensors]:
    """A ``.safetensors`` file, open as long as the block runs.

    Raises:
        EdgeclipError: of the type ``error``: it cannot be read, is no such file, or is larger than a table may be.
    """
    try:
        _check_size(path, error)
        opened = safe_open(path, framework="np")
    except (SafetensorError, OSError, ValueError) as problem:  # ValueError: a path with a null in it
        raise error(f"{path} is not a readable .safetensors file ({problem}): copy or make it again") from problem
    with opened as stored:
        yield Tensors(stored, path, error)


def all_finite(array: npt.NDArray[Any]) -> bool:
    """Whether every number is finite; looked at in pieces, so that it takes no memory of the array's size."""
    flat = array.reshape(-1)
    return all(bool(np.isfinite(flat[start : start + (1 << 20)]).all()) for start in range(0, len(flat), 1 << 20))


def _check_size(path: Path, error: type[EdgeclipError]) -> None:
    """Refuse what is too large, and a header that takes many times its size in memory once it is parsed."""
    size = path.stat().st_size
    check_limit("table_bytes", size, str(path), error=error)
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > size:
            return  # no header at all, which whoever reads it says
        check_limit("table_header_bytes", length, str(path), error=error)
        header = stream.read(length)
    # Without escaped quotes, what stands between quotes is a string: every other piece is.
    plain = header.replace(rb"\\", b"").replace(rb"\"", b"")
    strings = plain.count(b'"') // 2
    structure = plain.split(b'"')[::2] if strings <= _MOST_STRINGS else []
    if strings > _MOST_STRINGS or sum(map(len, structure)) > _MOST_STRUCTURE:
        raise error(f"expected the header of a few tensors in {path}, got a great many: make the file again")
