"""An ONNX file in; which other files it reads, once nothing in it can take a machine's memory or time, out.

A look at the file before an engine gets it, without the package ``onnx``, which a device does not have: protobuf's wire
format, and of it only what a graph may ask for beyond the bytes that it has. What is computed from other numbers cannot
be told so; for that the first inference is bounded too (``edgeclip/runtime/engines/first_run.py``).
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

from edgeclip.errors import EdgeclipError, EngineError, IntegrityError
from edgeclip.limits import check_limit, limit
from edgeclip.manifest import plain_path
from edgeclip.printable import printable

Numbers: TypeAlias = "tuple[float, ...]"
Span: TypeAlias = "tuple[int, int]"  # first and last + 1 of some bytes in the file

_DEPTH = 16  # graphs in graphs
_FEW = 64  # numbers in a constant that may be a shape
_ELEMENT_BYTES = 4
_UNCOUNTED = 1 << 62  # this many or more
_MOST_PER_BYTE = 8  # elements of a tensor that a byte of the file can stand for

# The numbers of fields in onnx.proto, which never change.
_MODEL_GRAPH, _MODEL_FUNCTIONS = 7, 25
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_SPARSE = 1, 5, 15
_FUNCTION_NODE = 7
_NODE_INPUT, _NODE_OUTPUT, _NODE_OP, _NODE_ATTRIBUTE = 1, 2, 4, 5
_NAME, _I, _F, _T, _G, _FLOATS, _INTS, _TENSORS, _GRAPHS, _SPARSE_T, _SPARSE_TS = 1, 3, 2, 5, 6, 7, 8, 10, 11, 22, 23
_DIMS, _TYPE, _INT32S, _INT64S, _TENSOR_NAME, _RAW, _FLOAT_DATA, _EXTERNAL, _LOCATED = 1, 2, 5, 7, 8, 9, 4, 13, 14
_SPARSE_VALUES, _SPARSE_INDICES, _SPARSE_DIMS = 1, 2, 3
_FORMATS = {1: "f", 6: "i", 7: "q", 11: "d"}  # of the element types that shapes, counts and scales have

# Operators that give numbers as they stand in the file.
_CONSTANTS = {"Constant", "Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze"}
# Operators whose output is as large as the numbers of one input, or of an attribute, say.
_SIZED_BY_INPUT = {
    **{"ConstantOfShape": 0, "Expand": 1, "Tile": 1, "OneHot": 1, "Resize": 3, "CenterCropPad": 1, "Col2Im": 1},
    **{"MaxUnpool": 2, "AffineGrid": 1, "DFT": 1, "HannWindow": 0, "HammingWindow": 0, "BlackmanWindow": 0},
}
_SIZED_BY_ATTRIBUTE = {"RandomNormal": "shape", "RandomUniform": "shape", "ConvTranspose": "output_shape"}
_SCALED_BY_INPUT = {"Resize": 2, "Upsample": 1}


def check_graph(path: Path, *, error: type[EdgeclipError] = EngineError) -> tuple[str, ...]:
    """Hold a graph against the bounds; returns the files with its weights, relative to its folder.

    Args:
        error: raised for what is no graph.

    Raises:
        IntegrityError: it makes larger tensors or goes more rounds than ``edgeclip.limits`` allows, declares what it
            does not hold, or reads a file outside its folder.
        EdgeclipError: of the type ``error``: it cannot be read, or is no ONNX file.
    """
    try:
        found = path.stat()
        seen = _seen(path, (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns))
    except OSError as problem:
        raise error(f"cannot load {path}: expected an ONNX file, got {problem.strerror}") from problem
    except (_BrokenError, IndexError, ValueError, struct.error) as problem:
        raise error(f"cannot load {path}: expected an ONNX file, got other bytes; export it with edgeclip") from problem
    check_limit("graph_bytes", seen.filled, str(path), error=IntegrityError)
    check_limit("graph_rounds", seen.rounds, str(path), error=IntegrityError)
    if seen.refused:
        raise IntegrityError(f"{path} {printable(seen.refused[0], lines=False)}: do not use this graph")
    for location, elements in seen.external.items():
        data = plain_path(path.parent, location)
        if not data.is_file():
            raise IntegrityError(f"{path} reads {location!r}, which is no file: copy the bundle again")
        if elements > _MOST_PER_BYTE * data.stat().st_size:
            raise IntegrityError(f"{path} declares {elements:,} numbers in {location}, which is smaller: copy it again")
    return tuple(seen.external)


@dataclass
class _Seen:
    """What a graph asks for.

    Attributes:
        external: file name → elements of the largest tensor in it.
        filled: bytes of tensors that it makes of nothing.
        rounds: of its loops, one within the other.
        refused: what it holds that no image encoder does, to complete "the graph …".
    """

    external: dict[str, int] = field(default_factory=dict)
    filled: int = 0
    rounds: int = 1
    refused: list[str] = field(default_factory=list)


@dataclass
class _Node:
    """A node: its operator, names of inputs and outputs, and where its attributes are."""

    op: str = ""
    inputs: list[bytes] = field(default_factory=list)
    outputs: list[bytes] = field(default_factory=list)
    attributes: list[Span] = field(default_factory=list)


class _BrokenError(Exception):
    """Not protobuf's wire format."""


