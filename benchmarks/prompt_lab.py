"""How far a prompt study's choice depends on the halves, what templates are worth, and if agreement foretells it.

python benchmarks/prompt_lab.py ../shared/data/caltech101 ../shared/data/cifar10-test
"""

from __future__ import annotations

import argparse
from pathlib import Path

from scipy.stats import spearmanr

from edgeclip import Bundle, load_templates
from edgeclip.devices.machine.probe import describe_machine, summary
from edgeclip.evaluation.prompts.run import StudyOptions, study_bundle


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
            options = StudyOptions(data=str(data), unlabelled=data, templates=templates, seed=seed)
            study = study_bundle(bundle, options).report.study
            assert study.subset is not None
            assert study.verdict is not None
            assert study.agreement is not None
            verdict = "recommended" if study.verdict.recommended else "within noise"
            print(
                f"{data.name}, halves {seed}: {len(study.subset.templates)} of {len(templates)} templates, "
                f"{study.subset.chosen_twice} of them chosen by both halves; {study.subset.difference}: {verdict}"
            )
        of_template = {item.template: item.agreement for item in study.agreement.templates}
        agreement = [of_template[item.template] for item in study.template_results]
        accuracy = [item.alone.points for item in study.template_results]
        left_out = [item.left_out.points for item in study.template_results if item.left_out]
        worst = min(study.template_results, key=lambda item: item.alone.points)
        print(
            f"{data.name}: templates alone {min(accuracy):+.2f} to {max(accuracy):+.2f} points, left out "
            f"{min(left_out):+.2f} to {max(left_out):+.2f}; the worst, “{worst.template}”, agrees with all on "
            f"{of_template[worst.template]:.1%}"
        )
        found = spearmanr(agreement, accuracy)
        print(
            f"{data.name}: Spearman's rho of {len(templates)} templates' agreement and accuracy {found.statistic:.2f} "
            f"(p {found.pvalue:.2f})"
        )
    print(f"on {summary(describe_machine())}")


if __name__ == "__main__":
    main()
