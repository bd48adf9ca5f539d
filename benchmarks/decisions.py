"""What calibrated decisions keep of their promises, on images that they were not fitted on.

    D=../shared/data
    C=$D/cue-conflict
    python benchmarks/decisions.py $D/caltech101 $D/cifar10-test $C/edges,$C/filled-silhouettes,$C/style-transfer \\
        --output decisions-results

In every draw a fifth of the classes is left out of the table: their images are the unknown ones. Four fifths of all
images are fitted on, the rest is labelled as the runtime would. Figures are of all draws' test images together. Four
questions:

- alike: unknown test images are of the classes that the unknown ones fitted on were of;
- unseen: they are of other classes;
- few: five images a class, and five unknown ones for each of these classes, are fitted on;
- no labels: the footage is half of the unknown images, and what is measured is how many of the others get a label.

Folders joined by commas are one set. ``--output`` takes ``decisions.png`` and ``decisions.json``. Needs the extra
``train``.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from edgeclip import Bundle, load_templates
from edgeclip.calibration.decisions.background import (
    FootageOptions,
    best_scores,
    describe_site,
    fit_footage,
    vocabulary,
)
from edgeclip.calibration.decisions.confidence import NONE, Labels
from edgeclip.calibration.decisions.fit import (
    Bin,
    FitOptions,
    calibration_error,
    fit_decisions,
    reliability,
    separation,
)
from edgeclip.calibration.decisions.precision_bound import Bools
from edgeclip.calibration.embeddings import image_embeddings
from edgeclip.decisions import Decisions, Doubles, look_at
from edgeclip.devices.machine.probe import describe_machine, summary
from edgeclip.evaluation.data.dataset import open_labelled
from edgeclip.evaluation.statistics.metrics import wilson_interval
from edgeclip.export.prompt_table import table_for_bundle
from edgeclip.files import atomic_file, write_json
from edgeclip.prompts import FloatArray, PromptTable, make_classes
from edgeclip.runtime.scoring import Scorer

TARGET = 0.95
CONFIDENCES = (0.9, 0.5)
LEFT_OUT, FITTED_ON, FEW = 0.2, 0.8, 5
RATE = 0.05


class ImageSet(NamedTuple):
    """Embeddings (N, D) by variant, the class (N,) of each image, and a table of all classes."""

    name: str
    embeddings: dict[str, FloatArray]
    labels: Labels
    table: PromptTable


class Draw(NamedTuple):
    """A table without some classes, the true row (N,) in it of each image, and who is fitted on and tested."""

    table: PromptTable
    truth: Labels
    fit: Labels
    test: Labels


class Row(msgspec.Struct, frozen=True):
    """One line: what was fitted, and what the test images of all draws say."""

    set: str
    variant: str
    question: str
    confidence: float
    promised: int
    draws: int
    reported: int
    precision: float | None
    ci95: tuple[float, float] | None
    recall: float
    abstention: float
    ece_before: float
    ece_after: float
    auroc_cosine: float
    auroc_after: float
    before: list[Bin]
    after: list[Bin]


class Unlabelled(msgspec.Struct, frozen=True):
    """One line without labels."""

    set: str
    variant: str
    labelled_unknown: float
    recall: float
    auroc_cosine: float
    auroc_score: float
    auroc_background: float


class Test:
    """Test images of several draws, as the runtime labels them."""

    def __init__(self) -> None:
        self.score: list[Doubles] = []
        self.probability: list[Doubles] = []
        self.right: list[Bools] = []
        self.known: list[Bools] = []
        self.reported: list[Bools] = []
        self.separations: list[tuple[float, float]] = []
        self.promised = 0

    def add(self, bundle: Bundle, draw: Draw, decisions: Decisions, embeddings: FloatArray) -> None:
        """Label the test images of a draw."""
        rows, truth = embeddings[draw.test], draw.truth[draw.test]
        plain = Scorer(draw.table, bundle.manifest.encoder)
        decided = Scorer(draw.table, bundle.manifest.encoder, decisions)
        scores = decided.scores(rows)
        best, probability = scores.argmax(axis=1), scores.max(axis=1).astype(np.float64)
        thresholds = np.array([decided.threshold_of(row, 1.0) for row in range(len(decided.labels))])
        assert decisions.confidence
        sure = decisions.confidence.of(look_at(plain.logits(rows)), rows)
        cosine = (rows @ draw.table.embeddings.T).max(axis=1).astype(np.float64)
        known = truth != NONE
        self.score.append(plain.scores(rows).max(axis=1).astype(np.float64))
        self.probability.append(probability)
        self.right.append(best == truth)
        self.known.append(known)
        self.reported.append(probability >= thresholds[best])
        self.separations.append((separation(cosine, known) or np.nan, separation(sure.known, known) or np.nan))
        self.promised += any(each.promise != "none" for each in decisions.facts.classes.values())

    def row(self, name: str, variant: str, question: str, confidence: float) -> Row:
        """What they say together."""
        score, probability = np.concatenate(self.score), np.concatenate(self.probability)
        right, known, reported = (np.concatenate(part) for part in (self.right, self.known, self.reported))
        n, hits = int(reported.sum()), int((right & reported).sum())
        cosine, after = np.nanmean(self.separations, axis=0)
        return Row(
            name,
            variant,
            question,
            confidence,
            self.promised,
            len(self.right),
            n,
            hits / n if n else None,
            wilson_interval(hits, n) if n else None,
            hits / int(known.sum()),
            1 - n / len(right),
            calibration_error(score, right),
            calibration_error(probability, right),
            float(cosine),
            float(after),
            reliability(score, right),
            reliability(probability, right),
        )


def open_set(bundle: Bundle, folders: str, variants: Sequence[str]) -> ImageSet:
    """Embed the images of one or several folders of the same classes."""
    parts = [open_labelled(folder) for folder in folders.split(",")]
    first = parts[0]
    assert all(part.folders == first.folders for part in parts)
    embeddings = {
        variant: np.concatenate([image_embeddings(bundle, variant, part.items).rows for part in parts])
        for variant in variants
    }
    labels = np.concatenate([part.labels for part in parts])
    name = Path(folders.split(",")[0])
    table = table_for_bundle(bundle, first.classes, load_templates("simple"), name="all")
    return ImageSet(name.parent.name if len(parts) > 1 else name.name, embeddings, labels, table)


def draws(images: ImageSet, question: str, count: int) -> Iterator[Draw]:
    """Seeded draws of the classes that are left out, and of the images."""
    classes = len(images.table.classes)
    for seed in range(count):
        rng = np.random.default_rng(seed)
        out = rng.permutation(classes)[: max(2, round(LEFT_OUT * classes))]
        kept = np.setdiff1d(np.arange(classes), out)
        table, row_of = without(images.table, kept), np.full(classes, NONE)
        row_of[kept] = np.arange(len(kept))
        truth = row_of[images.labels]
        order = rng.permutation(len(truth))
        fit, test = np.split(order, [round(FITTED_ON * len(order))])
        if question == "unseen":
            seen = out[: len(out) // 2]
            fit = fit[(truth[fit] != NONE) | np.isin(images.labels[fit], seen)]
            test = test[(truth[test] != NONE) | ~np.isin(images.labels[test], seen)]
        if question == "few":
            fit = np.concatenate([fit[images.labels[fit] == label][:FEW] for label in range(classes)])
        yield Draw(table, truth, fit, test)


def without(table: PromptTable, kept: Labels) -> PromptTable:
    """The table with some of its classes only."""
    return dataclasses.replace(
        table, name="kept", classes=tuple(table.classes[row] for row in kept), embeddings=table.embeddings[kept]
    )


def measure(bundle: Bundle, images: ImageSet, variant: str, question: str, confidence: float, count: int) -> Row:
    """Fit and test in every draw."""
    test = Test()
    embeddings = images.embeddings[variant]
    options = FitOptions(TARGET, confidence)
    for draw in draws(images, question, count):
        fitted = fit_decisions(
            draw.table,
            bundle.manifest.encoder,
            embeddings[draw.fit],
            draw.truth[draw.fit],
            options,
            variant=variant,
            graph="",
        )
        test.add(bundle, draw, fitted.decisions, embeddings)
    return test.row(images.name, variant, question, confidence)


def measure_unlabelled(bundle: Bundle, images: ImageSet, variant: str, count: int) -> Unlabelled:
    """Background words and a threshold from half of the unknown images; the other half and known ones are tested."""
    words = table_for_bundle(bundle, make_classes(vocabulary()), load_templates("simple"), name="words")
    encoder, embeddings = bundle.manifest.encoder, images.embeddings[variant]
    found = []
    for seed, draw in enumerate(draws(images, "alike", count)):
        unknown = np.random.default_rng(seed).permutation(np.flatnonzero(draw.truth == NONE))
        footage, others = np.array_split(unknown, 2)
        taken = {label.casefold() for label in draw.table.labels}
        free = np.array([row for row, label in enumerate(words.labels) if label.casefold() not in taken])
        chosen = free[
            describe_site(
                embeddings[footage],
                words.embeddings[free],
                draw.table.embeddings,
                logit_scale=encoder.logit_scale,
                count=FootageOptions().background,
            )
        ]
        table = dataclasses.replace(
            draw.table,
            classes=(*draw.table.classes, *(words.classes[row] for row in chosen)),
            embeddings=np.concatenate([draw.table.embeddings, words.embeddings[chosen]]),
            background=tuple(words.labels[row] for row in chosen),
        )
        options = FootageOptions(RATE)
        decisions = fit_footage(table, encoder, embeddings[footage], options, variant=variant, graph="")
        test = np.concatenate([others, np.flatnonzero(draw.truth != NONE)])
        rows, truth = embeddings[test], draw.truth[test]
        scorer = Scorer(table, encoder, decisions)
        scores = scorer.scores(rows)
        best, known = scores.argmax(axis=1), truth != NONE
        labelled = (best < len(draw.table.classes)) & (scores.max(axis=1) >= decisions.facts.figures["threshold"])
        cosine = (rows @ draw.table.embeddings.T).max(axis=1).astype(np.float64)
        plain = best_scores(Scorer(draw.table, encoder), rows)
        found.append(
            (
                labelled[~known].mean(),
                (labelled & (best == truth))[known].mean(),
                separation(cosine, known),
                separation(plain, known),
                separation(best_scores(scorer, rows), known),
            )
        )
    return Unlabelled(images.name, variant, *map(float, np.mean(found, axis=0)))


def times(bundle: Bundle, images: ImageSet, variant: str) -> tuple[float, float, float]:
    """Seconds of a fit on all images; microseconds (medians) of scoring one frame without and with decisions."""
    draw, encoder, embeddings = next(draws(images, "alike", 1)), bundle.manifest.encoder, images.embeddings[variant]
    start = time.perf_counter()
    fitted = fit_decisions(draw.table, encoder, embeddings, draw.truth, FitOptions(TARGET), variant=variant, graph="")
    fit_s = time.perf_counter() - start
    scorers = (Scorer(draw.table, encoder), Scorer(draw.table, encoder, fitted.decisions))
    taken: list[list[float]] = [[], []]
    with threadpool_limits(1, user_api="blas"):  # as the runtime does
        for row in range(min(1000, len(embeddings))):
            for scorer, own in zip(scorers, taken, strict=True):
                start = time.perf_counter()
                scorer.scores(embeddings[row : row + 1])
                own.append(time.perf_counter() - start)
    plain, decided = (1e6 * float(np.median(own)) for own in taken)
    return fit_s, plain, decided


def save_plot(rows: Sequence[Row], path: Path) -> None:
    """Reliability before and after, a panel for each set, FP32."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    shown = [
        row for row in rows if row.question == "alike" and row.confidence == CONFIDENCES[0] and row.variant == "fp32"
    ]
    figure, panels = plt.subplots(1, len(shown), figsize=(4 * len(shown), 4.2), squeeze=False, layout="constrained")
    for row, panel in zip(shown, panels[0], strict=True):
        panel.plot([0, 1], [0, 1], color="0.6", linestyle=":", linewidth=1)
        for bins, colour, label in ((row.before, "#0072b2", "score"), (row.after, "#009e73", "calibrated")):
            most = max(each.n for each in bins)
            panel.plot([each.probability for each in bins], [each.right for each in bins], color=colour, label=label)
            sizes = [8 + 70 * each.n / most for each in bins]
            panel.scatter([each.probability for each in bins], [each.right for each in bins], s=sizes, color=colour)
        panel.set_title(f"{row.set}: error {row.ece_before:.3f} → {row.ece_after:.3f}", fontsize=11)
        panel.set_xlabel("said")
        panel.set_xlim(0, 1)
        panel.set_ylim(0, 1)
    panels[0][0].set_ylabel("share right")
    panels[0][0].legend(frameon=False)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
    plt.close(figure)


