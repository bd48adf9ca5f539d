"""Time to build a prompt table: all prompts together against class by class, interleaved in one run.

    python benchmarks/prompt_tables.py [--model ViT-B-32] [--classes 1000] [--templates imagenet]

Class by class is open_clip's own ``build_zero_shot_classifier`` with one class a batch, for open_clip models; for the
starter it is one call of the text encoder a class. Classes are encoded in alternating blocks of ``--block``, so that
both sides see the same machine. Needs the extra ``export``; random weights do for timing. Prints the machine.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from edgeclip import load_templates, make_classes
from edgeclip.devices.machine.probe import describe_machine, summary
from edgeclip.prompts import FloatArray, TextEncoder, encode_table, unit_rows
from edgeclip.training.load import load_model


def one_by_one(encoder: TextEncoder, names: list[str], templates: tuple[str, ...]) -> FloatArray:
    """Rows (C, D): one call of the encoder a class."""
    rows = []
    for name in names:
        encoded = unit_rows(encoder.encode_text([template.replace("{}", name) for template in templates]))
        rows.append(encoded.mean(axis=0))
    return unit_rows(np.stack(rows))


def main() -> None:
    """Print both times and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-32", help="an open_clip name (random weights), or starter")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--templates", default="imagenet")
    parser.add_argument("--block", type=int, default=50, help="classes a turn")
    arguments = parser.parse_args()

    import open_clip

    templates = load_templates(arguments.templates)
    names = list(dict.fromkeys(open_clip.IMAGENET_CLASSNAMES))[: arguments.classes]
    starter = arguments.model == "starter"
    model = load_model(arguments.model, pretrained=None if starter else "none")
    single: Callable[[list[str]], FloatArray] = lambda some: one_by_one(model.text, some, templates)  # noqa: E731
    if not starter:
        single = open_clip_runner(arguments.model, templates)

    def together(some: list[str]) -> FloatArray:
        return encode_table(model.text, make_classes(some), templates, name="t", model_id="m").embeddings

    single(names[:2])
    together(names[:2])
    spent = {"class by class": 0.0, "together": 0.0}
    for start in range(0, len(names), arguments.block):
        block = names[start : start + arguments.block]
        for label, function in (("class by class", single), ("together", together)):
            begin = time.perf_counter()
            function(block)
            spent[label] += time.perf_counter() - begin
    for label, seconds in spent.items():
        print(f"{label:16}{seconds:9.1f} s   {len(names) * len(templates) / seconds:8.0f} prompts/s")
    ratio = spent["class by class"] / spent["together"]
    print(f"{arguments.model}, {len(names)} classes × {len(templates)} templates: {ratio:.2f}x; ", end="")
    print(f"on {summary(describe_machine())}")


def open_clip_runner(name: str, templates: tuple[str, ...]) -> Callable[[list[str]], FloatArray]:
    """open_clip's own zero-shot classifier, one class a batch, for a model with random weights."""
    import open_clip
    import torch

    model = open_clip.create_model(name).eval()
    tokenizer = open_clip.get_tokenizer(name)
    functions = [lambda name, template=template: template.replace("{}", name) for template in templates]

    def run(some: list[str]) -> FloatArray:
        with torch.inference_mode():
            rows = open_clip.build_zero_shot_classifier(model, tokenizer, some, functions, num_classes_per_batch=1)
        return rows.T.numpy()

    return run


if __name__ == "__main__":
    main()
