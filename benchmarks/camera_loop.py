"""Frames a second from a 1080p H.264 file to labels, against what else one would write, interleaved in one run.

    python benchmarks/camera_loop.py [--video FILE] [--real VIDEO …] [--rounds 5] [--json FILE]

Needs the extra ``dev`` and a checkout. All systems run ViT-B-32 with the same weights (random, as trained ones cannot
be downloaded everywhere; speed does not depend on them) against the same table of 1000 rows. Those rows are the FP32
embeddings of crops of photographs, so that labels tell pictures apart even with random weights. Each round gives every
system, in random order, a stretch of the file; a system's ratio is taken to the best peer in the same round.

Peers, each one frame after another as their documentation shows, from open_clip's own image tower:

- open_clip in PyTorch, its own preprocessing (PIL), frames from OpenCV
- ONNX Runtime FP32, PIL
- OpenVINO INT8 as its CLIP notebook makes it (``openvino.convert_model``, ``nncf.quantize`` with ``TRANSFORMER``), PIL
- the same with OpenCV's INTER_AREA in place of PIL: the best peer

Then the same for real videos (``--real``) with scene gating on, with the share of frames whose label gating leaves as
it is; with random weights labels are near ties, so what gating costs is told by ``benchmarks/gating.py``. Prints the
machine, where our time goes, and last the ratio to the best peer.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import msgspec
import numpy as np
from PIL import Image as PillowImage
from rich.console import Console
from rich.table import Table

from edgeclip import Bundle, PromptTable, make_classes
from edgeclip.calibration.images import crops
from edgeclip.devices.machine.probe import describe_machine, installed_versions, summary
from edgeclip.devices.sensors.telemetry import Telemetry
from edgeclip.export.photographs import photographs
from edgeclip.files import atomic_file, atomic_folder, cache_dir, write_json
from edgeclip.prompts import FloatArray, unit_rows
from edgeclip.runtime.decision import DecisionOptions, SourceState
from edgeclip.runtime.encoder import ImageEncoder
from edgeclip.runtime.engines.base import normalise, usable_cores
from edgeclip.runtime.preprocess.choose import choose_backend
from edgeclip.runtime.preprocess.preprocess import Preprocessor
from edgeclip.runtime.regions import whole
from edgeclip.runtime.scoring import Scorer
from edgeclip.runtime.sources.open import Frame, Source, open_source
from edgeclip.runtime.stream import Stream, StreamOptions
from edgeclip.runtime.tables import TableSet

MODEL = "ViT-B-32"
OURS = "edgeclip"
ROWS = 1000
BEST_PEER = "OpenVINO INT8 + cv2.INTER_AREA"
OUR_FRAMES = 600  # a stretch is so long that filling and emptying the pipeline hardly counts
PEER_FRAMES = 60
AGREEMENT_FRAMES = 120
STAGE_FRAMES = 32  # as many batches for each of the streams
GATE = 14.0

Labels = list[str]
System = Callable[[int], tuple[Labels, float]]  # labels of so many further frames, and the seconds it took


class Result(msgspec.Struct, kw_only=True):
    """One system on one video.

    Attributes:
        fps: median over the rounds.
        ratio: to the best peer, median of the rounds' ratios.
        agreement: share of frames with the reference's label; for the gated loop, with that of the one that is not.
    """

    video: str
    system: str
    fps: float
    ratio: float
    agreement: float | None = None


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", type=Path, help="a 1080p file [made from photographs]")
    parser.add_argument("--real", type=Path, nargs="*", default=[], help="videos for scene gating")
    parser.add_argument("--bundle", type=Path, help=f"a bundle of {MODEL} with the variant int8 [exported once]")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gate", type=float, default=GATE, help="threshold of the scene gate, grey levels")
    parser.add_argument("--json", type=Path, help="write all figures here")
    asked = parser.parse_args()
    console = Console(width=120)
    bundle = Bundle.open(asked.bundle or exported_bundle())
    table = reference_table(bundle)
    video = asked.video or synthetic_video()
    machine = describe_machine()
    console.print(f"{summary(machine)}; {installed_versions(['openvino', 'torch', 'av', 'opencv-python-headless'])}")
    with Telemetry() as telemetry:  # beside all systems alike
        results = compare(bundle, table, video, asked.rounds)
    print_results(results, console)
    conditions = telemetry.conditions()
    console.print(str(conditions), markup=False, highlight=False)
    stages = where_time_goes(bundle, table, video)
    print_stages(stages, results[-1].fps, console)
    gated = [result for real in asked.real for result in compare_gated(bundle, table, real, asked.rounds, asked.gate)]
    if gated:
        print_results(gated, console)
    if asked.json:
        write_json(
            asked.json,
            {"machine": machine, "conditions": conditions, "results": results + gated, "stages_core_ms": stages},
        )
    console.print(f"{results[-1].ratio:.2f}x the best peer")


# Subjects ---------------------------------------------------------------------------------------------------------


def exported_bundle() -> Path:
    """The model's bundle, exported once and kept in the cache."""
    path = cache_dir("benchmarks") / f"{MODEL}.edgeclip"
    if not path.exists():
        command = ["export", MODEL, "--pretrained", "none", "--variants", "int8", "--output", str(path)]
        subprocess.run([sys.executable, "-m", "edgeclip", *command], check=True)
    return path


