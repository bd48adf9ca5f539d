"""What a proof is worth: how many photographs, whose, and whether the variant was calibrated on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeclip.bundle import Bundle
from edgeclip.errors import IntegrityError, VariantError
from edgeclip.files import write_json
from edgeclip.manifest import read_manifest, write_manifest
from edgeclip.runtime.proof.basis import (
    FEWEST,
    Basis,
    CalibratedOn,
    Origin,
    basis_of,
    basis_on,
    calibrated_on,
    how_to_prove,
)
from edgeclip.runtime.proof.golden import GoldenImages, golden_of
from edgeclip.spec import Precision


def digest(number: int) -> str:
    return f"{number:064x}"


def golden(photographs: int, *, views: int = 1, origin: Origin = "images") -> GoldenImages:
    digests = tuple(digest(number) for number in range(photographs) for _ in range(views))
    rows = np.ones((len(digests), 4), np.float32)
    names = tuple(f"p{number}" for number in range(len(digests)))
    return GoldenImages(names, (b"\xff",) * len(digests), rows, rows[:0], digests, origin)


def with_report(bundle: Path, variant: str, report: Any) -> Bundle:
    write_json(bundle / "reports" / f"parity-{variant}.json", report)
    write_manifest(bundle, read_manifest(bundle), scan=True)
    return Bundle.open(bundle)


def made_on(first: int, count: int, origin: Origin = "images") -> dict[str, Any]:
    digests = tuple(digest(number) for number in range(first, first + count))
    return {"made": {"recipe": {}, "calibration": CalibratedOn(origin=origin, photographs=count, digests=digests)}}


@pytest.mark.parametrize(
    ("basis", "said"),
    [
        (Basis(origin="images", photographs=64), "on 64 photographs"),
        (Basis(origin="site", photographs=64, ranges_from="stand-ins"), "on 64 photographs of this site"),
        (Basis(origin="images", photographs=FEWEST, ranges_from="images"), f"on {FEWEST} photographs"),
        (Basis(origin="images", photographs=5), "provisional: on 5 photographs, fewer than 14"),
        (Basis(origin="site", photographs=5), "provisional: on 5 photographs of this site, fewer than 14"),
        (Basis(origin="site", photographs=1), "provisional: on 1 photograph of this site, fewer than 14"),
        (
            Basis(origin="unknown", photographs=1, calibrated_on=0),
            "provisional: on 1 photograph, not known whose",
        ),
        (Basis(origin="stand-ins", photographs=9), "provisional: on 9 stand-in photographs"),
        (
            Basis(origin="stand-ins", photographs=9, calibrated_on=9, ranges_from="stand-ins"),
            "provisional: on 9 stand-in photographs, 9 of them calibrated on",
        ),
        (
            Basis(origin="unknown", photographs=9, calibrated_on=None),
            "provisional: on 9 photographs, not known whose, not known whether calibrated on",
        ),
        (
            Basis(origin="images", photographs=64, calibrated_on=1),
            "provisional: on 64 photographs, 1 of them calibrated on",
        ),
        (
            Basis(origin="images", photographs=64, ranges_from="stand-ins"),
            "provisional: on 64 photographs, calibrated on stand-ins",
        ),
    ],
)
def test_what_a_proof_is_worth_is_said(basis: Basis, said: str) -> None:
    assert str(basis) == said
    assert basis.provisional is said.startswith("provisional")


def test_crops_of_one_photograph_count_as_one(fp16_bundle: Path) -> None:
    bundle = with_report(fp16_bundle, "fp16", made_on(100, 20))
    assert basis_of(bundle, "fp16", golden(20, views=3)).photographs == 20
    assert golden(20, views=3).photographs == 20


@pytest.mark.parametrize(("first", "shared"), [(64, 0), (60, 4), (0, 64)])
def test_what_a_variant_was_calibrated_on_is_found_in_its_report(fp16_bundle: Path, first: int, shared: int) -> None:
    bundle = with_report(fp16_bundle, "fp16", made_on(first, 128))
    basis = basis_of(bundle, "fp16", golden(64))
    assert basis == Basis(origin="images", photographs=64, calibrated_on=shared, ranges_from="images")
    assert basis.provisional is (shared > 0)


def test_ranges_of_stand_ins_make_a_proof_at_export_provisional_and_one_of_the_site_not(fp16_bundle: Path) -> None:
    bundle = with_report(fp16_bundle, "fp16", made_on(100, 9, "stand-ins"))
    assert basis_of(bundle, "fp16", golden(64)).provisional
    assert not basis_of(bundle, "fp16", golden(64, origin="site")).provisional


@pytest.mark.parametrize("report", [{}, {"made": None}, {"made": {"recipe": {}}}, {"made": "by hand"}, []])
def test_without_a_record_it_is_not_known_whether_a_variant_was_calibrated_on_them(
    fp16_bundle: Path, report: Any
) -> None:
    bundle = with_report(fp16_bundle, "fp16", report)
    assert basis_of(bundle, "fp16", golden(64)) == Basis(origin="images", photographs=64, calibrated_on=None)


def test_fp32_is_not_calibrated(fp16_bundle: Path) -> None:
    bundle = Bundle.open(fp16_bundle)
    assert basis_of(bundle, "fp32", golden(64)) == Basis(origin="images", photographs=64)
    with pytest.raises(VariantError):
        basis_of(bundle, "int4", golden(64))


def test_a_record_that_was_altered_is_refused(fp16_bundle: Path) -> None:
    bundle = with_report(fp16_bundle, "fp16", made_on(0, 64))
    path = fp16_bundle / "reports" / "parity-fp16.json"
    path.write_text(json.dumps(made_on(100, 64), default=lambda value: {"origin": "images", "digests": []}))
    with pytest.raises(IntegrityError, match="altered"):
        basis_of(bundle, "fp16", golden(64))


@pytest.mark.parametrize(
    ("basis", "provisional"),
    [
        (Basis(origin="stand-ins", photographs=FEWEST), True),
        (Basis(origin="unknown", photographs=64), True),
        (Basis(origin="images", photographs=FEWEST - 1), True),
        (Basis(origin="images", photographs=FEWEST), False),
        (Basis(origin="site", photographs=FEWEST, calibrated_on=None), True),
        (Basis(origin="site", photographs=FEWEST, calibrated_on=1), True),
        (Basis(origin="site", photographs=FEWEST, ranges_from="images"), False),
        (Basis(origin="images", photographs=FEWEST, ranges_from="stand-ins"), True),
        (Basis(origin="images", photographs=FEWEST, ranges_from="unknown"), False),
    ],
)
def test_what_makes_less_than_a_proof(basis: Basis, provisional: bool) -> None:
    assert basis.provisional is provisional


def test_all_that_a_proof_lacks_is_said() -> None:
    few = Basis(origin="images", photographs=5, ranges_from="stand-ins")
    assert str(few) == "provisional: on 5 photographs, fewer than 14, calibrated on stand-ins"
    also = Basis(origin="stand-ins", photographs=5, calibrated_on=5, ranges_from="stand-ins")
    assert str(also) == "provisional: on 5 stand-in photographs, 5 of them calibrated on"
    unknown = Basis(origin="site", photographs=5, calibrated_on=None, ranges_from="stand-ins")
    assert str(unknown) == (
        "provisional: on 5 photographs of this site, fewer than 14, not known whether calibrated on"
    )


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_ranges_count_for_every_precision_but_fp32(precision: Precision) -> None:
    known = CalibratedOn(origin="stand-ins", photographs=2, digests=(digest(0), digest(9)))
    assert basis_on(golden(4), precision, known) == Basis(
        origin="images", photographs=4, calibrated_on=1, ranges_from="stand-ins"
    )
    assert basis_on(golden(4), "fp32", known) == Basis(origin="images", photographs=4, calibrated_on=0)
    assert basis_on(golden(4), precision, None) == Basis(origin="images", photographs=4, calibrated_on=None)


def test_a_report_says_what_ranges_were_measured_on(fp16_bundle: Path) -> None:
    assert calibrated_on(Bundle.open(fp16_bundle), "fp16") is None
    bundle = with_report(fp16_bundle, "fp16", made_on(3, 2, "stand-ins"))
    known = CalibratedOn(origin="stand-ins", photographs=2, digests=(digest(3), digest(4)))
    assert calibrated_on(bundle, "fp16") == known
    assert calibrated_on(bundle, "fp32") is None
    (fp16_bundle / "reports" / "parity-fp16.json").unlink()
    with pytest.raises(IntegrityError, match="lacks"):
        calibrated_on(bundle, "fp16")


def test_the_command_that_makes_a_proof_is_named() -> None:
    assert how_to_prove("shop.edgeclip") == "edgeclip prove shop.edgeclip --images FOLDER"


def test_the_starters_int8_is_proved_by_a_sites_photographs() -> None:
    starter = Bundle.open("starter")
    own, calibrated = golden_of(starter), calibrated_on(starter, "int8-cpu")
    assert own is not None
    assert calibrated is not None
    assert (calibrated.origin, calibrated.photographs) == ("images", 128)
    assert len(set(calibrated.digests)) == 128
    for variant in ("fp32", "int8-cpu"):
        assert str(basis_of(starter, variant, own)) == "provisional: on 9 stand-in photographs"
        assert str(basis_of(starter, variant, golden(30, origin="site"))) == "on 30 photographs of this site"
