"""Two encoders' embeddings of the same images in, how well they agree out; or an error that names the worst."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from edgeclip.errors import InputError, ParityError
from edgeclip.prompts import FloatArray, unit_rows
from edgeclip.spec import Precision

_WORST = 3
_ROUNDING = 1e-6  # a gap between two classes that float32 may make of none
DECIDED = 0.5  # of the median gap: what FP32 decides by more than that should stay decided


class ParityLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What a variant must reach against FP32. Chosen on damage whose price is known: see ``docs/quantization.md``.

    Attributes:
        min_cosine: of the embeddings, the worst over images.
        min_centred_cosine, mean_centred_cosine: of embeddings less FP32's mean over the images.
        agreement: fraction of images whose best class is FP32's.
        decided_agreement: the same of the images that FP32 decides by more than half of the median gap.
        mean_margin_loss, margin_loss: mean and 95th percentile over images, in units of the table's median gap (see
            ``ParityReport``).
    """

    min_cosine: float
    min_centred_cosine: float
    mean_centred_cosine: float
    agreement: float
    decided_agreement: float = 0.0
    mean_margin_loss: float = np.inf
    margin_loss: float


LIMITS: dict[Precision, ParityLimits] = {
    "fp32": ParityLimits(
        min_cosine=0.9999,
        min_centred_cosine=0.9999,
        mean_centred_cosine=0.9999,
        agreement=0.98,
        decided_agreement=0.98,
        mean_margin_loss=0.01,
        margin_loss=0.05,
    ),
    "fp16": ParityLimits(
        min_cosine=0.9995,
        min_centred_cosine=0.999,
        mean_centred_cosine=0.9995,
        agreement=0.95,
        decided_agreement=0.98,
        mean_margin_loss=0.02,
        margin_loss=0.1,
    ),
    "bf16": ParityLimits(
        min_cosine=0.985,
        min_centred_cosine=0.95,
        mean_centred_cosine=0.99,
        agreement=0.9,
        decided_agreement=0.95,
        mean_margin_loss=0.08,
        margin_loss=0.6,
    ),
    "int8": ParityLimits(
        min_cosine=0.95,
        min_centred_cosine=0.95,
        mean_centred_cosine=0.985,
        agreement=0.89,
        decided_agreement=0.95,
        mean_margin_loss=0.13,
        margin_loss=1.2,
    ),
}


class Check(msgspec.Struct, frozen=True):
    """One limit of a proof.

    Attributes:
        figure: what is limited.
        expected: "at least 0.95".
        got: as written; None where it could not be taken.
        passed: whether it was taken and keeps the limit.
    """

    figure: str
    expected: str
    got: str | None
    passed: bool

    @property
    def status(self) -> Literal["checked", "failed", "could not be checked"]:
        """What became of it."""
        return "could not be checked" if self.got is None else "checked" if self.passed else "failed"

    def __str__(self) -> str:
        return f"a {self.figure} of {self.expected}, got {self.got or 'no prompt table to take it on'}"


