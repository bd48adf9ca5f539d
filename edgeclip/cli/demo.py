"""The shipped starter labels a camera-like stream cut from real photographs, and is held against the truth."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeclip.bundle import Bundle
from edgeclip.devices.machine.probe import describe_machine, summary
from edgeclip.export.photographs import photograph
from edgeclip.files import atomic_file, atomic_files, write_json
from edgeclip.runtime.account import Account
from edgeclip.runtime.images import Image, opencv, write_image
from edgeclip.runtime.records import Scored
from edgeclip.runtime.sinks.files import JsonlSink
from edgeclip.runtime.sinks.overlay import draw_labels, fit
from edgeclip.runtime.sinks.terminal import TerminalView, print_summary
from edgeclip.runtime.sinks.video import OverlaySink
from edgeclip.runtime.sources.open import open_source
from edgeclip.runtime.stream import Stream

TABLE = "objects"
FPS = 25
SECONDS_A_SCENE = 3
SIZE = (480, 640)  # height, width
_FRAMES_A_SCENE = FPS * SECONDS_A_SCENE


@dataclass(frozen=True)
class Scene:
    """A photograph that the camera moves over, and what is in it.

    Attributes:
        file: photograph in scikit-image's wheel.
        truth: its label in the table ``objects``.
        start, end: view at the beginning and the end, as (centre x, centre y, height), fractions of the photograph.
    """

    file: str
    truth: str
    start: tuple[float, float, float]
    end: tuple[float, float, float]


SCENES = (
    Scene("chelsea.png", "cat", (0.40, 0.45, 0.75), (0.55, 0.50, 0.98)),
    Scene("coffee.png", "coffee cup", (0.40, 0.40, 0.70), (0.50, 0.50, 0.95)),
    Scene("rocket.jpg", "rocket", (0.50, 0.45, 0.60), (0.50, 0.50, 0.95)),
    Scene("motorcycle_left.png", "motorcycle", (0.45, 0.50, 0.98), (0.55, 0.52, 0.90)),
    Scene("astronaut.png", "astronaut", (0.45, 0.40, 0.70), (0.50, 0.38, 0.75)),
    Scene("page.png", "page of text", (0.40, 0.50, 0.95), (0.60, 0.50, 0.85)),
    Scene("camera.png", "camera", (0.45, 0.38, 0.75), (0.50, 0.45, 0.75)),
    Scene("clock_motion.png", "clock", (0.48, 0.50, 0.98), (0.52, 0.50, 0.90)),
)


def run_demo(output: Path, *, variant: str, console: Console) -> list[dict[str, object]]:
    """Film the scenes, label the film as ``edgeclip label`` does, and write everything to ``output``.

    Writes ``camera.mp4`` (the film), ``labels.jsonl``, ``overlay.mp4``, ``contact_sheet.png`` and ``result.json``.

    Args:
        variant: form of the starter's encoder.

    Returns:
        One record a scene: truth, label of most frames, fraction of frames labelled right.

    Raises:
        InputError: ``output`` cannot be written. Nothing is left there, as after any failure.
        VariantError: the starter has no such variant.
    """
    bundle = Bundle.open("starter")
    bundle.variant(variant)  # refused before a film is made
    with atomic_files(output) as folder:
        return _run(bundle, output, folder, variant=variant, console=console)


def _run(bundle: Bundle, output: Path, folder: Path, *, variant: str, console: Console) -> list[dict[str, object]]:
    """``run_demo`` in a folder that becomes ``output``."""
    film, labels, overlay = folder / "camera.mp4", folder / "labels.jsonl", folder / "overlay.mp4"
    table = bundle.table(TABLE)
    with console.status("filming eight photographs"):
        write_film(film)
    sinks = [JsonlSink(labels), OverlaySink(overlay), TerminalView(console)]
    account = Stream(bundle, [open_source(str(film))], [table], sinks=sinks, variant=variant).run()
    lines = [json.loads(line) for line in labels.read_text(encoding="utf-8").splitlines()]
    records = judge(lines)
    write_image(folder / "contact_sheet.png", contact_sheet(film, lines))
    machine = describe_machine()
    write_json(
        folder / "result.json",
        {"scenes": records, "variant": variant, "frames_per_second": round(account.fps, 1), "machine": machine},
    )
    _print_result(records, account, console, classes=len(table.classes), machine=summary(machine))
    console.print(f"written: {output}/labels.jsonl, overlay.mp4, contact_sheet.png", highlight=False)
    return records


def views(scene: Scene) -> Iterator[Image]:
    """The scene's frames, (H, W, 3) uint8 RGB: a slow pan and zoom over its photograph."""
    cv2 = opencv()
    image = photograph(scene.file)
    height, width = image.shape[:2]
    for step in np.linspace(0.0, 1.0, _FRAMES_A_SCENE):
        x, y, zoom = (1 - step) * np.asarray(scene.start) + step * np.asarray(scene.end)
        view_height = min(zoom * height, width * SIZE[0] / SIZE[1])
        view_width = view_height * SIZE[1] / SIZE[0]
        left = float(np.clip(x * width - view_width / 2, 0, width - view_width))
        top = float(np.clip(y * height - view_height / 2, 0, height - view_height))
        scale = SIZE[0] / view_height
        move = np.array([[scale, 0, -left * scale], [0, scale, -top * scale]], np.float32)
        moved: Image = cv2.warpAffine(image, move, SIZE[::-1], flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        yield moved


def write_film(path: Path) -> None:
    """Encode all scenes, hard cuts between them, as one H.264 file."""
    with atomic_file(path) as temporary, av.open(str(temporary), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast", "crf": "20"})
        stream.height, stream.width = SIZE
        stream.pix_fmt = "yuv420p"
        index = 0
        for scene in SCENES:
            for image in views(scene):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
                frame.pts, frame.time_base = index, Fraction(1, FPS)
                container.mux(stream.encode(frame))
                index += 1
        container.mux(stream.encode(None))


def judge(lines: list[dict[str, object]]) -> list[dict[str, object]]:
    """Compare the labels of each scene's frames with its truth; a scene is right if most frames say the truth."""
    records: list[dict[str, object]] = []
    for number, scene in enumerate(SCENES):
        said = Counter(str(line["label"]) for line in lines[number * _FRAMES_A_SCENE : (number + 1) * _FRAMES_A_SCENE])
        label, count = said.most_common(1)[0]
        right = said[scene.truth] / said.total()
        records.append({"truth": scene.truth, "label": label, "share": count / said.total(), "frames_right": right})
    return records


def contact_sheet(film: Path, lines: list[dict[str, object]]) -> Image:
    """One labelled frame a scene in a grid, framed green where the label is right and red where it is wrong."""
    cell_height, cell_width, columns, border = 270, 360, 4, 6
    cells: list[Image] = []
    with open_source(str(film)) as source:
        for frame in source:
            number, within = divmod(frame.index, _FRAMES_A_SCENE)
            if within != _FRAMES_A_SCENE // 2:
                continue
            line = lines[frame.index]
            top = [Scored(label, score) for label, score in line["top"]]  # type: ignore[attr-defined]
            drawn = draw_labels(frame.rgb(), top[:3], caption=f"truth: {SCENES[number].truth}")
            right = line["label"] == SCENES[number].truth
            cell = np.full((cell_height, cell_width, 3), (40, 150, 80) if right else (190, 50, 50), np.uint8)
            inner = fit(drawn, cell_height - 2 * border, cell_width - 2 * border)
            cell[border:-border, border:-border] = inner
            cells.append(cell)
    rows = [np.hstack(cells[start : start + columns]) for start in range(0, len(cells), columns)]
    return np.vstack(rows)


def _print_result(
    records: list[dict[str, object]], account: Account, console: Console, *, classes: int, machine: str
) -> None:
    table = Table("scene", "label of most frames", "", "frames right", box=None, header_style="bold", padding=(0, 2))
    for record in records:
        right = record["label"] == record["truth"]
        mark = Text("right", "green") if right else Text("wrong", "red")
        table.add_row(str(record["truth"]), str(record["label"]), mark, f"{record['frames_right']:.0%}")
    console.print(table)
    scenes_right = sum(record["label"] == record["truth"] for record in records)
    frames_right = float(np.mean([float(str(record["frames_right"])) for record in records]))
    console.print(
        f"{scenes_right} of {len(records)} scenes right, {frames_right:.0%} of frames, out of {classes} classes",
        highlight=False,
    )
    print_summary(account, console)
    console.print(f"on {machine}", style="dim", highlight=False)