def reference_table(bundle: Bundle) -> PromptTable:
    """Rows of 1000 crops of photographs, computed once and kept in the cache."""
    path = cache_dir("benchmarks") / f"views-{bundle.manifest.model.id}.safetensors"
    if path.exists():
        return PromptTable.load(path)
    views = crops([image for _, image in photographs()], ROWS, seed=7)
    with ImageEncoder(bundle, "fp32", engine="openvino") as encoder:
        rows = [encoder.encode(views[first : first + 32]) for first in range(0, ROWS, 32)]
    classes = make_classes([f"view {number}" for number in range(ROWS)])
    table = PromptTable("views", classes, unit_rows(np.concatenate(rows)), ("{}",), bundle.manifest.model.id)
    table.save(path)
    return table


def synthetic_video(seconds: int = 20, fps: int = 30) -> Path:
    """A 1080p H.264 film that pans over a wall of photographs, as a camera on a slow mount would."""
    path = cache_dir("benchmarks") / "wall-1080p.mp4"
    if path.exists():
        return path
    images = [image for _, image in photographs()]
    tiles = [cv2.resize(images[k % len(images)], (640, 540), interpolation=cv2.INTER_CUBIC) for k in range(24)]
    wall = np.vstack([np.hstack(tiles[row * 6 : row * 6 + 6]) for row in range(4)])  # (2160, 3840, 3)
    with atomic_file(path) as temporary, av.open(str(temporary), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"preset": "medium", "crf": "23"})
        stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuv420p"
        for index in range(seconds * fps):
            x = round((1 + np.sin(index / 90)) / 2 * (wall.shape[1] - 1920))
            y = round((1 + np.cos(index / 140)) / 2 * (wall.shape[0] - 1080))
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(wall[y : y + 1080, x : x + 1920]), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


# Peers ------------------------------------------------------------------------------------------------------------


def opencv_frames(video: Path) -> Iterator[np.ndarray[Any, Any]]:
    """BGR frames of the file, again and again."""
    while True:
        capture = cv2.VideoCapture(str(video))
        while (read := capture.read())[0]:
            yield read[1]
        capture.release()


def by_pillow(bgr: Any, bundle: Bundle) -> FloatArray:
    """One frame as CLIP's own preprocessing makes it, (1, 3, 224, 224) float32."""
    spec = bundle.manifest.encoder.preprocess
    image = PillowImage.fromarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB))
    scale = spec.resize_to / min(image.size)
    width, height = int(image.width * scale), int(image.height * scale)
    left, top = round((width - spec.width) / 2), round((height - spec.height) / 2)
    resized = image.resize((width, height), PillowImage.Resampling.BICUBIC)
    small = np.asarray(resized.crop((left, top, left + spec.width, top + spec.height)))
    return normalise(spec, small[None])


def by_area(bgr: Any, bundle: Bundle) -> FloatArray:
    """The same with OpenCV's INTER_AREA of the frame's middle square."""
    spec = bundle.manifest.encoder.preprocess
    side = min(bgr.shape[:2])
    top, left = (bgr.shape[0] - side) // 2, (bgr.shape[1] - side) // 2
    small = cv2.resize(
        bgr[top : top + side, left : left + side], (spec.width, spec.height), interpolation=cv2.INTER_AREA
    )
    return normalise(spec, cv2.cvtColor(small, cv2.COLOR_BGR2RGB)[None])


def open_clip_eager(bundle: Bundle) -> Callable[[Any], FloatArray]:
    """open_clip's model in PyTorch."""
    import torch

    from edgeclip.training.load import load_model

    origin = bundle.manifest.model.origin
    model = load_model(origin.name, pretrained="none", seed=origin.seed or 0)

    def encode(bgr: Any) -> FloatArray:
        with torch.inference_mode():
            return np.asarray(model.encode_image(torch.from_numpy(by_pillow(bgr, bundle))))

    return encode


