"""A projection's kind in a checkpoint in, the projection to fill out; and back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from edgeclip.errors import ModelError
from edgeclip.training.build_towers import build_image_tower
from edgeclip.training.checkpoint_config import HeadKind
from edgeclip.training.grid import without_negative_zeros
from edgeclip.training.heads import ConceptHead, ImageHead
from edgeclip.training.recipe import Model
from edgeclip.training.towers import ImageTower


def head_kind(head: nn.Module) -> HeadKind:
    """What to write of a projection.

    Raises:
        ModelError: none that a checkpoint can hold.
    """
    if isinstance(head, nn.Linear):
        return "linear" if head.bias is None else "affine"
    if isinstance(head, ImageHead):
        return "classes"
    if isinstance(head, ConceptHead):
        return "concepts"
    if isinstance(head, nn.Identity):
        return "none"
    raise ModelError(f"expected a linear projection, got {type(head).__name__}: it cannot be stored")


def build_image_head(kind: HeadKind, tower: ImageTower, model: Model) -> nn.Module:
    """A projection of image features; one of class probabilities has its tower's classifier in place already."""
    if kind != "classes":
        return _plain(kind, tower.width, model.embedding_dim)
    head = ImageHead(tower, model.embedding_dim, on_grid=bool(model.image.options.get("on_grid")))
    head.classifier.weight.data = without_negative_zeros(head.classifier.weight.data)  # as one that was stored
    return head


def build_text_head(kind: HeadKind, width: int, embedding_dim: int, stored: Mapping[str, Tensor]) -> nn.Module:
    """A projection of text features, of as many concepts as its stored weights have."""
    if kind != "concepts":
        return _plain(kind, width, embedding_dim)
    return ConceptHead(width, len(stored.get("concepts.bias", ())), embedding_dim)


def has_towers_classifier(head: nn.Module, model: Model) -> bool:
    """Whether an image head's classifier is still its tower's own, which comes from a wheel and need not be stored."""
    if not isinstance(head, ImageHead):
        return False
    fresh = build_image_head("classes", build_image_tower(model.image), model)
    assert isinstance(fresh, ImageHead)
    mine = head.classifier.state_dict()
    return all(torch.equal(mine[name].cpu(), value) for name, value in fresh.classifier.state_dict().items())


def _plain(kind: HeadKind, width: int, embedding_dim: int) -> nn.Module:
    return nn.Identity() if kind == "none" else nn.Linear(width, embedding_dim, bias=kind == "affine")
