"""The gate's limits are those that the document states, and do to damage of known price what it says."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from benchmarks.ladder.records import Result, Rung
from edgeclip.runtime.proof.parity import LIMITS
from edgeclip.spec import Precision

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs" / "quantization.md").read_text(encoding="utf-8")
FIGURES = {  # what the document calls a limit → the limit, and the figure of a report that it is of
    "cosine, worst image, at least": ("min_cosine", "min_cosine"),
    "mean-centred cosine, worst image, at least": ("min_centred_cosine", "min_centred_cosine"),
    "mean-centred cosine, mean, at least": ("mean_centred_cosine", "mean_centred_cosine"),
    "same best class, at least": ("agreement", "agreement"),
    "same best class where FP32 decides clearly, at least": ("decided_agreement", "decided_agreement"),
    "loss of margin, mean, at most": ("mean_margin_loss", "mean_margin_loss"),
    "loss of margin, 95th percentile, at most": ("margin_loss", "p95_margin_loss"),
}
IMAGES = {"all": "all photographs", "first": "64 photographs", "views": "views of nine photographs"}


def refused(item: Rung, images: str) -> bool:
    """By its precision's limits."""
    return bool(item.gate[images].failures(LIMITS[item.precision]))


@pytest.fixture(scope="module")
def results() -> Result:
    return msgspec.json.decode((ROOT / "docs" / "results" / "gate.json").read_bytes(), type=Result)


@pytest.fixture(scope="module")
def ladder(results: Result) -> tuple[Rung, ...]:
    return results.rungs


def rung(ladder: tuple[Rung, ...], model: str, variant: str) -> Rung:
    (found,) = [item for item in ladder if (item.model, item.variant) == (model, variant)]
    return found


def test_the_documents_table_is_the_limits() -> None:
    head, *rows = re.findall(r"^\| *(.*?) *\| (.*) \|$", DOCUMENT[DOCUMENT.index("| | `fp32` |") :], re.MULTILINE)[
        : len(FIGURES) + 1
    ]
    precisions = [name.strip("` ") for name in head[1].split("|")]
    told = {name: [cell.strip() for cell in cells.split("|")] for name, cells in rows}
    assert precisions == list(LIMITS)
    assert list(told) == list(FIGURES)
    for name, (limit, _) in FIGURES.items():
        for precision, cell in zip(LIMITS, told[name], strict=True):
            stated = float(cell.removesuffix(" %")) / (100 if cell.endswith("%") else 1)
            assert getattr(LIMITS[precision], limit) == pytest.approx(stated), (precision, name)


def test_no_limit_is_left_out_of_the_document() -> None:
    assert {limit for limit, _ in FIGURES.values()} == set(LIMITS["int8"].__struct_fields__)


@pytest.mark.parametrize("images", IMAGES)
def test_the_gate_misses_what_the_document_says_and_nothing_else(ladder: tuple[Rung, ...], images: str) -> None:
    taken = [item for item in ladder if images in item.gate]
    costly, cheap = ([item for item in taken if item.price == price] for price in ("costly", "cheap"))
    passed = [item for item in costly if not refused(item, images)]
    lost = [item for item in cheap if refused(item, images)]
    row = f"| {IMAGES[images]} | {len(taken)} | {len(passed)} of {len(costly)} | {len(lost)} of {len(cheap)} |"
    assert row in DOCUMENT
    for item in (*passed, *lost):
        assert f"| {IMAGES[images]} | {item.model}, {item.variant} | {item.loss:.2f} ({item.low:.2f} to" in DOCUMENT


def test_what_int8_costs_is_what_the_document_says(results: Result) -> None:
    names = {"int8 (edgeclip)": "our own"}
    for loss in results.int8:
        name = names.get(loss.variant, loss.variant.replace(" int8", ""))
        cost = f"{100 * loss.top1:.1f} | {loss.loss:+.2f} ({loss.low:+.2f} to {loss.high:+.2f})"
        assert f"| {loss.model} | {name} | {loss.data} | {loss.n:,} | {cost} |" in DOCUMENT


