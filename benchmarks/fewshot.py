"""The few-shot curve of a bundle: top-1 over labelled images a class, every method, with seeds and confidence bands.

    python benchmarks/fewshot.py --data ../shared/data/caltech101 ../shared/data/cifar10-test

Writes ``fewshot.png`` (one panel a data set), ``fewshot.json`` and ``fewshot.txt``. Shots that a data set does not have
are brought down to what it has: a quarter of each class is kept to test on. Needs the extra ``train``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from edgeclip import Bundle, load_templates
from edgeclip.evaluation.fewshot import FewShotOptions, curve_lines, curve_of_bundle, plot_curves
from edgeclip.files import write_json, write_text
from edgeclip.training.adapt.curve import SHOTS, CurveOptions
from edgeclip.training.adapt.fewshot import METHODS


def main() -> None:
    """Draw one figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", type=Path, required=True, help="folders with one folder of images a class")
    parser.add_argument("--bundle", default="starter")
    parser.add_argument("--variant", default="fp32")
    parser.add_argument("--templates", default="simple")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--shots", nargs="+", type=int, default=list(SHOTS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("fewshot-results"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the fits are small: more threads cost more than they bring
    options = FewShotOptions(templates=load_templates(arguments.templates), variant=arguments.variant)
    curve = CurveOptions(tuple(arguments.methods), tuple(arguments.shots), arguments.seeds)
    reports, lines = [], []
    for data in arguments.data:
        reports.append(curve_of_bundle(Bundle.open(arguments.bundle), data, options, curve))
        lines += [*curve_lines(reports[-1]), ""]
        print("\n".join(curve_lines(reports[-1])), end="\n\n", flush=True)
    write_json(arguments.output / "fewshot.json", reports)
    write_text(arguments.output / "fewshot.txt", "\n".join(lines))
    plot_curves(reports, arguments.output / "fewshot.png")


if __name__ == "__main__":
    main()