def onnxruntime_fp32(bundle: Bundle) -> Callable[[Any], FloatArray]:
    """ONNX Runtime as its documentation shows it."""
    import onnxruntime as ort

    session = ort.InferenceSession(str(plain_graph(bundle)), providers=["CPUExecutionProvider"])
    return lambda bgr: session.run(None, {"image": by_pillow(bgr, bundle)})[0]


def openvino_int8(bundle: Bundle, preprocess: Callable[[Any, Bundle], FloatArray]) -> Callable[[Any], FloatArray]:
    """OpenVINO as its documentation shows it, compiled for one frame and told to care for latency."""
    import openvino

    compiled = openvino.Core().compile_model(plain_int8(bundle), "CPU", {"PERFORMANCE_HINT": "LATENCY"})
    return lambda bgr: compiled(preprocess(bgr, bundle))[0]


def open_clip_visual(bundle: Bundle) -> Any:
    """open_clip's own image tower with the bundle's weights."""
    from edgeclip.training.load import load_model

    origin = bundle.manifest.model.origin
    return load_model(origin.name, pretrained="none", seed=origin.seed or 0).image_modules()[0]


def plain_graph(bundle: Bundle) -> Path:
    """The tower as PyTorch's exporter writes it, made once and kept in the cache."""
    import torch

    path = cache_dir("benchmarks") / f"plain-{bundle.manifest.model.id}.onnx"
    if not path.exists():
        example = torch.zeros(1, 3, 224, 224)
        with atomic_file(path) as temporary:
            torch.onnx.export(
                open_clip_visual(bundle), (example,), str(temporary), input_names=["image"], external_data=False
            )
    return path


def plain_int8(bundle: Bundle) -> Path:
    """The tower quantized as in OpenVINO's CLIP notebook, on the photographs that edgeclip calibrates on by default."""
    import nncf
    import openvino

    path = cache_dir("benchmarks") / f"plain-int8-{bundle.manifest.model.id}" / "model.xml"
    if not path.exists():
        preprocess = Preprocessor(bundle.manifest.encoder.preprocess)
        views = crops([image for _, image in photographs()], 128, seed=0)
        data = nncf.Dataset([preprocess(view)[None] for view in views])
        model = openvino.convert_model(plain_graph(bundle), input=[1, 3, 224, 224])
        with atomic_folder(path.parent) as temporary:
            quantized = nncf.quantize(model, data, model_type=nncf.ModelType.TRANSFORMER)
            openvino.save_model(quantized, temporary / path.name, compress_to_fp16=False)
    return path


def peer(encode: Callable[[Any], FloatArray], video: Path, table: PromptTable) -> System:
    """One frame after another: read, preprocess, encode, score."""
    frames = opencv_frames(video)

    def label(count: int) -> tuple[Labels, float]:
        said = []
        start = time.perf_counter()
        for bgr in itertools.islice(frames, count):
            cosines = unit_rows(np.asarray(encode(bgr))) @ table.embeddings.T
            said.append(table.labels[int(cosines.argmax())])
        return said, time.perf_counter() - start

    return label


def reference_labels(bundle: Bundle, table: PromptTable, video: Path) -> Labels:
    """FP32 and PIL on accurately converted frames: OpenCV's reader makes them a grey level too dark."""
    encode, said = onnxruntime_fp32(bundle), []
    with open_source(str(video)) as source:
        for frame in itertools.islice(source, AGREEMENT_FRAMES):
            bgr = cv2.cvtColor(frame.pixels.to_ndarray(format="yuv420p"), cv2.COLOR_YUV2BGR_I420)
            said.append(table.labels[int((unit_rows(encode(bgr)) @ table.embeddings.T).argmax())])
    return said


# Ours -------------------------------------------------------------------------------------------------------------


class Looped(Source):
    """A video file that begins again at its end."""

    def __init__(self, path: Path) -> None:
        super().__init__(path.name)
        self._path = path

    def __iter__(self) -> Iterator[Frame]:
        for _ in itertools.count():
            with open_source(str(self._path)) as source:
                yield from source


def our_stream(bundle: Bundle, video: Path, table: PromptTable, count: int, **options: Any) -> Stream:
    """The loop over so many frames; what it loads before its first frame is done here."""
    chosen = StreamOptions(preprocess="auto", top_k=1, limit=count, **options)
    return Stream(bundle, [Looped(video)], TableSet(bundle, [table]), chosen, variant="int8", engine="openvino")