def test_what_the_gate_does_without_a_price_is_what_the_document_says(results: Result) -> None:
    for item in results.unpriced:
        report = item.gate
        cosines = (report.min_cosine, report.min_centred_cosine, report.mean_centred_cosine)
        others = (report.agreement, report.decided_agreement, report.mean_margin_loss, report.p95_margin_loss)
        figures = " | ".join([*(f"{number:.4f}" for number in cosines), *(f"{number:.3f}" for number in others)])
        verdict = "refused" if report.failures(LIMITS[item.precision]) else "passes"
        assert f"| {item.variant} | {figures} | {verdict} |" in DOCUMENT


@pytest.mark.parametrize("precision", LIMITS)
def test_what_surely_costs_more_than_a_point_passes_at_no_precision(
    ladder: tuple[Rung, ...], precision: Precision
) -> None:
    sure = [item for item in ladder if item.low > 1]
    assert len(sure) >= 30
    for images in IMAGES:
        assert all(item.gate[images].failures(LIMITS[precision]) for item in sure if images in item.gate)


def test_what_surely_costs_less_than_a_third_of_a_point_is_never_refused(ladder: tuple[Rung, ...]) -> None:
    sure = [item for item in ladder if item.high < 0.3]
    assert len(sure) >= 15
    assert not [item.variant for item in sure if refused(item, "all") or refused(item, "first")]


def test_every_limit_refuses_some_damage_by_itself(ladder: tuple[Rung, ...]) -> None:
    for precision, limits in LIMITS.items():
        for limit, figure in FIGURES.values():
            vacuous = {name: 1e9 if "loss" in name else -1e9 for name in limits.__struct_fields__ if name != limit}
            alone = msgspec.structs.replace(limits, **vacuous)
            caught = [item for item in ladder if item.price == "costly" and item.gate["first"].failures(alone)]
            assert len(caught) >= 5, (precision, figure)


# The collapses that were published of a Jetson, and what must pass


def test_linears_only_int8_of_a_real_transformer_passes(ladder: tuple[Rung, ...]) -> None:
    for model in ("minilm", "starter", "starter-128"):
        item = rung(ladder, model, "linears-only int8")
        assert item.loss < 0.3
        assert not refused(item, "all")
        assert not refused(item, "first")


def test_at_its_own_size_the_transformer_passes_where_int8_costs_nothing_and_nowhere_else(results: Result) -> None:
    costs = {loss.variant: loss for loss in results.int8 if loss.model == "vit"}
    passes = {item.variant for item in results.unpriced if not item.gate.failures(LIMITS[item.precision])}
    assert {name for name, loss in costs.items() if loss.loss < 0.3} == {"linears-only int8, asymmetric"}
    assert {name for name, loss in costs.items() if loss.low > 0.25} == {"linears-only int8", "int8 (edgeclip)"}
    assert passes & set(costs) == {"linears-only int8, asymmetric"}


@pytest.mark.parametrize("variant", ["raw fp16, larger residual", "a8 whole graph, per tensor"])
def test_the_published_collapses_are_refused_at_every_precision(results: Result, variant: str) -> None:
    item = rung(results.rungs, "vit-112", variant)
    assert item.low > 10
    (larger,) = [other.gate for other in results.unpriced if (other.model, other.variant) == ("vit", variant)]
    for limits in LIMITS.values():
        assert all(report.failures(limits) for report in (*item.gate.values(), larger))


@pytest.mark.parametrize("variant", ["int8 (edgeclip)", "fp16 (edgeclip)"])
def test_what_the_starter_ships_and_makes_passes(ladder: tuple[Rung, ...], variant: str) -> None:
    for item in ladder:
        if item.model == "starter" and item.variant == variant:
            assert not any(refused(item, images) for images in item.gate)
            break
    else:
        pytest.fail(f"{variant} is not in the ladder")
