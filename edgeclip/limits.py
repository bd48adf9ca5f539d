"""What is read from outside is bounded before memory or disk is taken; the bounds, each with its variable to change it.

One table. A reader that meets more than its bound refuses in a sentence that names the variable.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from edgeclip.errors import EdgeclipError, InputError


class Limit(NamedTuple):
    """One bound.

    Attributes:
        most: what is taken unless the environment says otherwise.
        what: is counted, in words that complete "at most 64,000,000 {what}".
    """

    most: int
    what: str


# The environment's variable is EDGECLIP_MAX_ and the name in capitals.
LIMITS = {
    "image_pixels": Limit(100_000_000, "pixels in an image or frame"),
    "mjpeg_bytes": Limit(32 << 20, "bytes in one picture"),
    "image_bytes": Limit(1 << 30, "bytes in an image file"),
    "document_bytes": Limit(64 << 20, "bytes in a JSON, YAML or text file"),
    "yaml_values": Limit(1_000_000, "values in YAML whose aliases are written out"),
    "tar_members": Limit(100_000, "files in a tar"),
    "tar_bytes": Limit(16 << 30, "bytes unpacked from a tar"),
    "recording_bytes": Limit(256 << 20, "bytes unpacked from a recording of a machine's files"),
    "shard_file_bytes": Limit(256 << 20, "bytes in one file of a training shard"),
    "graph_bytes": Limit(1 << 30, "bytes in tensors that an ONNX graph makes of nothing"),
    "graph_fields": Limit(5_000_000, "fields in an ONNX file"),
    "graph_rounds": Limit(100_000, "rounds of the loops in an ONNX graph"),
    "first_run_bytes": Limit(4 << 30, "bytes of memory, beside its weights, for a graph's first inference"),
    "first_run_s": Limit(60, "seconds, beside what loading its weights takes, for a graph's first inference"),
    "table_bytes": Limit(2 << 30, "bytes in a prompt table or other .safetensors file of a bundle"),
    "table_header_bytes": Limit(32 << 20, "bytes of class names and other text in a .safetensors file's header"),
}


def limit(name: str) -> int:
    """The bound called ``name``, as the environment or the table has it.

    Raises:
        InputError: the environment's value is no whole number above 0.
    """
    variable = _variable(name)
    text = os.environ.get(variable, "")
    if not text:
        return LIMITS[name].most
    if not (text.isascii() and text.isdigit() and len(text) < 19 and int(text) > 0):
        raise InputError(f"expected a whole number above 0 in {variable}, got {text[:40]!r}")
    return int(text)


def check_limit(name: str, found: int, where: str, *, error: type[EdgeclipError] = InputError) -> None:
    """Refuse more than the bound.

    Args:
        found: how many there are, or would be.
        where: names what holds them, for the message.
        error: what is raised.

    Raises:
        EdgeclipError: of the type ``error``.
    """
    if found > (most := limit(name)):
        raise error(
            f"expected at most {most:,} {LIMITS[name].what}, got {found:,} in {where}: make it smaller, or set "
            f"{_variable(name)} higher"
        )


def _variable(name: str) -> str:
    return f"EDGECLIP_MAX_{name.upper()}"
