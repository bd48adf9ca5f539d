"""How far a prompt study's choice depends on the halves, and whether agreement without labels foretells accuracy.

python benchmarks/prompt_lab.py ../shared/data/caltech101 ../shared/data/cifar10-test
"""

from __future__ import annotations

import argparse
from pathlib import Path

from scipy.stats import spearmanr

from edgeclip import Bundle, load_templates
from edgeclip.devices.probe import describe_machine, summary
from edgeclip.evaluation.prompt_run import StudyOptions, study_bundle


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
        found = spearmanr(agreement, accuracy)
        print(
            f"{data.name}: Spearman's rho of {len(templates)} templates' agreement and accuracy {found.statistic:.2f} "
            f"(p {found.pvalue:.2f})"
        )
    print(f"on {summary(describe_machine())}")


if __name__ == "__main__":
    main()
