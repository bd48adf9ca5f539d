"""Every preprocessing backend against Pillow: time, pixel difference, cosine of embeddings; paired in one process.

    python benchmarks/preprocess.py [--bundle BUNDLE] [--engine ENGINE] [--json FILE] [VIDEO …]

Needs the extra ``demo``, which brings Pillow and photographs. Without videos the inputs are a wall of photographs at
common camera sizes, as YUV 4:2:0 frames and RGB arrays. Decoding is not timed, nor is the conversion to RGB that
Pillow's side needs (by OpenCV; PyAV's own quick conversion is over one level too dark). One thread on either side.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image as PillowImage

from edgeclip import Bundle, PreprocessSpec
from edgeclip.devices.machine.probe import describe_machine, summary
from edgeclip.export.photographs import photographs
from edgeclip.runtime.encoder import ImageEncoder
from edgeclip.runtime.images import Image, opencv
from edgeclip.runtime.preprocess.preprocess import BACKENDS, Pixels, Preprocessor, resized_size

_REPEATS = 15
_SIZES = ((1080, 1920), (720, 1280), (360, 640), (1920, 1080))
_TILE = 300


def rgb_of(pixels: Pixels) -> Image:
    """What Pillow's side starts from."""
    if isinstance(pixels, av.VideoFrame):
        rgb: Image = opencv().cvtColor(pixels.to_ndarray(format="yuv420p"), opencv().COLOR_YUV2RGB_I420)
        return rgb
    return pixels


def by_pillow(rgb: Image, spec: PreprocessSpec) -> Image:
    """Resize and crop with Pillow."""
    height, width = resized_size(spec, *rgb.shape[:2])
    kind = {"bicubic": PillowImage.Resampling.BICUBIC, "bilinear": PillowImage.Resampling.BILINEAR}[spec.interpolation]
    resized = PillowImage.fromarray(rgb).resize((width, height), kind)
    left, top = round((width - spec.width) / 2), round((height - spec.height) / 2)
    return np.asarray(resized.crop((left, top, left + spec.width, top + spec.height)))


def wall(images: list[Image], height: int, width: int, first: int) -> Image:
    """Photographs at their own size side by side, (height, width, 3) uint8."""
    tiles = [image[:_TILE, :_TILE] for image in images if min(image.shape[:2]) >= _TILE]
    rows = [
        np.concatenate([tiles[(first + y * 3 + x) % len(tiles)] for x in range(-(-width // _TILE))], axis=1)
        for y in range(-(-height // _TILE))
    ]
    return np.ascontiguousarray(np.concatenate(rows)[:height, :width])


def inputs_of(videos: list[str]) -> dict[str, list[Pixels]]:
    """Kinds of input by name."""
    found: dict[str, list[Pixels]] = {}
    for name in videos:
        with av.open(name) as container:
            frames = [frame for index, frame in enumerate(container.decode(video=0)) if index % 50 == 0]
        found[f"{Path(name).name} {frames[0].width}x{frames[0].height}"] = list(frames)
    if found:
        return found
    images = [image for _, image in photographs(None)]
    for height, width in _SIZES:
        walls = [wall(images, height, width, first) for first in range(4)]
        frames = [av.VideoFrame.from_ndarray(w, format="rgb24").reformat(format="yuv420p") for w in walls]
        found[f"YUV 4:2:0 {width}x{height}"] = list(frames)
        found[f"RGB array {width}x{height}"] = list(walls)
    return found


def timed_ms(function: Callable[[], object]) -> float:
    """Wall time of one call, milliseconds."""
    start = time.perf_counter()
    function()
    return (time.perf_counter() - start) * 1e3


def compare(name: str, pixels: list[Pixels], encoder: ImageEncoder) -> list[dict[str, Any]]:
    """One row a backend."""
    spec = encoder.preprocess.spec
    rgbs = [rgb_of(item) for item in pixels]
    pillow = np.stack([by_pillow(rgb, spec) for rgb in rgbs])
    expected, _ = encoder.start(pillow).result()
    preprocessors = {backend: Preprocessor(spec, backend) for backend in BACKENDS}
    smalls = {backend: np.stack([each.resize(p) for p in pixels]) for backend, each in preprocessors.items()}
    times: dict[str, list[float]] = {side: [] for side in ("Pillow", *BACKENDS)}
    for index in range(max(_REPEATS, len(pixels))):  # interleaved, so that a busy machine slows all of them
        item, rgb = pixels[index % len(pixels)], rgbs[index % len(pixels)]
        times["Pillow"].append(timed_ms(partial(by_pillow, rgb, spec)))
        for backend, each in preprocessors.items():
            times[backend].append(timed_ms(partial(each.resize, item)))
    rows = []
    for backend, small in smalls.items():
        difference = np.abs(small.astype(np.int16) - pillow).mean(axis=(1, 2, 3))
        cosine = (encoder.start(small).result()[0] * expected).sum(axis=1)
        pillow_ms, ours_ms = float(np.median(times["Pillow"])), float(np.median(times[backend]))
        rows.append(
            {
                "input": name,
                "backend": backend,
                "pillow_ms": round(pillow_ms, 3),
                "ms": round(ours_ms, 3),
                "times_pillow": round(pillow_ms / ours_ms, 2),
                "mean_difference": round(float(difference.mean()), 3),
                "worst_difference": round(float(difference.max()), 3),
                "min_cosine": round(float(cosine.min()), 5),
            }
        )
    return rows


def main() -> None:
    """Print one line a backend and kind of input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="*", metavar="VIDEO")
    parser.add_argument("--bundle", default="starter")
    parser.add_argument("--variant", default="fp32")
    parser.add_argument("--engine", default="onnxruntime")
    parser.add_argument("--json", type=Path, metavar="FILE")
    asked = parser.parse_args()
    opencv().setNumThreads(1)
    machine = describe_machine()
    rows: list[dict[str, Any]] = []
    print(f"{'input':46}{'backend':9}{'Pillow ms':>10}{'ms':>8}{'ratio':>7}{'mean':>7}{'worst':>7}  {'min cosine'}")
    with ImageEncoder(Bundle.open(asked.bundle), asked.variant, engine=asked.engine) as encoder:
        for name, pixels in inputs_of(asked.videos).items():
            for row in compare(name, pixels, encoder):
                rows.append(row)
                print(
                    f"{name:46}{row['backend']:9}{row['pillow_ms']:10.2f}{row['ms']:8.2f}{row['times_pillow']:7.1f}"
                    f"{row['mean_difference']:7.3f}{row['worst_difference']:7.3f}  {row['min_cosine']:.5f}",
                    flush=True,
                )
        small = np.stack([encoder.preprocess.resize(p) for p in pixels])
        times = [timed_ms(lambda: encoder.preprocess.normalise_batch(small)) / len(small) for _ in range(_REPEATS)]
        inside, outside = (
            encoder.start(small).result()[0],
            encoder.encode_preprocessed(encoder.preprocess.normalise_batch(small)),
        )
    rows.append(
        {
            "normalise_ms_an_image": round(float(np.median(times)), 3),
            "in_graph_max_difference": float(np.abs(inside - outside).max()),
        }
    )
    print(f"normalising in NumPy {rows[-1]['normalise_ms_an_image']:.3f} ms an image; started from bytes, the engine's")
    print(f"unit embeddings differ from that by at most {rows[-1]['in_graph_max_difference']:.1e}")
    print(f"{asked.bundle} {asked.variant} on {asked.engine}; {summary(machine)}")
    if asked.json:
        asked.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
