"""The words of a command line in, what it printed out: each in a process of its own, which a server forks.

A program that Python starts anew spends a second on imports, and five where it needs torch. The server has imported
these and done nothing else; whatever a verb does begins in its child. How the program starts and ends by itself is
claimed elsewhere, of ``python -m edgeclip``.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

_IMPORTED = ("edgeclip.cli.verbs", "edgeclip.runtime", "torch", "open_clip", "transformers")
_LONGEST_S = 300


def edgeclip(*arguments: object, code: int = 0, cwd: Path | None = None) -> str:
    """Run the command line in a process of its own; return what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        words, cores = [str(argument) for argument in arguments], sorted(os.sched_getaffinity(0))
        job = [words, str(cwd or Path.cwd()), dict(os.environ), cores, str(out), str(err)]
        server = _server(os.getpid())
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(json.dumps(job) + "\n")
        server.stdin.flush()
        ended = int(server.stdout.readline())
        printed, said = out.read_text(encoding="utf-8"), err.read_text(encoding="utf-8")
    assert ended == code, f"exit code {ended}: {printed}{said}"
    assert "Traceback" not in said
    return printed + said


def refused(*arguments: object, cwd: Path | None = None) -> str:
    """The one sentence with which the command line refuses."""
    message = edgeclip(*arguments, code=2, cwd=cwd).strip()
    assert message.startswith("error: ")
    assert len(message.splitlines()) == 1, message
    return message


@functools.cache
def _server(_pid: int) -> subprocess.Popen[str]:
    """This process's server; it ends with its standard input, so with the process."""
    command = [sys.executable, "-m", "tests.command_line"]
    root = Path(__file__).resolve().parents[1]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root)


def _serve() -> None:
    for name in _IMPORTED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()  # a child that went through all this would copy it
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _run(*json.loads(line))
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
        sys.stdout.flush()


def _run(words: list[str], cwd: str, environment: dict[str, str], cores: list[int], out: str, err: str) -> None:
    signal.alarm(_LONGEST_S)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    os.sched_setaffinity(0, cores)
    for path, mode, standard in ((os.devnull, "rb", 0), (out, "wb", 1), (err, "wb", 2)):
        with Path(path).open(mode) as file:
            os.dup2(file.fileno(), standard)
    sys.argv = ["edgeclip", *words]
    from edgeclip.cli import main

    try:
        main()
    except SystemExit as end:
        sys.stdout.flush()
        sys.stderr.flush()
        # Not as Python ends: to take down torch would take as long as to import it.
        os._exit(end.code if isinstance(end.code, int) else int(end.code is not None))


if __name__ == "__main__":
    _serve()