class ParityReport(msgspec.Struct, frozen=True, kw_only=True):
    """How a candidate's embeddings agree with the reference's, image by image.

    Embeddings of one model share a large common part, and a wrong graph can keep that part and lose what tells images
    apart. So the cosine is also taken between embeddings less the reference's mean over the images.

    A class that wins by little may change without harm. So beside the agreement of the best class there is the loss of
    margin: how far the reference's best class lies above the next one, less how far it does for the candidate, divided
    by the median of the former over the images. Above 1, a typical decision has lost all that it was made by.

    Attributes:
        images: how many were compared.
        batch_sizes: the candidate's, each compared on all images; the figures are the worst over them.
        mean_cosine, p01_cosine, min_cosine: over images; p01 is the 1st percentile.
        mean_centred_cosine, min_centred_cosine: the same after subtracting the reference's mean; None for one image.
        max_relative_error: largest ‖candidate − reference‖ / ‖reference‖ of an image.
        max_abs_difference: largest difference of one number.
        classes: of the prompt table that the following two were taken on; 0 and None if there was none.
        agreement: fraction of images whose best class is the reference's.
        decided: images whose best class the reference puts above the next by more than half of the median gap.
        decided_agreement: the same fraction of those.
        mean_margin_loss, p95_margin_loss: over images.
        worst: names of the images with the lowest cosines, the worst first.
    """

    images: int
    batch_sizes: tuple[int, ...]
    mean_cosine: float
    p01_cosine: float
    min_cosine: float
    mean_centred_cosine: float | None
    min_centred_cosine: float | None
    max_relative_error: float
    max_abs_difference: float
    classes: int = 0
    agreement: float | None = None
    decided: int = 0
    decided_agreement: float | None = None
    mean_margin_loss: float | None = None
    p95_margin_loss: float | None = None
    worst: tuple[str, ...]

    def checks(self, limits: ParityLimits) -> tuple[Check, ...]:
        """Every limit: reached, not reached, or could not be checked, and why."""
        at_least = (
            ("cosine", self.min_cosine, limits.min_cosine),
            ("mean-centred cosine", self.min_centred_cosine, limits.min_centred_cosine),
            ("mean of the mean-centred cosine", self.mean_centred_cosine, limits.mean_centred_cosine),
            ("top-1 agreement", self.agreement, limits.agreement),
            ("top-1 agreement where FP32 decides clearly", self.decided_agreement, limits.decided_agreement),
        )
        at_most = (
            ("mean margin loss", self.mean_margin_loss, limits.mean_margin_loss),
            ("margin loss", self.p95_margin_loss, limits.margin_loss),
        )
        # a NaN is within no limit
        return (
            *(
                Check(
                    figure,
                    f"at least {limit:g}",
                    None if value is None else f"{value:.6f}",
                    passed=value is not None and value >= limit,
                )
                for figure, value, limit in at_least
            ),
            *(
                Check(
                    figure,
                    f"at most {limit:g} gaps",
                    None if value is None else f"{value:.3f}",
                    passed=value is not None and value <= limit,
                )
                for figure, value, limit in at_most
            ),
        )

    def failures(self, limits: ParityLimits) -> list[str]:
        """Every limit that is not reached, as "a cosine of at least 0.99, got 0.95"."""
        return [str(check) for check in self.checks(limits) if check.status == "failed"]

    def require(self, limits: ParityLimits, *, what: str) -> ParityReport:
        """Return self, or refuse.

        Args:
            what: what was compared, to begin the sentence.

        Raises:
            ParityError: below a limit; names the worst images, what was expected and got.
        """
        if failed := self.failures(limits):
            raise ParityError(
                f"{what}: expected {' and '.join(failed)} (worst of {self.images} images: {', '.join(self.worst)}): "
                "do not use this file"
            )
        return self


def compare_embeddings(
    reference: FloatArray,
    candidate: FloatArray,
    names: Sequence[str],
    *,
    batch_size: int,
    classes: FloatArray | None = None,
) -> ParityReport:
    """Compare (N, D) embeddings row by row; neither needs to be normalised.

    Args:
        names: of the N images.
        batch_size: with which the candidate was made, for the report.
        classes: (C, D) unit rows of a prompt table, C ≥ 2, for agreement and margin, which are not taken where the
            rows do not differ.

    Raises:
        InputError: no image, or shapes that differ.
    """
    if reference.shape != candidate.shape or reference.ndim != 2 or len(reference) != len(names) or not len(names):
        raise InputError(
            f"expected {len(names)} rows of embeddings from both, got {reference.shape} and {candidate.shape}"
        )
    exact, tried = reference.astype(np.float64), candidate.astype(np.float64)
    difference = tried - exact
    cosine = _cosine(exact, tried)
    centre = exact.mean(axis=0)
    centred = _cosine(exact - centre, tried - centre) if len(names) > 1 else None
    lowest = cosine if centred is None else np.minimum(cosine, centred)
    order = np.argsort(np.where(np.isnan(lowest), -np.inf, lowest))  # NaN would come last
    report = ParityReport(
        images=len(names),
        batch_sizes=(batch_size,),
        mean_cosine=float(cosine.mean()),
        p01_cosine=float(np.percentile(cosine, 1)),
        min_cosine=float(cosine.min()),
        mean_centred_cosine=None if centred is None else float(centred.mean()),
        min_centred_cosine=None if centred is None else float(centred.min()),
        max_relative_error=float((np.linalg.norm(difference, axis=1) / np.linalg.norm(exact, axis=1)).max()),
        max_abs_difference=float(np.abs(difference).max()),
        worst=tuple(names[index] for index in order[:_WORST]),
    )
    if classes is None or len(classes) < 2:
        return report
    scores = unit_rows(reference) @ classes.T
    if np.median(_margin(scores, scores.argmax(axis=1))) <= _ROUNDING:
        return report  # rows that are equal: what is decided between them is rounding
    decisions = compare_decisions(scores, unit_rows(candidate) @ classes.T)
    return msgspec.structs.replace(report, **msgspec.structs.asdict(decisions))


