"""What images a proof was taken on, in; whether it is a proof or provisional, out."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Literal

import msgspec

from edgeclip.bundle import Bundle
from edgeclip.documents import read_json
from edgeclip.errors import IntegrityError
from edgeclip.printable import counted
from edgeclip.spec import Precision, Sha256

if TYPE_CHECKING:
    from edgeclip.runtime.proof.golden import GoldenImages

# "stand-ins": photographs that come with edgeclip's tools, where nobody gave any; "images": given at export;
# "site": given on the device; "unknown": by a bundle that was written before this was noted.
Origin = Literal["stand-ins", "images", "site", "unknown"]

# If none of 13 labels changed, one in five may still change, at 95 % confidence.
FEWEST = 14

_KINDS = {  # of one, and of several
    "stand-ins": ("stand-in photograph", "stand-in photographs"),
    "images": ("photograph", "photographs"),
    "site": ("photograph of this site", "photographs of this site"),
    "unknown": ("photograph, not known whose", "photographs, not known whose"),
}


class CalibratedOn(msgspec.Struct, frozen=True, kw_only=True):
    """The images that a variant's ranges were measured on.

    Attributes:
        origin: whose.
        photographs: how many different ones; crops of one photograph count as one.
        digests: hex sha256 of the pixels of each of these.
    """

    origin: Origin
    photographs: int
    digests: tuple[Sha256, ...]


class Basis(msgspec.Struct, frozen=True, kw_only=True):
    """What a proof was taken on.

    Attributes:
        origin: whose photographs.
        photographs: how many different ones; crops of one photograph count as one.
        calibrated_on: how many of them the variant's ranges were measured on, too; None where that is not known.
        ranges_from: whose images the ranges were measured on; None where they were not, or where it is not known.
    """

    origin: Origin
    photographs: int
    calibrated_on: int | None = 0
    ranges_from: Origin | None = None

    @property
    def provisional(self) -> bool:
        """Whether this is less than a proof."""
        return bool(self._lacks)

    @property
    def _lacks(self) -> list[str]:
        """Why this is less than a proof, to be said after what it was taken on; one is empty if that says it."""
        lacks = [""] if self.origin in ("stand-ins", "unknown") else []
        if self.photographs < FEWEST and not lacks:
            lacks.append(f"fewer than {FEWEST}")
        if self.calibrated_on is None:
            lacks.append("not known whether calibrated on")
        elif self.calibrated_on:
            lacks.append(f"{self.calibrated_on} of them calibrated on")
        elif self.ranges_from == "stand-ins" and self.origin != "site":
            lacks.append("calibrated on stand-ins")
        return lacks

    def __str__(self) -> str:
        lacks = self._lacks
        what = f"on {counted(self.photographs, *_KINDS[self.origin])}"
        return ", ".join([f"provisional: {what}" if lacks else what, *filter(None, lacks)])


class _Made(msgspec.Struct, frozen=True):
    calibration: CalibratedOn | None = None


class _Report(msgspec.Struct, frozen=True):
    made: _Made | None = None


def basis_of(bundle: Bundle, variant: str, golden: GoldenImages) -> Basis:
    """What a proof of a variant on these golden images is worth.

    Args:
        golden: the bundle's, or those of the site.

    Raises:
        VariantError: there is no such variant.
        IntegrityError: the variant's report does not match its hash.
    """
    return basis_on(golden, bundle.variant(variant).precision, calibrated_on(bundle, variant))


def basis_on(golden: GoldenImages, precision: Precision, calibrated: CalibratedOn | None) -> Basis:
    """The same, from what the variant was calibrated on; None if nobody noted it.

    FP32 was not calibrated. FP16 and BF16 were: which values stay in FP32 follows from ranges.
    """
    photographs = set(golden.digests)
    if precision == "fp32":
        shared: int | None = 0
    else:
        shared = None if calibrated is None else len(photographs.intersection(calibrated.digests))
    return Basis(
        origin=golden.origin,
        photographs=len(photographs),
        calibrated_on=shared,
        ranges_from=None if calibrated is None or precision == "fp32" else calibrated.origin,
    )


def calibrated_on(bundle: Bundle, variant: str) -> CalibratedOn | None:
    """What a variant's ranges were measured on, as its report says; None if it does not.

    Raises:
        IntegrityError: the report does not match its hash.
    """
    name = f"reports/parity-{variant}.json"
    if name not in bundle.manifest.files:
        return None
    path = bundle.file(name)
    with suppress(IntegrityError):  # of another form: it is the bundle's own, and says nothing that we know
        report = read_json(path, _Report, error=IntegrityError)
        return report.made.calibration if report.made else None
    return None


def how_to_prove(bundle: str) -> str:
    """The command that makes a provisional proof one."""
    return f"edgeclip prove {bundle} --images FOLDER"
