"""A robustness report and those of other models in; the report with its effective robustness against their line out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from edgeclip.errors import InputError
from edgeclip.evaluation.robustness.report import EffectiveResult, RobustnessReport
from edgeclip.evaluation.statistics.effective_robustness import effective_robustness, fit_line

# A model's accuracies (clean, shift) of variant number v; None where its report has none that compare.
_Pair = Callable[[RobustnessReport, int], tuple[float, float] | None]


def against_baseline(report: RobustnessReport, baselines: Sequence[RobustnessReport]) -> RobustnessReport:
    """Effective robustness of every variant, on the corruptions and on each shift set whose classes are clean ones.

    A model gives the line one point, its report's first variant: variants of a model are no models of their own. The
    report's own model is left out of the line.

    Args:
        baselines: reports of ordinary models on the same images, corruptions and severities.

    Raises:
        InputError: a baseline on other images or conditions, or two of the same model.
    """
    for other in baselines:
        if _conditions(other) != _conditions(report):
            raise InputError(
                f"expected a baseline on the same images, corruptions, severities and prompts, got {other.model_id} on "
                f"{other.n} images of {other.data} with severities {other.severities}: run it with the same options"
            )
    others = [other for other in baselines if other.model_id != report.model_id]
    if len({other.model_id for other in others}) != len(others):
        raise InputError("expected one baseline a model, got two of the same model: leave one out")
    results = []
    if report.corruptions:
        results += _effective(report, others, "corruptions", _corrupted, report.n)
    for index, shift in enumerate(report.shifts):
        results += _effective(report, others, shift.name, _shifted(index), shift.images)
    return msgspec.structs.replace(report, effective=results)


def _effective(
    report: RobustnessReport, others: Sequence[RobustnessReport], shift: str, pair: _Pair, n: int
) -> list[EffectiveResult]:
    own = [pair(report, row) for row in range(len(report.variants))]
    line, reason = None, "the clean images are not of the same classes, so there is no clean accuracy to predict from"
    if own[0] is not None:
        points = [found for other in others if (found := pair(other, 0)) is not None]
        try:
            line = fit_line([clean for clean, _ in points], [value for _, value in points], n=n)
        except InputError as error:  # too few models, or too alike: that is the answer
            reason = str(error)
    results = []
    for variant, found in zip(report.variants, own, strict=True):
        if line is None or found is None:
            results.append(EffectiveResult(shift, variant, reason=reason))
        else:
            results.append(EffectiveResult(shift, variant, effective_robustness(line, *found, n=n)))
    return results


def _corrupted(report: RobustnessReport, variant: int) -> tuple[float, float] | None:
    return report.clean[variant].top1, report.corrupted[variant].top1


def _shifted(index: int) -> _Pair:
    def pair(report: RobustnessReport, variant: int) -> tuple[float, float] | None:
        shift = report.shifts[index]
        return None if shift.clean_top1 is None else (shift.clean_top1[variant], shift.top1[variant].top1)

    return pair


def _conditions(report: RobustnessReport) -> list[object]:
    """What has to be equal for two models to be compared."""
    return [
        report.images_id,
        report.suite,
        [item.name for item in report.corruptions],
        report.severities,
        [shift.images_id for shift in report.shifts],
        report.templates,
    ]
