"""A walk of one frame: ``edgeclip label`` on short videos, and the files of edgeclip that a frame passes are printed.

    python tools/trace_frame.py [--package-root DIR]

DIR is a checkout whose ``edgeclip`` to walk through, an older one say; this one's by default. A hop is a call (or a
generator's resumption) that leads from one file of the package into another, in any thread. Frames are read, encoded
and labelled at the same time, several in a batch, so one frame's hops are found as a difference: those of a video of
twice as many frames, less those of the shorter one, divided by the frames between. What happens once falls out of it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

FRAMES = 16  # of the shorter video: whole batches, whatever their size up to this

Hop = tuple[str, str, str]


class Tracer:
    """For ``sys.setprofile``: counts calls between files of a package.

    Attributes:
        hops: (caller's file, called file, called function) → how often, in the order in which they last came.
    """

    def __init__(self, package: Path) -> None:
        self._prefix = f"{package}/"
        self.hops: Counter[Hop] = Counter()

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        """Count a call into one of the package's files from another of them, or through a library."""
        called = self._file(frame)
        if event != "call" or called is None:
            return
        caller = frame.f_back
        while caller is not None and self._file(caller) is None:
            caller = caller.f_back
        came_from = self._file(caller) if caller else None
        if came_from is not None and came_from != called:
            hop = came_from, called, frame.f_code.co_name
            self.hops[hop] = self.hops.pop(hop, 0) + 1  # to the end: the last frame's order stays

    def _file(self, frame: FrameType) -> str | None:
        name = frame.f_code.co_filename
        return name.removeprefix(self._prefix) if name.startswith(self._prefix) else None


def main() -> None:
    """Label both videos and print what one frame more passes."""
    parser = argparse.ArgumentParser(description="The files of edgeclip that one frame passes.")
    parser.add_argument("--package-root", type=Path, default=Path(__file__).resolve().parents[1])
    root = parser.parse_args().package_root.resolve()
    sys.path.insert(0, str(root))
    import edgeclip

    package = Path(edgeclip.__file__).parent
    if package != root / "edgeclip":
        sys.exit(f"expected edgeclip of {root}, got {package}")
    with tempfile.TemporaryDirectory() as folder:
        short, long = Path(folder) / "short.mp4", Path(folder) / "long.mp4"
        write_video(short, FRAMES)
        write_video(long, 2 * FRAMES)
        traced(short, package)  # what is loaded, compiled or proved at the first start is over after it
        few, many = traced(short, package), traced(long, package)
    print_walk({hop: (count - few[hop]) / FRAMES for hop, count in many.items() if count > few[hop]})


def write_video(path: Path, frames: int) -> None:
    """Noise, 320×240."""
    import av
    import numpy as np

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for index in range(frames):
            image = np.random.default_rng(index).integers(0, 256, (240, 320, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


def traced(video: Path, package: Path) -> Counter[Hop]:
    """The hops of labelling a video with the starter bundle, by ONNX Runtime in FP32, into a file of JSON lines."""
    from edgeclip.cli import app

    lines = video.with_suffix(".jsonl")
    chosen = ["--table", "objects", "--engine", "onnxruntime", "--variant", "fp32"]
    tracer = Tracer(package)
    threading.setprofile(tracer)
    sys.setprofile(tracer)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            app(["label", "starter", str(video), *chosen, "--jsonl", str(lines)], standalone_mode=False)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]  # as its documentation allows
    if not lines.is_file():
        sys.exit("nothing was labelled")
    return tracer.hops


def print_walk(hops: dict[Hop, float]) -> None:
    """The files, in the order in which the last frame came to them, with the hops that lead there."""
    files = list(dict.fromkeys(file for came_from, called, _ in hops for file in (came_from, called)))
    said = [f"one frame: {len(files)} files, {sum(hops.values()):.0f} hops", "", "hops into"]
    for file in files:
        into = {hop: count for hop, count in hops.items() if hop[1] == file}
        said.append(f"{sum(into.values()):9.1f}  {file:34} {', '.join(dict.fromkeys(name for *_, name in into))}")
    sys.stdout.write("\n".join(line.rstrip() for line in said) + "\n")


if __name__ == "__main__":
    main()
