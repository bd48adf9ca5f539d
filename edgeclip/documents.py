"""A JSON or text file in, its value or text out: with or without a byte order mark, of bounded size and depth.

And a value in, JSON out.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from edgeclip.errors import EdgeclipError, InputError
from edgeclip.limits import check_limit, limit
from edgeclip.printable import path_text

_BOM = b"\xef\xbb\xbf"
_T = TypeVar("_T")


def read_bytes(path: Path, *, error: type[EdgeclipError] = InputError) -> bytes:
    """A document's bytes without a byte order mark.

    Raises:
        EdgeclipError: of the type ``error``: it cannot be read, or is larger than a document may be.
    """
    try:
        with path.open("rb") as stream:
            check_limit("document_bytes", os.fstat(stream.fileno()).st_size, str(path), error=error)
            data = stream.read(limit("document_bytes") + 1)  # a device or pipe has no size
            check_limit("document_bytes", len(data), str(path), error=error)
            return data.removeprefix(_BOM)
    except (OSError, ValueError) as problem:  # ValueError: a path with a null in it
        raise error(f"cannot read {path} ({getattr(problem, 'strerror', None) or problem})") from problem


def read_text(path: Path, *, error: type[EdgeclipError] = InputError) -> str:
    """A UTF-8 file's text without a byte order mark.

    Raises:
        EdgeclipError: of the type ``error``: it cannot be read, is too large, or is no UTF-8.
    """
    try:
        return read_bytes(path, error=error).decode("utf-8")
    except UnicodeDecodeError as problem:
        raise error(f"expected a UTF-8 text file, got {path} ({problem}): save it as UTF-8") from problem


def decode_json(raw: bytes | str, kind: type[_T], *, where: str, error: type[EdgeclipError] = InputError) -> _T:
    """JSON as a value of a type.

    Args:
        kind: what msgspec holds it against; ``object`` for any value.
        where: names the document, for messages.

    Raises:
        EdgeclipError: of the type ``error``: not JSON, not of that type, or nested too deeply.
    """
    data = raw.encode("utf-8", "surrogatepass") if isinstance(raw, str) else raw
    try:
        return msgspec.json.decode(data.removeprefix(_BOM), type=kind)
    except RecursionError as problem:
        raise error(f"{where} is nested too deeply: make it anew") from problem
    except (msgspec.MsgspecError, UnicodeDecodeError) as problem:
        raise error(f"{where} is not JSON of the expected form ({problem})") from problem


def encode_json(value: Any, *, order: Literal["deterministic", "sorted"] | None = None) -> bytes:
    r"""A value as JSON; the bytes of a file name that are no UTF-8 are written out in it as ``\xff``."""
    try:
        return msgspec.json.encode(value, order=order)
    except UnicodeEncodeError:
        return msgspec.json.encode(_encodable(msgspec.to_builtins(value)), order=order)


def _encodable(value: Any) -> Any:
    if isinstance(value, str):
        return path_text(value)
    if isinstance(value, dict):
        return {_encodable(key): _encodable(each) for key, each in value.items()}
    return [_encodable(each) for each in value] if isinstance(value, list | tuple) else value


def read_json(path: Path, kind: type[_T], *, error: type[EdgeclipError] = InputError) -> _T:
    """``decode_json`` of a file. Raises as that and ``read_bytes``."""
    return decode_json(read_bytes(path, error=error), kind, where=str(path), error=error)


def read_yaml(path: Path, *, error: type[EdgeclipError] = InputError) -> Any:
    """A YAML file's value, by PyYAML's safe loader.

    Raises:
        EdgeclipError: of the type ``error``: as ``read_text``, or not YAML.
        MissingExtraError: PyYAML is not installed.
    """
    from edgeclip.extras import require

    yaml: Any = require("yaml", purpose="read YAML")
    text = read_text(path, error=error)
    try:
        return yaml.safe_load(text)
    except RecursionError as problem:
        raise error(f"{path} is nested too deeply: make it anew") from problem
    except (yaml.YAMLError, ValueError, OverflowError) as problem:  # ValueError: a date with 13 months
        raise error(f"{path} is not valid YAML ({str(problem).splitlines()[0]})") from problem
