"""A calibration set, or a comparison of one with other footage, in; one HTML page that needs nothing else out.

The images of a calibration set in, one picture of all of them out, exposure by exposure: to be looked at.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeclip.calibration.choice.chosen_set import CalibrationSet
from edgeclip.calibration.choice.coverage import Coverage, Distances
from edgeclip.calibration.choice.drift import Drift
from edgeclip.calibration.choice.survey import Sampled
from edgeclip.evaluation.html_page import Markup, element, interval, lines, page, picture, scale, span_of, table
from edgeclip.evaluation.robustness.views import middle_square
from edgeclip.runtime.images import Image, decode_image, opencv

_SHOWN = 20


def coverage_page(record: CalibrationSet, images: Sequence[Image], worst: Sequence[tuple[float, Sampled]]) -> Markup:
    """The report of ``edgeclip calibrate images``.

    Args:
        images: of the record, in its order; the first are shown.
        worst: held-out frames, the worst covered first, each with its distance to the set.
    """
    sections = [_head(record)]
    if record.coverage:
        sections += [_distances(record.coverage), _strata(record.coverage)]
    first = [
        picture(images[number], f"{item.name}: {item.distance:.2f}")
        for number, item in enumerate(record.images[:_SHOWN])
    ]
    sections.append(
        _section(
            "Taken first",
            f"The first {len(first)} of {len(record.images)}, each with its distance to the nearest taken before it. "
            "All are in coverage.png.",
            element("div", *first, class_="pictures"),
        )
    )
    if worst:
        far = [
            picture(decode_image(item.look, name=item.label), f"{item.label}, {distance:.2f}")
            for distance, item in worst[:_SHOWN]
        ]
        sections.append(
            _section(
                "Covered worst",
                "Held-out frames that lie farthest from the set, with that distance. If they matter, add footage like "
                "them.",
                element("div", *far, class_="pictures"),
            )
        )
    sections.append(_footage(record))
    return page("Calibration images", *sections)


def drift_page(drift: Drift) -> Markup:
    """The report of ``edgeclip calibrate drift``."""
    kind = {"yes": "good", "no": "warn"}.get(drift.covered, "quiet")
    first = drift.beyond[0]
    facts = [
        _fact("covered", element("span", drift.covered, class_=kind)),
        _fact(f"farther than {1 - first.expected:.0%} of A's own", f"{first.share:.1%}"),
        _fact("energy distance", f"{drift.energy:.4f}", f" p = {drift.p_value:.3f}"),
        _fact("exposures not in the set", f"{drift.unseen_exposure:.1%}"),
    ]
    head = element(
        "section",
        element("h1", "Drift of footage from a calibration set"),
        element("p", f"A: {drift.a}. B: {drift.b}.", class_="quiet"),
        element("p", drift.verdict, class_="none"),
        element("dl", *facts, class_="facts"),
    )
    sides = [
        ["A, held out", f"{drift.frames_a:,}", f"{drift.blocks_a:,}", f"{drift.median_a:.3f}"],
        ["B", f"{drift.frames_b:,}", f"{drift.blocks_b:,}", f"{drift.median_b:.3f}"],
    ]
    limits = [
        [
            f"{1 - item.expected:.0%} of A's own",
            f"{item.limit:.3f}",
            f"{item.share:.1%}",
            f"{item.ci95[0]:.1%}–{item.ci95[1]:.1%}",
            f"{item.expected:.0%}",
            f"{item.tolerated:.0%}",
            item.covered,
        ]
        for item in drift.beyond
    ]
    said = (
        f"Distances of unit embeddings (0 to 2) to the nearest of A's {drift.chosen} images. The limits are what such "
        "a share of A's held-out frames keeps within. Intervals are over blocks of time, or files, drawn again."
    )
    distances = _section(
        "Coverage",
        said,
        table(["frames of", "frames", "blocks", "median distance"], sides, numbers=(1, 2, 3)),
        element("h3", "frames of B that lie farther from the set than"),
        table(["", "limit", "of B", "95 %", "expected", "tolerated", "covered"], limits, numbers=(1, 2, 3, 4, 5)),
    )
    rows = [[item.name, _spread(item.a), _spread(item.b), f"{item.b[0] - item.a[0]:+.1f}"] for item in drift.exposure]
    exposure = _section(
        "Exposure",
        "Mean ± standard deviation over the frames, grey levels of 0 to 255.",
        table(["", "A", "B", "B less A"], rows, numbers=(1, 2, 3)),
    )
    return page(f"Drift: {drift.b} against {drift.a}", head, distances, exposure)


def _head(record: CalibrationSet) -> Markup:
    facts = [
        _fact("images", f"{len(record.images):,}", f" of {record.options['count']} asked"),
        _fact("frames looked at", f"{record.counts.seen:,}"),
        _fact("different enough", f"{record.counts.pool:,}", f" of at most {record.counts.pool_size:,}"),
        _fact("all within", f"{record.radius + record.slack:.3f}"),
        _fact("model", record.model_id, f" {record.variant}"),
    ]
    verdict = [element("p", record.coverage.verdict, class_="none")] if record.coverage else []
    notes = [element("p", note, class_="warn") for note in record.notes]
    return element(
        "section",
        element("h1", "Calibration images"),
        element("p", ", ".join(source.name for source in record.sources), class_="quiet"),
        *verdict,
        *notes,
        element("dl", *facts, class_="facts"),
    )


def _distances(coverage: Coverage) -> Markup:
    said = (
        f"{coverage.held_out:,} frames held out in {coverage.blocks:,} blocks of time or files; the distance of each "
        "unit embedding (0 to 2) to the nearest image of the set, and to the nearest frame of a random set of "
        f"{coverage.random_count} (mean over {coverage.random_sets} sets). “Nearer by” is how much nearer the choice "
        "is, with its 95 % interval over blocks drawn again. Covering the edge may cost something on average."
    )
    span = span_of([*coverage.mean_gain, *coverage.p95_gain])
    names = (("mean", "mean", coverage.mean_gain), ("95th percentile", "p95", coverage.p95_gain))
    rows: list[list[object]] = [
        [
            label,
            f"{getattr(coverage.to_chosen, name):.3f}",
            f"{getattr(coverage.to_random, name):.3f}",
            f"{gain[0]:+.3f}",
            interval(gain[0], (gain[1], gain[2]), span),
        ]
        for label, name, gain in names
    ]
    for label, name in (("median", "p50"), ("largest", "largest")):
        rows.append(
            [
                label,
                f"{getattr(coverage.to_chosen, name):.3f}",
                f"{getattr(coverage.to_random, name):.3f}",
                "",
                "",
            ]
        )
    heads = ["distance", "chosen", "random", "nearer by", scale(span)]
    plot = lines(
        [("chosen", coverage.deciles_chosen), ("random", coverage.deciles_random)],
        level=("limit for drift", coverage.p99),
        ticks=[f"{share} %" for share in range(0, 101, 10)],
    )
    return _section(
        "How well footage is covered that was not chosen from",
        said,
        table(heads, rows, numbers=(1, 2, 3)),
        element("h3", "distance that such a share of the held-out frames keeps within"),
        plot,
    )


def _strata(coverage: Coverage) -> Markup:
    def distances(found: Distances | None) -> list[object]:
        return ["–", "–"] if found is None else [f"{found.p50:.3f}", f"{found.p95:.3f}"]

    rows = [
        [
            item.name,
            item.held_out,
            element("span", item.chosen, class_="warn" if item.held_out and not item.chosen else ""),
            *distances(item.to_chosen),
            *distances(item.to_random),
        ]
        for item in coverage.strata
    ]
    heads = ["exposure", "held out", "chosen", "chosen p50", "chosen p95", "random p50", "random p95"]
    return _section(
        "By exposure",
        "Frames held out and images chosen in each, and the distances of the former to both sets.",
        table(heads, rows, numbers=(1, 2, 3, 4, 5, 6)),
    )


def _footage(record: CalibrationSet) -> Markup:
    counts = record.counts
    rows = [
        ["to choose from", f"{counts.candidates:,}"],
        ["held out", f"{counts.held_out:,}"],
        ["near a held-out block, not used", f"{counts.gap:,}"],
        ["like the frame before, not encoded again", f"{counts.unchanged:,}"],
        ["near-duplicates of another", f"{counts.near_duplicates:,}"],
        ["absorbed by a full pool", f"{counts.absorbed:,}"],
        ["damaged", f"{sum(source.unreadable for source in record.sources):,}"],
    ]
    return _section(
        "What became of the frames",
        f"Time of the chosen ones: {'; '.join(f'{name}: {count}' for name, count in record.moments.items())}.",
        table(["frames", "number"], rows, numbers=(1,)),
    )


def _section(title: str, said: str, *content: Markup) -> Markup:
    return element("section", element("h2", title), element("p", said, class_="quiet"), *content)


def _fact(name: str, value: object, more: str = "") -> Markup:
    return element("div", element("dt", name), element("dd", value, element("small", more)))


def _spread(moments: tuple[float, float]) -> str:
    return f"{moments[0]:.1f} ± {moments[1]:.1f}"


_CAPTION = 22  # pixels above the pictures of an exposure
_COLUMNS = 20
_GAP = 4


def calibration_sheet(record: CalibrationSet, images: Sequence[Image], *, side: int = 72) -> Image:
    """Middle squares in rows of 20, under the name of their exposure, darkest first; in each as they were taken.

    Args:
        images: those of the record, in its order, each (H, W, 3) uint8 RGB; decoded one at a time if they are lazy.
        side: pixels of one picture.

    Returns:
        (h, w, 3) uint8 RGB.
    """
    groups: dict[str, list[int]] = {}
    for number in sorted(range(len(record.images)), key=lambda at: record.images[at].exposure.luma):
        groups.setdefault(record.images[number].stratum, []).append(number)
    small = [middle_square(images[number], side) for number in range(len(images))]
    width = min(_COLUMNS, max(len(group) for group in groups.values()))
    width = max(width, 5) * (side + _GAP) + _GAP
    parts = [_caption(f"{len(images)} calibration images, by exposure", width)]
    for name, numbers in groups.items():
        parts.append(_caption(f"{name}: {len(numbers)}", width))
        numbers = sorted(numbers)
        columns = (width - _GAP) // (side + _GAP)
        for at in range(0, len(numbers), columns):
            row = np.full((side + _GAP, width, 3), 255, np.uint8)
            for column, number in enumerate(numbers[at : at + columns]):
                left = _GAP + column * (side + _GAP)
                row[:side, left : left + side] = small[number]
            parts.append(row)
    return np.concatenate(parts)


def _caption(text: str, width: int) -> Image:
    cv2 = opencv()
    caption = np.full((_CAPTION, width, 3), 255, np.uint8)
    cv2.putText(caption, text, (_GAP, _CAPTION - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
    return caption