@lru_cache(maxsize=64)
def _seen(path: Path, _stamp: tuple[int, ...]) -> _Seen:
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        look = _Look(data)
        look.model(0, len(data))
    return look.seen


class _Look:
    """A walk through the bytes of an ONNX file."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._left = limit("graph_fields")
        self.seen = _Seen()

    def model(self, start: int, end: int) -> None:
        graphs = 0
        for number, at, stop in self._fields(start, end):
            if number == _MODEL_GRAPH:
                graphs += 1
                self._graph((at, stop), {}, depth=0, rounds=1)
            elif number == _MODEL_FUNCTIONS:
                self._graph((at, stop), {}, depth=0, rounds=1, node=_FUNCTION_NODE)
        if not graphs:
            raise _BrokenError

    def _graph(
        self, span: Span, outer: dict[bytes, Numbers], *, depth: int, rounds: int, node: int = _GRAPH_NODE
    ) -> None:
        """Nodes and weights of a graph; ``outer`` are the constants that it sees."""
        if depth > _DEPTH:
            self.seen.refused.append(f"has graphs in graphs, more than {_DEPTH} deep")
            return
        constants, nodes = dict(outer), list[_Node]()
        for number, at, stop in self._fields(*span):
            if number == node:
                nodes.append(self._node(at, stop))
            elif number == _GRAPH_INITIALIZER and node == _GRAPH_NODE:
                name, values = self._tensor(at, stop)
                if values is not None:
                    constants[name] = values
            elif number == _GRAPH_SPARSE and node == _GRAPH_NODE:
                self._sparse(at, stop)
        for each in sorted(nodes, key=lambda each: each.op not in _CONSTANTS):  # those that others are sized by first
            self._consider(each, constants, depth=depth, rounds=rounds)

    def _node(self, start: int, end: int) -> _Node:
        node, data = _Node(), self._data
        for number, at, stop in self._fields(start, end):
            if number == _NODE_INPUT:
                node.inputs.append(data[at:stop])
            elif number == _NODE_OUTPUT:
                node.outputs.append(data[at:stop])
            elif number == _NODE_OP:
                node.op = data[at:stop].decode("utf-8", "replace")
            elif number == _NODE_ATTRIBUTE:
                node.attributes.append((at, stop))
        return node

    def _consider(self, node: _Node, constants: dict[bytes, Numbers], *, depth: int, rounds: int) -> None:
        """What a node makes, how often it is run, and what its attributes hold."""
        op, seen = node.op, self.seen
        attributes: dict[bytes, Numbers] = {}
        graphs: list[Span] = []
        for start, end in node.attributes:
            name, values = self._attribute(start, end, graphs)
            if values is not None:
                attributes[name] = values
        if op in _CONSTANTS and node.outputs:
            values = constants.get(node.inputs[0]) if node.inputs else next(iter(attributes.values()), None)
            if values is not None:
                constants[node.outputs[0]] = values

        def given(index: int) -> Numbers | None:
            return constants.get(node.inputs[index]) if index < len(node.inputs) else None

        if op == "EPContext":
            seen.refused.append("holds EPContext, an engine's compiled form, which nobody can check")
        if op == "Loop":
            count = given(0)
            if not count:
                seen.refused.append("holds a Loop without a fixed number of rounds")
            rounds *= max(1, int(count[0])) if count else 1
            seen.rounds = max(seen.rounds, rounds)
        elements: float = 0
        if sizes := given(_SIZED_BY_INPUT.get(op, 99)) or attributes.get(_SIZED_BY_ATTRIBUTE.get(op, "").encode()):
            elements = _product(sizes)
        elif scales := given(_SCALED_BY_INPUT.get(op, 99)):
            elements = _product(scales)
        elif op == "Pad" and (pads := given(1)):
            half = len(pads) // 2
            elements = _product([before + after for before, after in zip(pads[:half], pads[half:], strict=False)])
        elif op == "Range" and all(ends := [given(index) for index in range(3)]):
            first, last, step = (end[0] for end in ends if end)
            elements = (last - first) / step if step else math.inf
        seen.filled += _whole(elements * _ELEMENT_BYTES)
        for span in graphs:
            self._graph(span, constants, depth=depth + 1, rounds=rounds)

    def _attribute(self, start: int, end: int, graphs: list[Span]) -> tuple[bytes, Numbers | None]:
        """Name and numbers of an attribute; graphs in it are put into ``graphs``."""
        name, data = b"", self._data
        values: Numbers | None = None
        listed: list[float] = []
        for number, at, stop in self._fields(start, end):
            if number == _NAME:
                name = data[at:stop]
            elif number in (_T, _TENSORS):
                values = self._tensor(at, stop)[1]
            elif number in (_G, _GRAPHS):
                graphs.append((at, stop))
            elif number in (_SPARSE_T, _SPARSE_TS):
                self._sparse(at, stop)
            elif number == _I:
                listed.append(_signed(at))
            elif number == _INTS:
                listed += map(_signed, self._varints(at, stop))
            elif number in (_F, _FLOATS):
                listed += self._unpacked("f", at, stop)
            if len(listed) > _FEW:
                listed = listed[:_FEW]
        return name, tuple(listed) if listed else values

    def _tensor(self, start: int, end: int) -> tuple[bytes, Numbers | None]:
        """Name, and the numbers if they are few, of a tensor; it is noted if they lie in another file."""
        name, location, kind, external, data = b"", b"", 0, False, self._data
        dims: list[int] = []
        packed: list[tuple[int, int, int]] = []
        for number, at, stop in self._fields(start, end):
            if number == _DIMS:
                dims += map(_signed, self._varints(at, stop))
            elif number == _TYPE:
                kind = at
            elif number == _TENSOR_NAME:
                name = data[at:stop]
            elif number in (_RAW, _INT64S, _INT32S, _FLOAT_DATA):
                packed.append((number, at, stop))
            elif number == _LOCATED:
                external = external or at == 1
            elif number == _EXTERNAL:
                external = True
                location = self._entry(at, stop).get(b"location", location)
        elements = 1
        for size in dims:
            elements = min(elements * size, _UNCOUNTED)
        if any(size < 0 for size in dims):
            self.seen.refused.append(f"declares a tensor of the shape {dims}")
        if external:
            where = location.decode("utf-8", "surrogateescape")
            self.seen.external[where] = max(elements, self.seen.external.get(where, 0))
            return name, None
        if elements > _MOST_PER_BYTE * (end - start):
            self.seen.refused.append(f"declares a tensor of {elements:,} numbers and holds {end - start:,} bytes of it")
        return name, self._few(kind, packed) if elements <= _FEW and kind in _FORMATS else None

    def _few(self, kind: int, packed: Iterable[tuple[int, int, int]]) -> Numbers:
        """The numbers of a small tensor."""
        values: list[float] = []
        for number, at, stop in packed:
            if number == _RAW:
                values += self._unpacked(_FORMATS[kind], at, stop)
            elif number == _FLOAT_DATA:
                values += self._unpacked("f", at, stop)
            else:
                values += map(_signed, self._varints(at, stop))
        return tuple(values[:_FEW])

    def _sparse(self, start: int, end: int) -> None:
        """A sparse tensor, which engines make dense."""
        dims: list[int] = []
        for number, at, stop in self._fields(start, end):
            if number in (_SPARSE_VALUES, _SPARSE_INDICES):
                self._tensor(at, stop)
            elif number == _SPARSE_DIMS:
                dims += map(_signed, self._varints(at, stop))
        self.seen.filled += _whole(_product(dims) * _ELEMENT_BYTES)

    def _entry(self, start: int, end: int) -> dict[bytes, bytes]:
        """A key and its value."""
        found = {number: self._data[at:stop] for number, at, stop in self._fields(start, end) if stop >= 0}
        return {found.get(1, b""): found.get(2, b"")}

    def _unpacked(self, form: str, at: int, stop: int) -> Iterator[float]:
        size = struct.calcsize(form)
        raw = self._data[at : min(stop, at + _FEW * size)]
        return (value for (value,) in struct.iter_unpack(f"<{form}", raw[: len(raw) // size * size]))

    def _varints(self, at: int, stop: int) -> Iterator[int]:
        """One number, or several packed ones."""
        if stop < 0:
            yield at
            return
        while at < stop:
            self._count()
            value, at = self._varint(at)
            yield value

    def _count(self) -> None:
        """Millions of fields would take as many microseconds."""
        self._left -= 1
        if self._left < 0:
            most = limit("graph_fields")
            check_limit("graph_fields", most + 1, "an ONNX file", error=IntegrityError)

    def _varint(self, at: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            byte = self._data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value & (1 << 64) - 1, at
            shift += 7
            if shift > 63:
                raise _BrokenError

    def _fields(self, at: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(number, start, end) of each field of a message; (number, value, -1) where it is a whole number."""
        data = self._data
        while at < end:
            self._count()
            key = data[at]
            at += 1
            if key > 127:
                key, at = self._varint(at - 1)
            wire = key & 7
            if wire == 2:
                size = data[at]
                at += 1
                if size > 127:
                    size, at = self._varint(at - 1)
            elif wire == 0:
                value, at = self._varint(at)
                yield key >> 3, value, -1
                continue
            elif wire in (1, 5):
                size = 8 if wire == 1 else 4
            else:
                raise _BrokenError
            if at + size > end:
                raise _BrokenError
            yield key >> 3, at, at + size
            at += size


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _product(sizes: Iterable[float]) -> float:
    """Elements of a shape; what is 0 or -1 there stands for a size of the input's, at least 1."""
    total = 1.0
    for size in sizes:
        total *= max(1.0, size)
    return total


def _whole(value: float) -> int:
    """A whole number that a message can show; NaN and too large ones count as the most."""
    return int(value) if value < _UNCOUNTED else _UNCOUNTED
