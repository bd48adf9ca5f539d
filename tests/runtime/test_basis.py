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
from edgeclip.runtime.proof.basis import FEWEST, Basis, CalibratedOn, Origin, basis_of, calibrated_on
from edgeclip.runtime.proof.golden import FILE, GoldenImages, golden_of


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


def test_crops_of_one_photograph_count_as_one(golden_bundle: Path) -> None:
    bundle = with_report(golden_bundle, "fp16", made_on(100, 20))
    assert basis_of(bundle, "fp16", golden(20, views=3)).photographs == 20
    assert golden(20, views=3).photographs == 20


@pytest.mark.parametrize(("first", "shared"), [(64, 0), (60, 4), (0, 64)])
def test_what_a_variant_was_calibrated_on_is_found_in_its_report(golden_bundle: Path, first: int, shared: int) -> None:
    bundle = with_report(golden_bundle, "fp16", made_on(first, 128))
    basis = basis_of(bundle, "fp16", golden(64))
    assert basis == Basis(origin="images", photographs=64, calibrated_on=shared, ranges_from="images")
    assert basis.provisional is (shared > 0)


def test_ranges_of_stand_ins_make_a_proof_at_export_provisional_and_one_of_the_site_not(golden_bundle: Path) -> None:
    bundle = with_report(golden_bundle, "fp16", made_on(100, 9, "stand-ins"))
    assert basis_of(bundle, "fp16", golden(64)).provisional
    assert not basis_of(bundle, "fp16", golden(64, origin="site")).provisional


@pytest.mark.parametrize("report", [{}, {"made": None}, {"made": {"recipe": {}}}, {"made": "by hand"}, []])
def test_without_a_record_it_is_not_known_whether_a_variant_was_calibrated_on_them(
    golden_bundle: Path, report: Any
) -> None:
    bundle = with_report(golden_bundle, "fp16", report)
    assert basis_of(bundle, "fp16", golden(64)) == Basis(origin="images", photographs=64, calibrated_on=None)


def test_fp32_is_not_calibrated(golden_bundle: Path) -> None:
    bundle = Bundle.open(golden_bundle)
    assert basis_of(bundle, "fp32", golden(64)) == Basis(origin="images", photographs=64)
    with pytest.raises(VariantError):
        basis_of(bundle, "int4", golden(64))


def test_a_record_that_was_altered_is_refused(golden_bundle: Path) -> None:
    bundle = with_report(golden_bundle, "fp16", made_on(0, 64))
    path = golden_bundle / "reports" / "parity-fp16.json"
    path.write_text(json.dumps(made_on(100, 64), default=lambda value: {"origin": "images", "digests": []}))
    with pytest.raises(IntegrityError, match="altered"):
        basis_of(bundle, "fp16", golden(64))


def test_a_golden_set_says_whose_photographs_its_views_are_of(golden_bundle: Path, tmp_path: Path) -> None:
    stored = golden_of(Bundle.open(golden_bundle))
    assert stored is not None
    assert (len(stored.files), stored.photographs, stored.origin) == (64, 9, "stand-ins")
    assert stored.digests[9:18] == stored.digests[:9]  # the crops come in the order of their photographs
    golden(3, views=2, origin="site").save(tmp_path / "golden.safetensors")
    again = GoldenImages.load(tmp_path / "golden.safetensors")
    assert (again.photographs, again.origin) == (3, "site")


def test_of_a_set_written_without_digests_names_tell_which_views_are_of_one_photograph(golden_bundle: Path) -> None:
    from safetensors.numpy import load_file, save_file

    path = golden_bundle / FILE
    names = GoldenImages.load(path).names
    save_file(load_file(path), path, {"names": json.dumps(names)})
    old = GoldenImages.load(path)
    assert (len(old.files), old.photographs, old.origin) == (64, 9, "unknown")
    write_manifest(golden_bundle, read_manifest(golden_bundle), scan=True)
    said = str(basis_of(Bundle.open(golden_bundle), "fp16", old))
    assert said == "provisional: on 9 photographs, not known whose, not known whether calibrated on"


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
