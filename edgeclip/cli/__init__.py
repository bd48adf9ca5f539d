"""Words on the command line in, one call of the Python API and what it says out; the verbs are in ``verbs.py``.

Nothing but the standard library is imported before ``main`` runs: where memory or room is too short for a library, that
is said in a sentence.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import sys
import traceback
from typing import TYPE_CHECKING, Any, NoReturn

from edgeclip.errors import EdgeclipError
from edgeclip.printable import printable

if TYPE_CHECKING:
    from edgeclip.cli.verbs import app

# What the loader, the interpreter and libraries say where an address space is too small.
_NO_MEMORY = ("cannot allocate memory", "failed to map segment", "can't start new thread", "bad_alloc", "can't alloc")

_ROOM = "make room, or choose another place"
_TO_DO = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: _ROOM,
    errno.EROFS: "choose another place",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENOMEM: "raise the limit of memory, or use fewer threads or a smaller model",
}

__all__ = ["app", "main"]


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module 'edgeclip.cli' has no attribute {name!r}")
    from edgeclip.cli.verbs import app

    return app


def main() -> None:
    """Run the command line; an expected error is one sentence on stderr and the error's exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    for stream in (sys.stdout, sys.stderr):
        # Names come from anywhere, and a terminal may know ASCII only: what it cannot show is written out.
        with contextlib.suppress(AttributeError, ValueError):  # no stream, or none that encodes
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        from edgeclip.cli.common import NoticesLog
        from edgeclip.cli.verbs import app

        logging.getLogger().addHandler(NoticesLog())
        app()
    except EdgeclipError as error:
        _say(str(error))
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        _say(f"{error.strerror or error}{where}: {_TO_DO.get(error.errno or 0, 'check that place and your rights')}")
        sys.exit(EdgeclipError.exit_code)
    except Exception as error:  # noqa: BLE001 - said, or printed as Python would
        if not (isinstance(error, MemoryError) or any(words in str(error).lower() for words in _NO_MEMORY)):
            print(printable(traceback.format_exc()), end="", file=sys.stderr)  # noqa: T201
            sys.exit(1)
        _say(
            f"not enough memory ({str(error) or 'none is left'}): raise the limit of this process (ulimit -v, or its "
            "container's), use fewer threads, or a smaller model"
        )
        _leave(EdgeclipError.exit_code)


def _say(message: str) -> None:
    """One line on stderr, in colour where that is a terminal."""
    try:
        from rich.text import Text

        from edgeclip.cli.common import notices

        notices.print(Text.assemble(("error:", "bold red"), f" {message}"), soft_wrap=True)
    except (ImportError, MemoryError, RuntimeError):
        print(f"error: {printable(message)}", file=sys.stderr)  # noqa: T201 - whatever else there is takes memory


def _leave(code: int) -> NoReturn:
    """End at once: what a library began and could not finish may hang when it is taken down."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _interrupt(_signal: int, _frame: Any) -> NoReturn:
    raise KeyboardInterrupt
