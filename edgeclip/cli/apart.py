"""The options of a verb in; a refusal, before any work is done, where it would write over what it reads, out."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, get_type_hints

from edgeclip.cli.common import output_file, output_folder
from edgeclip.errors import InputError
from edgeclip.runtime.images import is_image_name

_MAKES = frozenset({"name", "apply", "set_"})  # options whose text names what is made, or is none of a file's


def with_outputs_apart(verb: Callable[..., Any]) -> Callable[..., Any]:
    """A verb that refuses an output which is one of its inputs, or lies in the bundle that it reads.

    What is written is what has ``output_file`` or ``output_folder`` for a callback; whatever else names a file or
    folder that is there is taken to be read.
    """

    @wraps(verb)
    def checked(**options: Any) -> Any:
        outputs = _outputs(verb)
        for name, is_folder in outputs.items():
            if (path := options.get(name)) is not None:
                replaces = is_folder and bool(options.get("overwrite"))
                # Asked for so, a table may be written over the one that it was made from.
                skip = {"table"} if name == "output" and options.get("overwrite") else set()
                others = {key: value for key, value in options.items() if key not in {*outputs, *_MAKES, *skip}}
                check_apart(path, _read(others), replaces=replaces)
        return verb(**options)

    return checked


def check_apart(output: Path, inputs: Iterable[Path], *, replaces: bool = False) -> None:
    """Refuse an output that would be written over an input.

    Args:
        output: a file or folder.
        inputs: files and folders that are there.
        replaces: whether it is a folder that goes with all that it holds.

    Raises:
        InputError: it is the same file as an input, an image of an input folder, inside a bundle that is read, or a
            folder that goes with an input in it.
    """
    target = Path(os.path.realpath(output))
    found = target.stat() if target.exists() else None
    if found is not None and not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        return  # a device or a pipe keeps nothing that could be lost
    is_file = found is not None and stat.S_ISREG(found.st_mode)
    for each in inputs:
        real = Path(os.path.realpath(each))
        why = ""
        if is_file and found is not None and os.path.samestat(found, each.stat()):
            why = "is read"
        elif real != target and target.is_relative_to(real) and (real / "manifest.json").is_file():
            why = f"lies in the bundle {each}, which holds what its manifest lists and no more"
        elif is_file and is_image_name(target) and target.is_relative_to(real):
            why = f"is an image of the folder {each}, which is read"
        elif replaces and found is not None and real.is_relative_to(target):
            why = f"would be replaced together with {each}, which is read"
        if why:
            raise InputError(f"expected an output apart from what is read, got {output}: it {why}; choose another")


def _outputs(verb: Callable[..., Any]) -> dict[str, bool]:
    """The options of a verb that name what it writes, each with whether that is a folder."""
    callbacks = {
        name: getattr(about, "callback", None)
        for name, hint in get_type_hints(verb, include_extras=True).items()
        for about in getattr(hint, "__metadata__", ())
    }
    return {name: call is output_folder for name, call in callbacks.items() if call in (output_file, output_folder)}


def _read(options: Mapping[str, Any]) -> Iterator[Path]:
    """The files and folders among the values of options, also those that a pattern stands for."""
    for value in options.values():
        for each in value if isinstance(value, list | tuple) else (value,):
            if not isinstance(each, str | Path):
                continue
            text = "/dev/stdin" if each == "-" or str(each).startswith("stdin?") else str(each)
            if os.path.exists(text):  # noqa: PTH110 - False where Path.exists raises: a name that is too long, a null
                yield Path(text)
            elif glob.has_magic(text) and "://" not in text:
                yield from map(Path, glob.iglob(text, recursive=True))  # noqa: PTH207 - "/abs/*.jpg"
