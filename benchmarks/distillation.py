"""A student and its teacher on one engine: how much faster is the one, and how much of the other's accuracy is left?

    python benchmarks/distillation.py --data ../shared/data [--checkpoint runs/distill-starter] [--json FILE]

Trains the recipe (or takes the checkpoint of an earlier run), exports the student in FP32 and scores both models
zero-shot on Caltech-101 and CIFAR-10, neither of which anything is trained on, against one table a set: the teacher's.
Latency is that of the engine alone on one image. Both run in turn, in random order, one untimed and one timed run each
a round, with the same threads; the speed-up is the median of the rounds' ratios. Prints the machine.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import tempfile
import time
from pathlib import Path

import msgspec
import numpy as np
from rich.console import Console

from edgeclip import Bundle, load_templates
from edgeclip.devices.machine.probe import Description, describe_machine, summary
from edgeclip.evaluation.data.class_sets import class_prompts
from edgeclip.evaluation.statistics.paired import PairedDifference, paired_difference
from edgeclip.export.accuracy import LabelledImages
from edgeclip.export.bundle import export_bundle
from edgeclip.export.photographs import photographs
from edgeclip.export.prompt_table import table_for_bundle
from edgeclip.files import write_json
from edgeclip.prompts import FloatArray
from edgeclip.runtime.engines.base import load_engine
from edgeclip.runtime.images import list_labelled
from edgeclip.training.load import load_model
from edgeclip.training.loop.trainer import train_recipe
from edgeclip.training.recipe import Recipe
from edgeclip.training.recipe_file import load_recipe

ROOT = Path(__file__).resolve().parents[1]
SETS = ("caltech101", "cifar10-test")


class Kept(msgspec.Struct, frozen=True):
    """Top-1 of both models on the same images of a set."""

    data: str
    classes: int
    teacher: float
    student: float
    difference: PairedDifference

    @property
    def share(self) -> float:
        """The student's top-1 as a share of the teacher's."""
        return self.student / self.teacher


class Speed(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds of one image, medians, and the ratios of the rounds: median, 10 % and 90 %."""

    engine: str
    threads: int
    rounds: int
    teacher_ms: float
    student_ms: float
    ratio: float
    ratio_p10: float
    ratio_p90: float


class Result(msgspec.Struct, kw_only=True):
    """All that is printed."""

    teacher: str
    student: str
    train_s: float | None
    cpu_s: float | None
    accuracy: list[Kept]
    speed: list[Speed]
    machine: Description


def accuracy(teacher: Bundle, student: Bundle, data: Path, templates: tuple[str, ...]) -> Kept:
    """Both on one set, with a table of the teacher's that the student's bundle has to accept."""
    files, folders = list_labelled(data)
    table = table_for_bundle(teacher, class_prompts(folders, None), templates, name=data.name)
    student.check_table(table)
    hits = [
        LabelledImages(files, table, bundle.manifest.encoder).hits(bundle.variant_path("fp32"))
        for bundle in (teacher, student)
    ]
    right = [float(found.mean()) for found in hits]
    return Kept(data.name, len(folders), right[0], right[1], paired_difference(*hits))


def race(teacher: Bundle, student: Bundle, *, engine: str, threads: int, rounds: int) -> Speed:
    """Both FP32 encoders in turn."""
    taken: dict[int, list[float]] = {0: [], 1: []}
    loaded, images = [], []
    for bundle in (teacher, student):
        encoder = bundle.manifest.encoder
        loaded.append(load_engine(engine, bundle.variant_path("fp32"), encoder, threads=threads))
        images.append(np.zeros((1, 3, encoder.preprocess.height, encoder.preprocess.width), np.float32))
    order, shuffled = [0, 1], random.Random(0)
    for _ in range(rounds):
        shuffled.shuffle(order)
        for index in order:
            loaded[index].infer(images[index])  # brings the weights back to the cache
            start = time.perf_counter()
            loaded[index].infer(images[index])
            taken[index].append((time.perf_counter() - start) * 1e3)
    for opened in loaded:
        opened.close()
    teachers, students = (np.array(taken[index]) for index in (0, 1))
    ratios: FloatArray = teachers / students
    return Speed(
        engine=engine,
        threads=threads,
        rounds=rounds,
        teacher_ms=float(np.median(teachers)),
        student_ms=float(np.median(students)),
        ratio=float(np.median(ratios)),
        ratio_p10=float(np.percentile(ratios, 10)),
        ratio_p90=float(np.percentile(ratios, 90)),
    )


def cpu_s() -> float:
    """Processor time of this process and of the loader's workers that have ended."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def main() -> None:
    """Train, export, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with the data sets")
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "distill-starter.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one value of it")
    parser.add_argument("--checkpoint", help="a student of an earlier run; no training then")
    parser.add_argument("--engines", nargs="+", default=["onnxruntime", "openvino"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--templates", default="simple")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    given = parser.parse_args()

    with tempfile.TemporaryDirectory() as scratch:
        checkpoint, train_s, used = given.checkpoint, None, None
        recipe = load_recipe(given.recipe, overrides=given.set)
        assert isinstance(recipe, Recipe)
        if not checkpoint:
            checkpoint = str(Path(scratch) / "run")
            started, before = time.perf_counter(), cpu_s()
            train_recipe(recipe, Path(checkpoint), console=Console(file=io.StringIO()))
            train_s, used = time.perf_counter() - started, cpu_s() - before
            print(f"trained {recipe.name}: {train_s:.0f} s, {used:.0f} s of the processor", flush=True)
        photos = photographs()
        teacher = Bundle.open("starter")
        if recipe.loss.teacher != "starter":
            teacher = export_bundle(load_model(recipe.loss.teacher), Path(scratch) / "teacher", photos=photos)
        student = export_bundle(load_model(checkpoint), Path(scratch) / "student", photos=photos)

        templates = load_templates(given.templates)
        kept = [accuracy(teacher, student, given.data / name, templates) for name in SETS]
        for found in kept:
            print(
                f"{found.data}, {found.classes} classes, {found.difference.n:,} images: top-1 teacher "
                f"{found.teacher:.4f}, student {found.student:.4f} ({found.share:.1%}); {found.difference}"
            )
        speeds = [
            race(teacher, student, engine=engine, threads=given.threads, rounds=given.rounds)
            for engine in given.engines
        ]
        for speed in speeds:
            print(
                f"{speed.engine} FP32, {speed.threads} thread(s), one image: teacher {speed.teacher_ms:.2f} ms, "
                f"student {speed.student_ms:.2f} ms, {speed.ratio:.2f}x (10–90 %: "
                f"{speed.ratio_p10:.2f}–{speed.ratio_p90:.2f}, {speed.rounds} rounds)"
            )
        result = Result(
            teacher=teacher.manifest.model.id,
            student=student.manifest.model.id,
            train_s=train_s,
            cpu_s=used,
            accuracy=kept,
            speed=speeds,
            machine=describe_machine(),
        )
    print(f"on {summary(result.machine)}, load average {os.getloadavg()[0]:.1f}")
    slowest = min(speed.ratio for speed in speeds)
    print(f"{slowest:.2f}x as fast, {100 * kept[0].share:.1f} % of the teacher's Caltech-101 top-1")
    if given.json:
        write_json(given.json, result)


if __name__ == "__main__":
    main()