def print_rows(rows: Sequence[Row], console: Console) -> None:
    """Two tables: what is reported, and what probabilities are worth."""
    kept = Table(
        "set", "variant", "unknown", "confidence", "promised", "precision", "95 %", "recall", "abstention", box=None
    )
    worth = Table("set", "variant", "unknown", "ECE before", "after", "AUROC cosine", "calibrated", box=None)
    for row in rows:
        precision = "–" if row.precision is None else f"{row.precision:.3f}"
        ci95 = "" if row.ci95 is None else f"{row.ci95[0]:.3f}–{row.ci95[1]:.3f}"
        promised = f"{row.promised} of {row.draws}"
        kept.add_row(
            row.set,
            row.variant,
            row.question,
            f"{row.confidence:g}",
            promised,
            precision,
            ci95,
            f"{row.recall:.3f}",
            f"{row.abstention:.3f}",
        )
        if row.confidence == CONFIDENCES[0]:
            worth.add_row(
                row.set,
                row.variant,
                row.question,
                f"{row.ece_before:.3f}",
                f"{row.ece_after:.3f}",
                f"{row.auroc_cosine:.3f}",
                f"{row.auroc_after:.3f}",
            )
    console.print(kept, highlight=False)
    console.print(worth, highlight=False)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", help="folders with one folder a class; several joined by commas are one set")
    parser.add_argument("--bundle", default="starter")
    parser.add_argument("--variants", default="fp32,int8-cpu")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--output", type=Path, help="folder for decisions.png and decisions.json")
    options = parser.parse_args()
    console, bundle = Console(width=150), Bundle.open(options.bundle)
    variants = options.variants.split(",")
    rows, unlabelled = [], []
    seconds: dict[str, tuple[float, float, float]] = {}
    for folders in options.sets:
        images = open_set(bundle, folders, variants)
        for variant in variants:
            for question in ("alike", "unseen", "few"):
                for confidence in CONFIDENCES if question == "alike" else CONFIDENCES[:1]:
                    rows.append(measure(bundle, images, variant, question, confidence, options.draws))
            unlabelled.append(measure_unlabelled(bundle, images, variant, options.draws))
        seconds[images.name] = times(bundle, images, variants[0])

    print_rows(rows, console)
    plain = Table(
        "no labels: set", "variant", "unknown labelled", "recall", "AUROC cosine", "score", "background", box=None
    )
    for each in unlabelled:
        numbers = (
            each.labelled_unknown,
            each.recall,
            each.auroc_cosine,
            each.auroc_score,
            each.auroc_background,
        )
        plain.add_row(each.set, each.variant, *(f"{number:.3f}" for number in numbers))
    console.print(plain, highlight=False)
    console.print(f"label rate asked for without labels: {RATE:g}; precision target: {TARGET:g}", highlight=False)
    for name, (fit_s, plain_us, decided_us) in seconds.items():
        console.print(
            f"{name}: one variant is fitted on all images in {fit_s:.1f} s; scoring a frame takes {plain_us:.0f} µs "
            f"without decisions and {decided_us:.0f} µs with them",
            highlight=False,
        )
    console.print(summary(describe_machine()), highlight=False)
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        save_plot(rows, options.output / "decisions.png")
        written = {"rows": rows, "unlabelled": unlabelled, "machine": describe_machine()}
        write_json(options.output / "decisions.json", written)


if __name__ == "__main__":
    main()
