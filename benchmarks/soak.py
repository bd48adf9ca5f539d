"""Resident memory of the loop over a looped video at full speed: what it grows by after warm-up.

    python benchmarks/soak.py VIDEO [--minutes 10] [--bundle starter] [--table objects] [--gate 14] [--json FILE]

Everything that may grow is on: JSONL that rotates, events, the live page with a viewer, two regions. Samples the
process once a second; the first three tenths of the time (at least 30 s) are warm-up, in which the bounded histories
(10,000 times, a minute of plots) fill. Growth is that of the line through the samples after it, so that a single peak
neither hides nor makes it. Prints the machine.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np

from edgeclip import Bundle
from edgeclip.devices.machine.probe import describe_machine, summary
from edgeclip.files import write_json
from edgeclip.runtime.decision import DecisionOptions
from edgeclip.runtime.labeller import Labeller
from edgeclip.runtime.page.sink import WebSink
from edgeclip.runtime.regions import parse_tiles
from edgeclip.runtime.sinks.files import JsonlSink
from edgeclip.runtime.sources.open import SourceOptions, open_source
from edgeclip.runtime.stream import Stream, StreamOptions


def main() -> None:
    """Print memory by the minute, and the growth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=Path)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--bundle", default="starter")
    parser.add_argument("--table", default=None)
    parser.add_argument("--gate", type=float, default=None)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    seconds = asked.minutes * 60
    warm_up_s = max(30.0, seconds * 0.3)
    labeller = Labeller(Bundle.open(asked.bundle))
    print(summary(describe_machine()), f"{labeller.choice.variant} on {labeller.choice.engine}", sep="; ")
    with tempfile.TemporaryDirectory() as folder:
        page = WebSink(port=0)
        stream = labeller.stream(
            open_source(str(asked.video), options=SourceOptions(loop=0)),
            table=asked.table,
            options=StreamOptions(
                gate=asked.gate,
                regions=parse_tiles("2x1"),
                decision=DecisionOptions(smooth_s=0.5, enter=0.1, leave=0.05),
            ),
            sinks=[JsonlSink(Path(folder) / "labels.jsonl", rotate_mb=5.0), page],
        )
        threading.Thread(target=watch_page, args=(page.url,), daemon=True).start()
        samples = sample(stream, seconds)
    after = samples[samples[:, 0] >= warm_up_s]
    slope, start = np.polyfit(after[:, 0] - warm_up_s, after[:, 1], 1)
    growth = slope * (seconds - warm_up_s) / start
    account = stream.account
    print(f"{account.labelled:,} frames labelled ({account.fps:.1f} a second), {account.events:,} events")
    print(f"{start:.1f} MB after {warm_up_s:.0f} s, {slope * 60:+.3f} MB a minute: {growth:+.2%} to the end")
    if asked.json:
        write_json(asked.json, {"machine": describe_machine(), "growth": float(growth), "samples": samples.tolist()})


def sample(stream: Stream, seconds: float) -> np.ndarray:
    """(T, 2): seconds since the start and resident megabytes, once a second, while the stream runs."""
    samples: list[tuple[float, float]] = []
    start = time.perf_counter()
    due = 0.0
    for _ in stream:
        now = time.perf_counter() - start
        if now >= due:
            samples.append((now, resident_mb()))
            if int(due) % 60 == 0:
                print(f"{due / 60:4.0f} min  {samples[-1][1]:.1f} MB", flush=True)
            due += 1.0
        if now >= seconds:
            break
    return np.array(samples)


def watch_page(url: str) -> None:
    """A viewer of the page's video, until the page goes."""
    with urllib.request.urlopen(f"{url.rstrip('/')}/video/0") as response:
        while response.read(1 << 16):
            pass


def resident_mb() -> float:
    """Resident memory of this process, 10⁶ bytes."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096 / 1e6


if __name__ == "__main__":
    main()
