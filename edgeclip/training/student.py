"""An image tower and a teacher's text side in, the student that they are together out.

A student has no text side of its own: the teacher's text embeddings, hence its prompt tables, are the student's too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgeclip.spec import ModelIdentity, PreprocessSpec
from edgeclip.training.model import TextModule, TextTower
from edgeclip.training.recipe import Model
from edgeclip.training.two_tower import TwoTower


class GivenText(TextModule):
    """The teacher's text side in the student's place for one: frozen, and no part of the student's weights.

    Attributes:
        encoder: the teacher's text tower.
        teacher: whose it is.
    """

    def __init__(self, encoder: TextTower, teacher: ModelIdentity, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.teacher = teacher
        self.width = width

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """The teacher's embeddings (N, D) float32: all is done here, on the CPU."""
        return torch.from_numpy(self.encoder.encode_text(texts))

    def forward(self, tokens: Tensor) -> Tensor:
        """The embeddings, as they are."""
        return tokens


def student_of(
    image: nn.Module,
    head: nn.Module,
    text: GivenText,
    *,
    preprocess: PreprocessSpec,
    model: Model,
    logit_scale: float,
    logit_bias: float | None,
) -> TwoTower:
    """The student of an image tower, its projection and the teacher's text side; only the first two are trained."""
    student = TwoTower(
        image,
        head,
        text,
        nn.Identity(),
        preprocess=preprocess,
        model=model,
        logit_scale=logit_scale,
        logit_bias=logit_bias,
    )
    student.logit_scale.requires_grad_(False)
    if student.logit_bias is not None:
        student.logit_bias.requires_grad_(False)
    return student
