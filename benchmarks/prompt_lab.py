"""How far a prompt study's choice depends on the halves, and what templates are worth.

python benchmarks/prompt_lab.py ../shared/data/caltech101 ../shared/data/cifar10-test
"""

from __future__ import annotations

import argparse
from pathlib import Path

from edgeclip import Bundle, load_templates
from edgeclip.devices.machine.probe import describe_machine, summary
from edgeclip.evaluation.prompts.study import StudyOptions, study_bundle


def main() -> None:
    """Study each folder with several halvings, and print what they say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="+", type=Path, help="folders with one folder of images a class")
    parser.add_argument("--bundle", default="starter")
    parser.add_argument("--templates", default="imagenet")
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    bundle, templates = Bundle.open(arguments.bundle), load_templates(arguments.templates)
    for data in arguments.data:
        for seed in range(arguments.seeds):
            study = study_bundle(bundle, StudyOptions(data=str(data), templates=templates, seed=seed)).report.study
            assert study.choice is not None
            verdict = "recommended" if study.choice.recommended else "within noise"
            for claim in study.choice.claims:
                print(f"{data.name}, halves {seed}: {claim.what}; {claim.difference}: {verdict}")
        alone = [item.alone.points for item in study.contributions]
        left_out = [item.left_out.points for item in study.contributions if item.left_out]
        worst = min(study.contributions, key=lambda item: item.top1)
        print(
            f"{data.name}: templates alone {min(alone):+.2f} to {max(alone):+.2f} points, left out "
            f"{min(left_out):+.2f} to {max(left_out):+.2f}; the worst alone is “{worst.what}”"
        )
    print(f"on {summary(describe_machine())}")


if __name__ == "__main__":
    main()
