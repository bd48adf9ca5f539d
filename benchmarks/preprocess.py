"""Time and difference of our preprocessing against Pillow's on photographs and video frames, interleaved in one run.

    python benchmarks/preprocess.py [VIDEO …]

Needs the extra ``demo``, which brings Pillow. Ours starts from the decoder's YUV 4:2:0 frame; Pillow's side first
converts it with OpenCV (PyAV's own quick conversion is over one level too dark). Decoding is not timed. Prints the
machine.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
from PIL import Image as PillowImage

from edgeclip import Bundle, PreprocessSpec
from edgeclip.devices.probe import describe_machine, summary
from edgeclip.export.photographs import photographs
from edgeclip.runtime.images import Image, opencv
from edgeclip.runtime.preprocess import Pixels, Preprocessor, resized_size

REPEATS = 7


def by_pillow(pixels: Pixels, spec: PreprocessSpec) -> Image:
    """RGB conversion where needed, resize and crop with Pillow."""
    rgb = pixels
    if isinstance(pixels, av.VideoFrame):
        rgb = opencv().cvtColor(pixels.to_ndarray(), opencv().COLOR_YUV2RGB_I420)
    height, width = resized_size(spec, *rgb.shape[:2])
    resized = PillowImage.fromarray(rgb).resize((width, height), PillowImage.Resampling.BICUBIC)
    left, top = round((width - spec.width) / 2), round((height - spec.height) / 2)
    return np.asarray(resized.crop((left, top, left + spec.width, top + spec.height)))


def timed_ms(function: Callable[[], object]) -> float:
    """Wall time of one call, milliseconds."""
    start = time.perf_counter()
    function()
    return (time.perf_counter() - start) * 1e3


def main() -> None:
    """Print one line a kind of input."""
    spec = Bundle.open("starter").manifest.encoder.preprocess
    inputs: dict[str, list[Pixels]] = {"photographs": [image for _, image in photographs(None)]}
    for name in sys.argv[1:]:
        with av.open(name) as container:
            frames = [frame for index, frame in enumerate(container.decode(video=0)) if index % 50 == 0]
        inputs[f"{Path(name).name} {frames[0].width}×{frames[0].height}"] = list(frames)
    preprocess = Preprocessor(spec)
    print(f"{'input':50}{'Pillow ms':>12}{'ours ms':>10}{'ratio':>8}{'mean |difference| / 255':>28}")
    for name, pixels in inputs.items():
        ours, theirs = [], []
        for _ in range(REPEATS):
            for item in pixels:
                theirs.append(timed_ms(lambda item=item: by_pillow(item, spec)))
                ours.append(timed_ms(lambda item=item: preprocess.resize(item)))
        difference = np.mean([np.abs(preprocess.resize(p).astype(float) - by_pillow(p, spec)).mean() for p in pixels])
        a, b = float(np.median(theirs)), float(np.median(ours))
        print(f"{name:50}{a:12.2f}{b:10.2f}{a / b:8.1f}{difference:28.3f}")
    print(f"on {summary(describe_machine())}")


if __name__ == "__main__":
    main()