def ours(bundle: Bundle, video: Path, table: PromptTable, **options: Any) -> System:
    """The loop; loading is not timed, as it is not for the peers."""

    def label(count: int) -> tuple[Labels, float]:
        stream = our_stream(bundle, video, table, count, **options)
        start = time.perf_counter()
        said = [labelled.label for labelled in stream]
        return said, time.perf_counter() - start

    return label


# Comparison -------------------------------------------------------------------------------------------------------


def interleave(systems: dict[str, System], rounds: int, our_frames: int = OUR_FRAMES) -> dict[str, list[float]]:
    """Frames a second of each system in each round; every round gives each of them a stretch, in random order."""
    order, shuffled = list(systems), random.Random(0)
    fps: dict[str, list[float]] = {name: [] for name in systems}
    for _ in range(rounds):
        shuffled.shuffle(order)
        for name in order:
            count = our_frames if name.startswith(OURS) else PEER_FRAMES
            _, seconds = systems[name](count)
            fps[name].append(count / seconds)
    return fps


def compare(bundle: Bundle, table: PromptTable, video: Path, rounds: int) -> list[Result]:
    """All systems on the 1080p file."""
    peers = {
        "open_clip eager + PIL": peer(open_clip_eager(bundle), video, table),
        "ONNX Runtime FP32 + PIL": peer(onnxruntime_fp32(bundle), video, table),
        "OpenVINO INT8 + PIL": peer(openvino_int8(bundle, by_pillow), video, table),
        BEST_PEER: peer(openvino_int8(bundle, by_area), video, table),
    }
    systems = {**peers, OURS: ours(bundle, video, table)}
    # The same first frames for all: what each says of them, and its warm-up.
    said = {name: system(AGREEMENT_FRAMES)[0] for name, system in systems.items()}
    reference = reference_labels(bundle, table, video)
    agreement = {name: share_equal(labels, reference) for name, labels in said.items()}
    return rated(video, interleave(systems, rounds), agreement)


