"""What images a proof was taken on, in; whether it is a proof or provisional, out."""

from __future__ import annotations

from typing import Literal

import msgspec

# "stand-ins": photographs that come with edgeclip's tools, where nobody gave any; "images": given at export;
# "site": given on the device.
Origin = Literal["stand-ins", "images", "site"]


class Basis(msgspec.Struct, frozen=True, kw_only=True):
    """What a proof was taken on.

    Attributes:
        origin: whose photographs.
        photographs: how many different ones; crops of one photograph count as one.
        calibrated_on: how many of them the variant's ranges were measured on, too; None where that is not known.
    """

    origin: Origin
    photographs: int
    calibrated_on: int | None = 0

    @property
    def provisional(self) -> bool:
        """Whether this is less than a proof."""
        return self.origin == "stand-ins" or self.calibrated_on != 0

    def __str__(self) -> str:
        kind = {"stand-ins": "stand-in photographs", "images": "photographs", "site": "photographs of this site"}
        shared = (
            ""
            if self.calibrated_on == 0
            else ", not known whether calibrated on"
            if self.calibrated_on is None
            else f", {self.calibrated_on} of them calibrated on"
        )
        return f"{'provisional: ' if self.provisional else ''}on {self.photographs} {kind[self.origin]}{shared}"


def how_to_prove(bundle: str) -> str:
    """The command that makes a provisional proof one."""
    return f"edgeclip prove {bundle} --images FOLDER"
