"""Zero-shot accuracy of the shipped starter beside the no-training stand-in, and what prompt ensembling brings, by set.

    python benchmarks/starter_accuracy.py ../shared/data/caltech101 ../shared/data/cifar10-test \\
        ../shared/data/cue-conflict/* --captions ../shared/data/coco-captions/captions.jsonl --output starter-results

The stand-in is what the same two pretrained towers give with no training at all: the image tower's softmax over the
ImageNet classes (its ten largest) weights the sentence vectors of their names. Prompt ensembling is measured on the
same images and in pairs: rows of the name alone, of one prompt, of 7 and of 80. With captions, each caption looks for
its own image among all (R@1). ``--output`` takes ``starter.png`` and ``starter.json``. Needs the extra ``train``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.table import Table

from edgeclip import Bundle, load_templates
from edgeclip.calibration.embeddings import image_embeddings
from edgeclip.devices.machine.probe import describe_machine, summary
from edgeclip.evaluation.data.class_sets import class_prompts
from edgeclip.evaluation.data.dataset import Items, open_captioned, open_labelled
from edgeclip.evaluation.statistics.metrics import predictions, recall, text_to_image_ranks, top_k, wilson_interval
from edgeclip.evaluation.statistics.paired import paired_difference
from edgeclip.files import atomic_file, write_json
from edgeclip.prompts import FloatArray, TextEncoder, encode_table, make_classes, unit_rows
from edgeclip.training.load import load_text_tower
from edgeclip.training.loop.features import features_of
from edgeclip.training.towers.pretrained import MiniLm, efficientnet_lite0

TOP = 10
ONE_PROMPT = "a photo of a {}."
STAND_IN = "stand-in"
Ranks = npt.NDArray[np.intp]


class Embedded(NamedTuple):
    """Unit embeddings (N, D) of a set's images by one model, and that model's text encoder."""

    images: FloatArray
    text: TextEncoder


class Score(msgspec.Struct, frozen=True):
    """A share of N trials, its 95 % interval (Wilson's; of captions a bootstrap's), and the share of the first five."""

    top1: float
    ci95: tuple[float, float]
    top5: float
    n: int


class Gain(msgspec.Struct, frozen=True):
    """Percentage points that some prompts bring over one prompt a class, and their 95 % interval."""

    prompts: str
    points: float
    ci95: tuple[float, float]


class SetResult(msgspec.Struct, frozen=True):
    """One set: scores by model, and the starter's gain by prompts."""

    name: str
    measure: str
    scores: dict[str, Score]
    gains: list[Gain]


class StandIn:
    """The two towers with no training, on images given by their files."""

    def __init__(self) -> None:
        self._tower, self._sentences = efficientnet_lite0(), MiniLm()
        names = make_classes({f"{i} {n}": [n] for i, n in enumerate(self._tower.class_names)})
        templates = load_templates("simple")
        self._classes = encode_table(self, names, templates, name="i", model_id="").embeddings

    def encode_text(self, texts: Sequence[str]) -> FloatArray:
        """Unit sentence vectors (M, 384)."""
        return self._sentences.sentences(list(texts)).numpy()

    def embed(self, items: Items) -> FloatArray:
        """Unit mixtures of the names' sentence vectors (N, 384)."""
        assert self._tower.classifier is not None
        weight, bias = self._tower.classifier
        features = torch.from_numpy(features_of(self._tower, (item.read() for item in items))).float()
        probabilities = torch.softmax(features @ weight.T + bias, dim=1).numpy()  # (N, 1000)
        smallest = np.sort(probabilities, axis=1)[:, -TOP, None]
        return unit_rows(np.where(probabilities >= smallest, probabilities, 0) @ self._classes)


def score(ranks: Ranks) -> Score:
    """Of the ranks (N,) of what was looked for."""
    first, five = top_k(ranks, 1), top_k(ranks, 5)
    return Score(first.value, first.ci95, five.value, len(ranks))


def class_ranks(model: Embedded, folders: Sequence[str], labels: Ranks, templates: Sequence[str]) -> Ranks:
    """Rank (N,) of each image's own class."""
    classes = class_prompts(folders, None)
    rows = encode_table(model.text, classes, templates, name="t", model_id="").embeddings
    return predictions(model.images, rows, labels).ranks


def classification(data: Path, models: dict[str, Callable[[Items], Embedded]]) -> SetResult:
    """Top-1 of each model on a folder of classes, and what prompt ensembling brings the last of them."""
    labelled = open_labelled(data)
    folders, labels = labelled.folders, labelled.labels
    scores, gains = {}, []
    for name, embed in models.items():
        model = embed(labelled.items)
        scores[name] = score(class_ranks(model, folders, labels, load_templates("simple")))
    one = class_ranks(model, folders, labels, (ONE_PROMPT,)) == 0
    for prompts, templates in (
        ("the name alone", ("{}",)),
        ("7 prompts, simple", load_templates("simple")),
        ("80 prompts, imagenet", load_templates("imagenet")),
    ):
        difference = paired_difference(one, class_ranks(model, folders, labels, templates) == 0)
        gains.append(Gain(prompts, difference.points, difference.ci95))
    kind = data.parent.name + " " if data.parent.name == "cue-conflict" else ""
    return SetResult(kind + data.name, f"top-1 of {len(folders)}", scores, gains)