def compare_gated(bundle: Bundle, table: PromptTable, video: Path, rounds: int, gate: float) -> list[Result]:
    """The best peer, and our loop with and without scene gating over the whole of a real video."""
    with open_source(str(video)) as source:
        frames = sum(1 for _ in source)
    name = f"{OURS}, gate {gate:g}"
    systems = {
        BEST_PEER: peer(openvino_int8(bundle, by_area), video, table),
        OURS: ours(bundle, video, table),
        name: ours(bundle, video, table, gate=gate),
    }
    every, gated = (systems[system](frames)[0] for system in (OURS, name))
    systems[BEST_PEER](AGREEMENT_FRAMES)
    return rated(video, interleave(systems, max(1, rounds // 2), frames), {name: share_equal(gated, every)})


def rated(video: Path, fps: dict[str, list[float]], agreement: dict[str, float]) -> list[Result]:
    """Medians over the rounds."""
    best = fps[BEST_PEER]
    return [
        Result(
            video=video.name,
            system=name,
            fps=round(statistics.median(rounds), 2),
            ratio=round(statistics.median(own / peer for own, peer in zip(rounds, best, strict=True)), 3),
            agreement=agreement.get(name),
        )
        for name, rounds in fps.items()
    ]


def share_equal(labels: Labels, others: Labels) -> float:
    """Share of frames with the same label."""
    return sum(a == b for a, b in zip(labels, others, strict=True)) / len(labels)


# Where the time goes ----------------------------------------------------------------------------------------------


def where_time_goes(bundle: Bundle, table: PromptTable, video: Path) -> dict[str, float]:
    """CPU time of each stage by itself, milliseconds of one core a frame; and the whole loop's, for its overhead."""
    spec = bundle.manifest.encoder.preprocess
    count, parallel = OUR_FRAMES, usable_cores()
    with ImageEncoder(bundle, "int8", engine="openvino", parallel=parallel) as encoder:
        preprocessor = Preprocessor(spec, choose_backend(encoder).backend)
    stages = {}
    with Looped(video) as source:
        frames = iter(source)
        held = [frame.pixels for frame in itertools.islice(frames, STAGE_FRAMES)]
        stages["decode"] = core_ms(lambda: sum(1 for _ in itertools.islice(frames, count)), count)
    stages["crop, resize"] = core_ms(lambda: [preprocessor.resize(pixels) for pixels in held], len(held))
    small = np.stack([preprocessor.resize(pixels) for pixels in held])
    with ImageEncoder(bundle, "int8", engine="openvino", parallel=parallel) as encoder:
        stages["encode"], stages["engine only, fps"] = engine_alone(encoder, small, parallel, count)
    with ImageEncoder(bundle, "int8", engine="openvino", threads=1) as encoder:
        _, stages["engine on one core, fps"] = engine_alone(encoder, small, 1, count // 2)
    rows = unit_rows(
        np.random.default_rng(0).standard_normal((count, bundle.manifest.encoder.embedding_dim)).astype(np.float32)
    )
    track = SourceState(DecisionOptions(), (whole(),), source="", top_k=1)
    scorers = TableSet(bundle, [table]).current()
    empty = Frame(0, 0.0, small[0])
    stages["score, decide"] = core_ms(lambda: score_all(track, rows, scorers, empty), count)
    stream = our_stream(bundle, video, table, count)
    stages["whole loop"] = core_ms(lambda: stream.run(), count)
    stream = our_stream(bundle, video, table, count // 2, threads=1, parallel=1)
    stages["loop with the engine on one core, fps"] = stream.run().fps
    return stages


def engine_alone(encoder: ImageEncoder, small: Any, parallel: int, count: int) -> tuple[float, float]:
    """(core milliseconds a frame, frames a second) of some ``count`` frames that are resized already."""
    encode_all(encoder, small, parallel)
    repeats = max(1, count // len(small))
    started = time.perf_counter()
    took = core_ms(lambda: [encode_all(encoder, small, parallel) for _ in range(repeats)], repeats * len(small))
    return took, repeats * len(small) / (time.perf_counter() - started)


def score_all(track: SourceState, rows: FloatArray, scorers: Sequence[Scorer], frame: Frame) -> None:
    """Embeddings (N, D) in batches of 8, as the loop does it."""
    for first in range(0, len(rows), 8):
        scores = [scorer.scores(rows[first : first + 8]) for scorer in scorers]
        for row in range(len(scores[0])):
            track.label(frame, [of_table[row : row + 1] for of_table in scores], scorers, encode_ms=0.0)


def encode_all(encoder: ImageEncoder, small: Any, parallel: int) -> None:
    """All frames in batches of 8, ``parallel`` of them under way."""
    under_way: deque[Any] = deque()
    for first in range(0, len(small), 8):
        under_way.append(encoder.start(small[first : first + 8]))
        if len(under_way) == parallel:
            under_way.popleft().result()
    for pending in under_way:
        pending.result()


def core_ms(work: Callable[[], object], count: int) -> float:
    """CPU time of all threads, milliseconds a frame."""
    start = time.process_time()
    work()
    return (time.process_time() - start) * 1e3 / count


# Output -----------------------------------------------------------------------------------------------------------


def print_results(results: list[Result], console: Console) -> None:
    """One row a system."""
    for video, rows in itertools.groupby(results, key=lambda result: result.video):
        table = Table("system", "frames/s", "to the best peer", "same label", title=video, title_justify="left")
        for row in rows:
            same = "" if row.agreement is None else f"{row.agreement:.1%}"
            table.add_row(row.system, f"{row.fps:.1f}", f"{row.ratio:.2f}x", same)
        console.print(table)


def print_stages(stages: dict[str, float], fps: float, console: Console) -> None:
    """Core time by stage, and how near the loop is to what the cores allow."""
    table = Table("stage", "core-ms a frame", title=f"{OURS}: where the time goes", title_justify="left")
    parts = [name for name in stages if not name.endswith(", fps") and name != "whole loop"]
    for name in (*parts, "whole loop"):
        table.add_row(name, f"{stages[name]:.2f}")
    console.print(table)
    cores, work = usable_cores(), sum(stages[name] for name in parts)
    floor = cores * 1e3 / work
    console.print(
        f"physical floor: {work:.1f} core-ms on {cores} cores = {floor:.1f} frames/s; reached {fps / floor:.0%}"
    )
    engine = stages["engine only, fps"]
    console.print(
        f"engine alone on all cores: {engine:.1f} frames/s; the loop, which decodes on them too, {fps / engine:.0%}"
    )
    alone, loop = stages["engine on one core, fps"], stages["loop with the engine on one core, fps"]
    console.print(
        f"engine alone on one core: {alone:.1f} frames/s; the loop with the engine on one core {loop / alone:.0%}"
    )


if __name__ == "__main__":
    main()
