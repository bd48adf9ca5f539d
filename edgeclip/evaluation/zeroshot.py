"""A bundle and a folder of labelled images in, zero-shot top-1 and top-5 with their intervals out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
from rich.console import Console

from edgeclip.bundle import Bundle
from edgeclip.devices.probe import Description, describe_machine, summary
from edgeclip.errors import SourceError
from edgeclip.evaluation.class_sets import class_prompts as class_prompts
from edgeclip.evaluation.metrics import true_class_ranks as true_class_ranks
from edgeclip.evaluation.metrics import wilson_interval as wilson_interval
from edgeclip.evaluation.paired import PairedDifference, paired_difference
from edgeclip.export.tables import table_for_bundle
from edgeclip.prompts import PromptTable
from edgeclip.runtime.encoder import ImageEncoder
from edgeclip.runtime.images import Image, list_labelled, read_image

_BATCH = 32


class ZeroShotResult(msgspec.Struct, frozen=True):
    """Zero-shot accuracy over a labelled set.

    Attributes:
        data: the folder.
        top1, top5: fraction of images whose true class is first, or among the first five.
        ci95: Wilson interval of ``top1``.
        n: images scored.
        failed: images that could not be decoded.
        classes: number of classes scored against.
        model_id, variant: what was measured.
        templates: prompts a class name went through.
        machine: what it was measured on.
        against, difference: another variant, and the accuracy beside its on the same images.
    """

    data: str
    top1: float
    top5: float
    ci95: tuple[float, float]
    n: int
    failed: int
    classes: int
    model_id: str
    variant: str
    templates: tuple[str, ...]
    machine: Description
    against: str | None = None
    difference: PairedDifference | None = None


def evaluate_folder(
    bundle: Bundle,
    data: Path,
    *,
    templates: Sequence[str],
    names: Path | None = None,
    variant: str = "fp32",
    against: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ZeroShotResult:
    """Score every image of ``data/CLASS/*`` against prompts made from the class names.

    Args:
        data: one folder of images a class. A folder's name is its class name, underscores read as spaces.
        names: JSON object, folder name → class name or list of names, for folders whose name is no good prompt.
        against: another variant to compare with, image by image.
        progress: called with (images done, images in all).

    Raises:
        SourceError: no class folders, or one without images.
        InputError: ``names`` lacks a folder.
    """
    files, folders = list_labelled(data)
    classes = class_prompts(folders, names)
    table = table_for_bundle(bundle, classes, templates, name=data.name or "eval")
    runs = [variant] if against is None else [variant, against]

    def watch(run: int) -> Callable[[int], None]:
        return lambda done: progress(run * len(files) + done, len(runs) * len(files)) if progress else None

    ranks, *others = [_ranks(bundle, files, table, name, watch(run)) for run, name in enumerate(runs)]
    known = ranks >= 0
    scored, hits = int(known.sum()), int((ranks == 0).sum())
    if not scored:
        raise SourceError(f"none of the {len(files)} images in {data} can be decoded: check one by hand")
    return ZeroShotResult(
        data=str(data),
        top1=hits / scored,
        top5=int((ranks[known] < 5).sum()) / scored,
        ci95=wilson_interval(hits, scored),
        n=scored,
        failed=len(files) - scored,
        classes=len(folders),
        model_id=bundle.manifest.model.id,
        variant=variant,
        templates=tuple(templates),
        machine=describe_machine(),
        against=against,
        difference=paired_difference(others[0][known] == 0, ranks[known] == 0) if others else None,
    )


def _ranks(
    bundle: Bundle,
    files: Sequence[tuple[Path, int]],
    table: PromptTable,
    variant: str,
    progress: Callable[[int], None],
) -> np.typing.NDArray[np.intp]:
    """For each file, how many classes score above its own; -1 if it cannot be decoded."""
    ranks = np.full(len(files), -1, np.intp)
    with ImageEncoder(bundle, variant) as encoder:
        for start in range(0, len(files), _BATCH):
            decoded = list(_decode(files, range(start, min(start + _BATCH, len(files)))))
            if decoded:
                rows = [index for index, _ in decoded]
                embeddings = encoder.encode([image for _, image in decoded])  # (N, D)
                truth = np.array([files[index][1] for index in rows])
                ranks[rows] = true_class_ranks(embeddings @ table.embeddings.T, truth)
            progress(min(start + _BATCH, len(files)))
    return ranks


def print_result(result: ZeroShotResult, console: Console) -> None:
    """Print accuracy, interval and what it was measured on."""
    low, high = result.ci95
    console.print(
        f"{result.data}: top-1 {result.top1:.3f} (95 % {low:.3f}–{high:.3f}), top-5 {result.top5:.3f}, "
        f"{result.n:,} images, {result.classes} classes"
        + (f", {result.failed} images could not be decoded" if result.failed else ""),
        highlight=False,
    )
    if result.difference:
        console.print(f"{result.variant} beside {result.against}: {result.difference}", highlight=False)
    console.print(f"{result.variant} of model {result.model_id} on {summary(result.machine)}", style="dim")


def _decode(files: Sequence[tuple[Path, int]], rows: Iterable[int]) -> Iterator[tuple[int, Image]]:
    for row in rows:
        try:
            yield row, read_image(files[row][0])
        except SourceError:
            continue
