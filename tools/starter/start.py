"""Fresh projections and what their towers know already in, the same projections at a start that labels well out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgeclip.training.towers.heads import ImageHead


@torch.no_grad()
def start_from_classes(
    head: ImageHead,
    classes: Tensor,
    features: Tensor,
    *,
    class_scale: float,
    ridge: float,
    places: Tensor | None = None,
) -> None:
    """Set the projections of an image head so that a class's own features land on the embedding of its name.

    Args:
        classes: (C, D) unit embeddings of the classifier's class names.
        features: (M, F) features of some images, to bring the features' part to a mean length of 1.
        class_scale: weight of the probabilities' part.
        ridge: added to the eigenvalues of ``classesᵀ classes`` before it is inverted.
        places: (C, D) embeddings of the classes for the probabilities' part, if others than ``classes``.
    """
    head.from_classes.weight.data = class_scale * (classes if places is None else places).T.contiguous()
    inverse = torch.linalg.solve(classes.T @ classes + ridge * torch.eye(classes.shape[1]), classes.T)  # (D, C)
    centred_weight = head.classifier.weight - head.classifier.weight.mean(dim=0)
    centred_bias = head.classifier.bias - head.classifier.bias.mean()
    projection, offset = inverse @ centred_weight, inverse @ centred_bias
    length = (features @ projection.T + offset).norm(dim=-1).mean()
    head.from_features.weight.data = projection / length
    head.from_features.bias.data = offset / length


@torch.no_grad()
def start_from_captions(captions: Tensor, width: int) -> nn.Linear:
    """A linear projection that centres sentence vectors and keeps the directions in which these captions differ most.

    Sentence vectors share a large common part, which says nothing about the class and flattens every softmax.

    Args:
        captions: (M, T) sentence vectors.
        width: D, directions that are kept.
    """
    mean = captions.mean(dim=0)
    _, _, directions = torch.linalg.svd(captions - mean, full_matrices=False)  # (min(M, T), T)
    head = nn.Linear(captions.shape[1], width)
    head.weight.data = directions[:width].contiguous()
    head.bias.data = -(head.weight @ mean)
    return head
