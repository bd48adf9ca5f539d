"""Zero-shot accuracy of the shipped starter beside the no-training stand-in, on the same files and prompts.

    python benchmarks/starter_accuracy.py ../shared/data/caltech101 ../shared/data/cifar10-test

The stand-in is what the same two pretrained towers give with no training at all: the image tower's softmax over the
ImageNet classes (its ten largest) weights the sentence vectors of their names. Needs the extra ``dev`` and folders with
one folder of images a class.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from edgeclip import Bundle, load_templates
from edgeclip.devices.probe import describe_machine, summary
from edgeclip.evaluation.zeroshot import class_prompts, evaluate_folder, true_class_ranks
from edgeclip.prompts import FloatArray, build_table, make_classes, unit_rows
from edgeclip.runtime.images import list_images, read_image
from edgeclip.runtime.preprocess import Preprocessor
from edgeclip.training.features import load_tower
from edgeclip.training.towers import MiniLm, image_tower

TOP = 10


class Sentences:
    """MiniLM as a text encoder for :func:`build_table`."""

    def __init__(self) -> None:
        self.tower = MiniLm()

    def encode_text(self, texts: list[str]) -> FloatArray:
        """Unit sentence vectors (N, 384)."""
        return self.tower.sentences(texts).numpy()


def stand_in(data: Path, templates: tuple[str, ...]) -> tuple[float, float]:
    """Top-1 and top-5 of the stand-in."""
    tower, sentences = image_tower("efficientnet-lite0"), Sentences()
    weight, bias = (value.numpy() for value in tower.classifier)
    imagenet = build_table(
        sentences,
        make_classes({f"{i} {n}": [n] for i, n in enumerate(tower.class_names)}),
        templates,
        name="i",
        model_id="",
    )
    folders = sorted(item for item in data.iterdir() if item.is_dir())
    table = build_table(
        sentences, class_prompts([folder.name for folder in folders], None), templates, name="t", model_id=""
    )
    preprocess = Preprocessor(tower.preprocess)
    ranks = []
    with load_tower(tower) as engine:
        for index, folder in enumerate(folders):
            for path in list_images(folder):
                features = engine.infer(preprocess(read_image(path))[None])
                probabilities = torch.softmax(torch.from_numpy(features @ weight.T + bias), dim=1).numpy()[0]
                best = np.argsort(-probabilities)[:TOP]
                embedding = unit_rows((probabilities[best] @ imagenet.embeddings[best])[None])
                ranks.append(true_class_ranks(embedding @ table.embeddings.T, np.array([index]))[0])
    return float(np.mean(np.array(ranks) == 0)), float(np.mean(np.array(ranks) < 5))


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", type=Path, help="folders with one folder of images a class")
    parser.add_argument("--templates", default="simple")
    arguments = parser.parse_args()
    templates = load_templates(arguments.templates)
    bundle = Bundle.open("starter")
    table = Table("data", "model", "top-1", "95 %", "top-5", "images", box=None, header_style="bold", padding=(0, 2))
    for data in arguments.data:
        top1, top5 = stand_in(data, templates)
        table.add_row(data.name, "stand-in, no training", f"{top1:.3f}", "", f"{top5:.3f}", "")
        for variant in bundle.manifest.variants:
            result = evaluate_folder(bundle, data, templates=templates, variant=variant.name)
            interval = f"{result.ci95[0]:.3f}–{result.ci95[1]:.3f}"
            row = (f"starter {variant.name}", f"{result.top1:.3f}", interval, f"{result.top5:.3f}", str(result.n))
            table.add_row("", *row)
    console = Console(width=110)
    console.print(table)
    console.print(f"templates {arguments.templates}; on {summary(describe_machine())}", highlight=False)


if __name__ == "__main__":
    main()
