"""A number and what it counts read as people write them."""

from __future__ import annotations

import pytest

from edgeclip.printable import counted


@pytest.mark.parametrize(
    ("count", "words", "said"),
    [
        (0, ("image",), "0 images"),
        (1, ("image",), "1 image"),
        (2048, ("image",), "2,048 images"),
        (1, ("class", "classes"), "1 class"),
        (0, ("class", "classes"), "0 classes"),
    ],
)
def test_one_is_not_several(count: int, words: tuple[str, ...], said: str) -> None:
    assert counted(count, *words) == said
