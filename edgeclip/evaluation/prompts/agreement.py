"""Embeddings without labels and prompt rows in, how far templates and names agree with all of them together out.

Nothing here is accuracy. A template that differs from the rest may be the only one that is right.
"""

from __future__ import annotations

import msgspec
import numpy as np

from edgeclip.evaluation.prompts.names import kept_names
from edgeclip.evaluation.prompts.rows import PromptRows
from edgeclip.evaluation.statistics.metrics import wilson_interval
from edgeclip.prompts import FloatArray

_MAD_TO_SIGMA = 1.4826
_FAR = 4.0  # robust standard deviations below the median


class TemplateAgreement(msgspec.Struct, frozen=True):
    """One template beside all of them together.

    Attributes:
        agreement, ci95: share of images that it alone labels as all do, with its Wilson interval.
        left_out: share of labels that change without it; None where there is no other.
        margin: mean difference of the two highest cosines, of the template alone.
        apart: whether its whole interval lies four robust standard deviations below the templates' median.
    """

    template: str
    agreement: float
    ci95: tuple[float, float]
    left_out: float | None
    margin: float
    apart: bool = False


class NameAgreement(msgspec.Struct, frozen=True):
    """Share of all images that get another label if a class has this name alone, or lacks it."""

    label: str
    name: str
    alone: float
    left_out: float


class RunnerUp(msgspec.Struct, frozen=True):
    """Two classes that are first and second for some images; ``close`` of these have a second above half the first."""

    first: str
    second: str
    text_cosine: float
    images: int
    close: int


class Agreement(msgspec.Struct, frozen=True):
    """What images without labels say.

    Attributes:
        images: how many.
        margin: mean difference of the two highest cosines, with all templates and names.
        entropy: mean entropy of the scores, in bits; at most log2 of the number of classes.
        said: share of images by label, most frequent first.
        never: classes that no image is labelled as.
    """

    images: int
    margin: float
    entropy: float
    templates: list[TemplateAgreement]
    names: list[NameAgreement]
    runners_up: list[RunnerUp]
    said: list[tuple[str, float]]
    never: list[str]


def study_agreement(prompts: PromptRows, images: FloatArray, *, logit_scale: float, most_pairs: int = 10) -> Agreement:
    """Compare the labels that parts of the prompts give to (N, D) unit embeddings with those that all of them give.

    Args:
        logit_scale: of the model; scores are the softmax over classes of cosines times this.
    """
    rows = prompts.class_rows()
    cosines = images @ rows.T  # (N, C)
    order = np.argsort(-cosines, axis=1)[:, :2]  # (N, 2)
    at = np.arange(len(images))[:, None]
    first_two = cosines[at, order]
    scores = np.exp(logit_scale * (cosines - first_two[:, :1]))
    scores /= scores.sum(axis=1, keepdims=True)
    bits = -(scores * np.log2(np.maximum(scores, 1e-30))).sum(axis=1)
    said, counts = order[:, 0], np.bincount(order[:, 0], minlength=len(rows))
    close = scores[at, order][:, 1] > scores[at, order][:, 0] / 2

    def changed(other: FloatArray) -> float:
        return float(((images @ other.T).argmax(axis=1) != said).mean())

    pairs: dict[tuple[int, int], list[bool]] = {}
    for both, near in zip(np.sort(order, axis=1).tolist(), close.tolist(), strict=True):
        pairs.setdefault((both[0], both[1]), []).append(near)
    frequent = sorted(pairs.items(), key=lambda item: (-sum(item[1]), -len(item[1])))[:most_pairs]
    labels = prompts.labels
    return Agreement(
        images=len(images),
        margin=float((first_two[:, 0] - first_two[:, 1]).mean()),
        entropy=float(bits.mean()),
        templates=_templates(prompts, images, said),
        names=[
            NameAgreement(
                item.label,
                name,
                changed(prompts.class_rows(kept=kept_names(prompts, {item.label: [name]}))),
                changed(
                    prompts.class_rows(
                        kept=kept_names(prompts, {item.label: [other for other in item.names if other != name]})
                    )
                ),
            )
            for item in prompts.classes
            if len(item.names) > 1
            for name in item.names
        ],
        runners_up=[
            RunnerUp(labels[a], labels[b], float(rows[a] @ rows[b]), len(near), sum(near))
            for (a, b), near in frequent
            if sum(near)
        ],
        said=[
            (labels[index], float(counts[index] / len(images)))
            for index in np.argsort(-counts, kind="stable")
            if counts[index]
        ],
        never=[label for label, count in zip(labels, counts, strict=True) if not count],
    )


def _templates(prompts: PromptRows, images: FloatArray, said: np.typing.NDArray[np.int64]) -> list[TemplateAgreement]:
    found: list[TemplateAgreement] = []
    several = len(prompts.templates) > 1
    for index, template in enumerate(prompts.templates):
        cosines = images @ prompts.class_rows([index]).T
        second, first = np.partition(cosines, -2, axis=1)[:, -2:].T
        same = int((cosines.argmax(axis=1) == said).sum())
        without = (images @ prompts.without_template(index).T).argmax(axis=1) if several else None
        found.append(
            TemplateAgreement(
                template,
                agreement=same / len(images),
                ci95=wilson_interval(same, len(images)),
                left_out=None if without is None else float((without != said).mean()),
                margin=float((first - second).mean()),
            )
        )
    rates = np.array([item.agreement for item in found])
    middle = float(np.median(rates))
    spread = max(_MAD_TO_SIGMA * float(np.median(np.abs(rates - middle))), 0.005)
    lowest = middle - _FAR * spread
    return [msgspec.structs.replace(item, apart=several and item.ci95[1] < lowest) for item in found]