class ComparedDecisions(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of a ``ParityReport`` that are taken on a prompt table."""

    classes: int
    agreement: float
    decided: int
    decided_agreement: float
    mean_margin_loss: float
    p95_margin_loss: float


def compare_decisions(reference: FloatArray, candidate: FloatArray) -> ComparedDecisions:
    """What becomes of the reference's decisions, from similarities (N, C) of the same images to C ≥ 2 classes."""
    best = reference.argmax(axis=1)
    same, (margin, loss) = candidate.argmax(axis=1) == best, _margins(reference, candidate, best)
    decided = margin > DECIDED
    return ComparedDecisions(
        classes=reference.shape[1],
        agreement=float(same.mean()),
        decided=int(decided.sum()),
        decided_agreement=float(same[decided].mean()) if decided.any() else float(same.mean()),
        mean_margin_loss=float(loss.mean()),
        p95_margin_loss=float(np.percentile(loss, 95)),
    )


def worst_of(reports: Sequence[ParityReport]) -> ParityReport:
    """One report from those of several batch sizes: each figure is the worst of them."""
    worst = min(  # NaN before all numbers
        reports,
        key=lambda report: (not np.isnan(report.min_cosine), report.min_cosine, -report.max_relative_error),
    )
    figures: dict[str, float | None] = {}
    cosines = ("mean_cosine", "p01_cosine", "min_cosine", "mean_centred_cosine", "min_centred_cosine")
    for name in (*cosines, "agreement", "decided_agreement"):
        figures[name] = _extreme(np.min, reports, name)
    for name in ("max_relative_error", "max_abs_difference", "mean_margin_loss", "p95_margin_loss"):
        figures[name] = _extreme(np.max, reports, name)
    sizes = tuple(size for report in reports for size in report.batch_sizes)
    return msgspec.structs.replace(worst, batch_sizes=sizes, **figures)


def _extreme(of: Callable[[list[float]], np.floating], reports: Sequence[ParityReport], name: str) -> float | None:
    """The least or largest of a figure; NaN if one is, unlike Python's own ``min``; None if it was not taken."""
    taken = [value for report in reports if (value := getattr(report, name)) is not None]
    return float(of(taken)) if taken else None


def _margins(
    reference: FloatArray, candidate: FloatArray, best: npt.NDArray[np.intp]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Each image's margin (N,), and its loss of it (N,), both in units of the reference's median margin."""
    before, after = _margin(reference, best), _margin(candidate, best)
    unit = max(float(np.median(before)), 1e-12)
    return before / unit, (before - after) / unit


def _margin(scores: FloatArray, best: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
    """How far the class ``best[i]`` lies above the highest other one in row i; negative if below."""
    rows = np.arange(len(scores))
    own = scores[rows, best].astype(np.float64)
    others = scores.astype(np.float64)
    others[rows, best] = -np.inf
    margin: npt.NDArray[np.float64] = own - others.max(axis=1)
    return margin


def _cosine(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Cosine of each pair of rows; 0 where a row is zero."""
    products = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine: npt.NDArray[np.float64] = (a * b).sum(axis=1) / np.maximum(products, 1e-30)
    return cosine
