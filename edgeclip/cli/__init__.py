"""Words on the command line in, one call of the Python API and what it says out; the verbs are in ``verbs.py``.

Nothing but the standard library is imported before ``main`` runs: where memory or room is too short for a library, that
is said in a sentence.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import io
import logging
import os
import signal
import sys
import threading
import traceback
from typing import TYPE_CHECKING, Any, NoReturn

from edgeclip.errors import EdgeclipError
from edgeclip.extras import name_a_home
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
    before = set(threading.enumerate())
    signal.signal(signal.SIGTERM, _interrupt)
    name_a_home()
    for stream in (sys.stdout, sys.stderr):
        # Names come from anywhere, and a terminal may know ASCII only: what it cannot show is written out.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    code = _run()
    # A thread that was left behind in a library (a camera that hangs) must not have it torn down under it.
    if any(thread.name.startswith("edgeclip-") for thread in set(threading.enumerate()) - before):
        atexit._run_exitfuncs()
        _leave(code)
    sys.exit(code)


def _run() -> int:
    """The exit code; what keeps a verb from its end is said."""
    try:
        from edgeclip.cli.common import NoticesLog
        from edgeclip.cli.verbs import app

        root = logging.getLogger()
        if not any(isinstance(handler, NoticesLog) for handler in root.handlers):  # whoever calls this twice
            root.addHandler(NoticesLog())
        logging.captureWarnings(capture=True)  # Python's, which would be written as they are
        app()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except EdgeclipError as error:
        _say(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        _say(f"{error.strerror or error}{where}: {_TO_DO.get(error.errno or 0, 'check that place and your rights')}")
        return EdgeclipError.exit_code
    except Exception as error:  # noqa: BLE001 - said, or printed as Python would
        if not (isinstance(error, MemoryError) or any(words in str(error).lower() for words in _NO_MEMORY)):
            _say(traceback.format_exc(), title="")
            return 1
        _say(
            f"not enough memory ({str(error) or 'none is left'}): raise the limit of this process (ulimit -v, or its "
            "container's), use fewer threads, or a smaller model"
        )
        _leave(EdgeclipError.exit_code)
    return 0


def _say(message: str, *, title: str = "error: ") -> None:
    """Say on stderr what went wrong, in colour where that is a terminal, without the secrets of this command line."""
    try:
        from rich.text import Text

        from edgeclip.cli.common import notices, without_passwords

        notices.print(Text.assemble((title, "bold red"), without_passwords(message)), soft_wrap=True)
    except (ImportError, MemoryError, RuntimeError):
        print(f"{title}{printable(message)}", file=sys.stderr)  # noqa: T201 - whatever else there is takes memory


def _leave(code: int) -> NoReturn:
    """End at once: what a library began and could not finish may hang when it is taken down."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _interrupt(_signal: int, _frame: Any) -> NoReturn:
    raise KeyboardInterrupt
