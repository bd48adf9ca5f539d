"""Tower features in, embeddings of one shared space out: projections that are more than a linear one."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from edgeclip.errors import RecipeError
from edgeclip.training.checkpoint.weight_grid import to_grid
from edgeclip.training.towers.pretrained import ImageTower


class ImageHead(nn.Module):
    """A linear projection of what the image tower gives: its pooled features and its own class probabilities.

    The probabilities carry what the tower is sure of (a convex mix of class embeddings, as ConSE, Norouzi 2014); the
    features carry the rest. The classifier stays as it was; the two projections are trained.

    Args:
        tower: width F and classifier over C classes.
        width: D of the shared space.
        on_grid: keep the classifier on the 8-bit grid.

    Raises:
        RecipeError: the tower has no classifier.
    """

    def __init__(self, tower: ImageTower, width: int, *, on_grid: bool = False) -> None:
        super().__init__()
        if tower.classifier is None:
            raise RecipeError("expected an image tower with a classifier, got one without: use efficientnet-lite0")
        weight, bias = tower.classifier
        self.in_features = tower.width
        self.classifier = nn.Linear(tower.width, len(bias)).requires_grad_(requires_grad=False)
        self.classifier.weight.data = to_grid(weight) if on_grid else weight.clone()
        self.classifier.bias.data = bias.clone()
        self.from_classes = nn.Linear(len(bias), width, bias=False)
        self.from_features = nn.Linear(tower.width, width)

    def forward(self, features: Tensor) -> Tensor:
        """(N, F) → (N, D), not normalised."""
        probabilities = torch.softmax(self.classifier(features), dim=-1)  # (N, C)
        embedding: Tensor = self.from_classes(probabilities) + self.from_features(features)
        return embedding


class ConceptHead(nn.Module):
    """What the image head does, for text: which of the image tower's classes is meant, and an embedding of each.

    A sentence vector becomes a softmax over C concepts, one for each class, and those mix the concepts' embeddings. A
    word that names no class is put between the classes that it is akin to, which a linear projection cannot learn.

    Args:
        in_features: T of the sentence vectors.
        concepts: C.
        width: D of the shared space.
    """

    centre: Tensor

    def __init__(self, in_features: int, concepts: int, width: int) -> None:
        super().__init__()
        self.in_features = in_features
        self.register_buffer("centre", torch.zeros(in_features))
        self.concepts = nn.Linear(in_features, concepts)
        self.embeddings = nn.Linear(concepts, width)

    def forward(self, sentences: Tensor) -> Tensor:
        """(N, T) → (N, D), not normalised."""
        meant = torch.softmax(self.concepts(normalize(sentences - self.centre, dim=-1)), dim=-1)  # (N, C)
        embedding: Tensor = self.embeddings(meant)
        return embedding


class ImageTowerWithHead(nn.Module):
    """Image tower and head: (N, 3, H, W) → (N, D) float32."""

    def __init__(self, tower: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.tower = tower
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings, not normalised."""
        embedding: Tensor = self.head(self.tower(images))
        return embedding
