"""The recipe of the task ``fewshot``: a bundle, a folder of labelled images, and how a table is adapted to them."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from edgeclip.spec import Name
from edgeclip.training.recipe import CountOrNone, Section


class CurveSection(Section, frozen=True, kw_only=True):
    """Whether and how accuracy over the number of shots is drawn.

    Attributes:
        seeds: random choices of shots and test images; 0 for no curve, else two at least.
        methods: that are drawn.
        shots: images a class.
    """

    seeds: CountOrNone = 0
    methods: tuple[str, ...] = ("probe", "zs-probe", "tip-adapter", "tip-adapter-f")
    shots: tuple[CountOrNone, ...] = (0, 1, 2, 4, 8, 16)


class FewShotRecipe(Section, frozen=True, kw_only=True):
    """A table from text and a few images; see ``training/adapt/fewshot.py``.

    Attributes:
        name: of the table.
        bundle: folder, ``.tar``, or ``starter``.
        data: folder with one folder of images a class.
        names: JSON, folder name → class name or list of names; empty where the folders' names will do.
        templates, background, variant, method, shots: as the options of ``edgeclip fewshot``.
        seed: of the choice of images and of the folds.
    """

    name: Name
    task: Literal["fewshot"] = "fewshot"
    seed: Annotated[int, msgspec.Meta(ge=0)] = 0
    bundle: str = "starter"
    data: str
    names: str = ""
    templates: str = "simple"
    background: str = ""
    variant: str = "fp32"
    method: Literal["probe", "zs-probe", "tip-adapter", "tip-adapter-f"] = "zs-probe"
    shots: CountOrNone = 16
    curve: CurveSection = CurveSection()
