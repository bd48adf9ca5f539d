"""Start-up as a user sees it, in whole processes: import of the device side, and the first label of a camera.

    python benchmarks/startup.py VIDEO [--bundle starter] [--engine NAME] [--variant NAME] [--runs 9] [--json FILE]

The first label is timed from the start of ``edgeclip label BUNDLE VIDEO --realtime --jsonl FILE`` to the moment at
which another process sees the first line in the file. A run before the timed ones proves and compiles what is then in
the cache, as on a device that has labelled before. The runs of all rows are interleaved. Prints the machine.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from edgeclip.devices.machine.probe import describe_machine, installed_versions, summary
from edgeclip.files import write_json

_GIVE_UP_S = 120.0
_LOOK_EVERY_S = 0.002


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that starts; seconds."""

    what: str
    least: float
    median: float
    most: float


def statement_s(statement: str) -> float:
    """Seconds that a new interpreter takes for one statement, from its start to its end."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - start


def first_label_s(arguments: list[str]) -> float:
    """Seconds from the start of ``edgeclip label`` to its first line in a file.

    Raises:
        RuntimeError: it ended, or too much time passed, without one.
    """
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder) / "labels.jsonl"
        command = [sys.executable, "-m", "edgeclip", "label", *arguments, "--realtime", "--jsonl", str(lines)]
        start = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            while not (lines.is_file() and b"\n" in lines.read_bytes()):
                if process.poll() is not None or time.perf_counter() - start > _GIVE_UP_S:
                    process.kill()
                    raise RuntimeError(f"no label came: {process.stderr.read() if process.stderr else ''}")
                time.sleep(_LOOK_EVERY_S)
            took = time.perf_counter() - start
            process.terminate()
            process.communicate()
    return took


def main() -> None:
    """Print one line a row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=Path)
    parser.add_argument("--bundle", default="starter")
    parser.add_argument("--engine", help="[the one that is chosen here]")
    parser.add_argument("--variant", help="[the one that is chosen here]")
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    arguments = [given.bundle, str(given.video)]
    for name in ("engine", "variant"):
        if (value := getattr(given, name)) is not None:
            arguments += [f"--{name}", value]
    started: dict[str, Callable[[], float]] = {
        "python -c pass": lambda: statement_s("pass"),
        "import numpy": lambda: statement_s("import numpy"),
        "import edgeclip.runtime": lambda: statement_s("import edgeclip.runtime"),
        f"first label, {' '.join([given.bundle, *arguments[2:]])}": lambda: first_label_s(arguments),
    }
    times: dict[str, list[float]] = {what: [] for what in started}
    for run in range(given.runs + 1):
        for what, measure in started.items():
            took = measure()
            if run:
                times[what].append(took)
    rows = [
        Row(what=what, least=min(took), median=statistics.median(took), most=max(took)) for what, took in times.items()
    ]
    print(f"{'seconds, whole processes':<44}{'least':>8}{'median':>8}{'most':>8}")
    for row in rows:
        print(f"{row.what:<44}{row.least:8.3f}{row.median:8.3f}{row.most:8.3f}")
    print(f"{given.runs} runs on {summary(describe_machine())}; {installed_versions(['openvino', 'typer'])}")
    if given.json:
        write_json(given.json, {"machine": describe_machine(), "rows": rows})


if __name__ == "__main__":
    main()
