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
# Aliases can nest what is written flat; whoever walks the value calls itself once a level.
_YAML_DEPTH = 100
# YAML's own two keys: what `<<` brings may be said again, and `=` has no value of its own.
_YAML_OWN_KEYS = frozenset({"tag:yaml.org,2002:merge", "tag:yaml.org,2002:value"})


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
    """``decode_yaml`` of a file. Raises as that and ``read_text``."""
    return decode_yaml(read_text(path, error=error), where=str(path), error=error)


def decode_yaml(text: str, *, where: str, error: type[EdgeclipError] = InputError) -> Any:
    """YAML's value, by PyYAML's safe loader: a tree of bounded size and depth, whatever its aliases stand for.

    Args:
        where: names the document, for messages.

    Raises:
        EdgeclipError: of the type ``error``: not YAML, nested too deeply, too large with its aliases written out, an
            alias within what it stands for, or a key that is given twice.
        MissingExtraError: PyYAML is not installed.
    """
    from edgeclip.extras import require

    yaml: Any = require("yaml", purpose="read YAML")
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is None:
            return None
        _check_yaml(root, loader, where=where, error=error)
        return loader.construct_document(root)
    except RecursionError as problem:
        raise error(f"{where} is nested too deeply: make it anew") from problem
    except (yaml.YAMLError, ValueError, OverflowError, LookupError, AttributeError) as problem:
        # PyYAML says a date with 13 months by ValueError, `!!int ""` and `!!bool x` by LookupError, `!!timestamp x` by
        # AttributeError.
        reason = (str(problem) or type(problem).__name__).splitlines()[0]
        raise error(f"{where} is not valid YAML ({reason})") from problem


def _check_yaml(root: Any, loader: Any, *, where: str, error: type[EdgeclipError]) -> None:
    """Refuse a graph of nodes whose value would be too large or too deep, endless, or poorer than the text."""
    known: dict[int, tuple[int, int] | None] = {}  # by node: values in it and levels; None while it is looked at

    def look(node: Any) -> tuple[int, int]:
        if not isinstance(node.value, list):
            return 1, 1
        if id(node) in known:
            if (found := known[id(node)]) is None:
                raise error(f"{where} has an alias that stands for what it is in: write out what is meant")
            return found
        known[id(node)] = None
        pairs = [child for child in node.value if isinstance(child, tuple)]
        _check_keys([key for key, _ in pairs], loader, where=where, error=error)
        parts = [look(each) for child in node.value for each in (child if isinstance(child, tuple) else (child,))]
        values, levels = 1 + sum(part[0] for part in parts), 1 + max((part[1] for part in parts), default=0)
        check_limit("yaml_values", values, where, error=error)
        if levels > _YAML_DEPTH:
            raise error(f"{where} is nested too deeply: make it anew")
        known[id(node)] = values, levels
        return values, levels

    look(root)


def _check_keys(keys: list[Any], loader: Any, *, where: str, error: type[EdgeclipError]) -> None:
    """Refuse two keys of one mapping that are the same once they are read, as 0 and 00 are: one would be lost."""
    seen: set[Any] = set()
    for key in keys:
        if isinstance(key.value, list) or key.tag in _YAML_OWN_KEYS:
            continue
        value = loader.construct_object(key, deep=True)
        if value in seen:
            line = key.start_mark.line + 1
            raise error(f"expected each key once in {where}, got {key.value[:40]!r} again in line {line}: rename one")
        seen.add(value)