def retrieval(captions: Path, models: dict[str, Callable[[Items], Embedded]]) -> SetResult:
    """R@1 of text → image: every caption against all images; the interval is a bootstrap's over images."""
    data = open_captioned(captions)
    scores = {}
    for name, embed in models.items():
        model = embed(data.items)
        texts = unit_rows(model.text.encode_text(data.captions))
        found = recall(text_to_image_ranks(texts, model.images, data.own), data.own)
        scores[name] = Score(found.r1, found.r1_ci95, found.r5, found.n)
    return SetResult(captions.parent.name, f"text→image R@1 of {len(data.items)}", scores, [])


def joined(results: Sequence[SetResult], name: str) -> SetResult:
    """Several sets as one: shares weighted by their images."""
    scores = {}
    for model in results[0].scores:
        parts = [result.scores[model] for result in results]
        n, hits = sum(part.n for part in parts), round(sum(part.top1 * part.n for part in parts))
        top5 = sum(part.top5 * part.n for part in parts) / n
        scores[model] = Score(hits / n, wilson_interval(hits, n), top5, n)
    return SetResult(name, results[0].measure, scores, [])


def plot(results: Sequence[SetResult], path: Path, log: Path | None) -> None:
    """Scores by set, the gains of prompt ensembling, and the loss of a training's ``log.jsonl`` if there is one."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    widths = (3, 2, 1.2) if log else (3, 2)
    figure, panels = plt.subplots(
        1, len(widths), figsize=(13 + 3 * bool(log), 4.8), width_ratios=widths, layout="constrained"
    )
    left, right = panels[:2]
    models = list(results[0].scores)
    for index, model in enumerate(models):
        found = [result.scores[model] for result in results]
        at = np.arange(len(results)) + (index - (len(models) - 1) / 2) * 0.8 / len(models)
        errors = np.array([[max(0.0, s.top1 - s.ci95[0]), s.ci95[1] - s.top1] for s in found]).T
        left.bar(at, [s.top1 for s in found], 0.75 / len(models), yerr=errors, capsize=2, label=model)
    labels = ["\n".join([*result.name.split(" ", 1), result.measure]) for result in results]
    left.set_xticks(np.arange(len(results)), labels, fontsize=7)
    left.set_ylabel("share, with 95 % interval")
    left.set_title("Zero-shot, prompts `simple`; captions as they are", fontsize=10)
    left.legend()
    gained = [result for result in results if result.gains]
    for index, gain in enumerate(gained[0].gains):
        rows = [result.gains[index] for result in gained]
        at = np.arange(len(gained)) + (index - 1) * 0.22
        errors = np.array([[r.points - r.ci95[0], r.ci95[1] - r.points] for r in rows]).T
        right.errorbar(at, [r.points for r in rows], errors.clip(0), fmt="o", capsize=3, label=gain.prompts)
    right.axhline(0, color="grey", linewidth=0.8)
    right.set_xticks(np.arange(len(gained)), [r.name.replace(" ", "\n") for r in gained], fontsize=7)
    right.set_ylabel("points over one prompt, paired, 95 %")
    right.set_title(f"The starter's prompt ensembling against “{ONE_PROMPT}”", fontsize=10)
    right.legend(fontsize=8)
    if log:
        steps = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        panels[2].plot([step["step"] for step in steps], [step["loss"] for step in steps], linewidth=0.8)
        panels[2].set_title("Training", fontsize=10)
        panels[2].set_xlabel("step")
        panels[2].set_ylabel("loss of a batch")
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)


def main() -> None:
    """Print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", type=Path, help="folders with one folder of images a class")
    parser.add_argument("--captions", type=Path, help='JSON lines {"image", "captions"}')
    parser.add_argument("--bundle", default="starter")
    parser.add_argument("--output", type=Path, help="folder for starter.png and starter.json")
    parser.add_argument("--log", type=Path, help="log.jsonl of the starter's training, drawn beside")
    given = parser.parse_args()
    bundle, stand_in = Bundle.open(given.bundle), StandIn()
    text = load_text_tower(bundle.manifest.model)

    def of_variant(variant: str) -> Callable[[Items], Embedded]:
        return lambda items: Embedded(image_embeddings(bundle, variant, items).rows, text)

    models = {STAND_IN: lambda items: Embedded(stand_in.embed(items), stand_in)}
    models |= {f"starter {item.name}": of_variant(item.name) for item in reversed(bundle.manifest.variants)}
    results = [classification(data, models) for data in given.data]
    cue = [result for result in results if result.name.startswith("cue-conflict ")]
    if len(cue) > 1:
        results.append(joined(cue, "cue-conflict, all"))
    if given.captions:
        results.append(retrieval(given.captions, models))

    console = Console(width=120, highlight=False)
    table = Table("set", "measure", "model", "score", "95 %", "first five", "n", box=None, header_style="bold")
    for result in results:
        for model, found in result.scores.items():
            low, high = found.ci95
            row = (f"{found.top1:.3f}", f"{low:.3f}–{high:.3f}", f"{found.top5:.3f}", str(found.n))
            first = model == STAND_IN
            table.add_row(result.name if first else "", result.measure if first else "", model, *row)
    console.print(table)
    gains = Table("prompt ensembling", "prompts", f"points over “{ONE_PROMPT}”", "95 %", box=None, header_style="bold")
    for result in results:
        for gain in result.gains:
            low, high = gain.ci95
            name = result.name if gain is result.gains[0] else ""
            gains.add_row(name, gain.prompts, f"{gain.points:+.2f}", f"{low:+.2f} to {high:+.2f}")
    console.print()
    console.print(gains)
    console.print(f"\non {summary(describe_machine())}")
    if given.output:
        write_json(given.output / "starter.json", results)
        plot(results, given.output / "starter.png", given.log)


if __name__ == "__main__":
    main()
