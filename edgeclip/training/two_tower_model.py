"""A trained TwoTower in, the ContrastiveModel that it is for everybody else out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgeclip.prompts import FloatArray
from edgeclip.spec import EncoderSpec, ModelOrigin
from edgeclip.training.model import ContrastiveModel, TextModule, TextTower
from edgeclip.training.student import GivenText
from edgeclip.training.towers.heads import ImageTowerWithHead
from edgeclip.training.towers.open_clip import merge_branches
from edgeclip.training.two_tower import TwoTower

_TEXT_BATCH = 256


class TextTowerWithHead(TextTower):
    """A text tower of ours and its projection."""

    def __init__(self, tower: TextModule, head: nn.Module) -> None:
        self.tower = tower.eval()
        self.head = head.eval()

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str]) -> FloatArray:
        """Embeddings (N, D) float32, not normalised; long lists go through in batches."""
        batches = [texts[start : start + _TEXT_BATCH] for start in range(0, len(texts), _TEXT_BATCH)]
        embeddings = torch.cat([self.head(self.tower(self.tower.tokenize(batch))) for batch in batches])
        array: FloatArray = embeddings.numpy()
        return array

    def too_long(self, texts: Sequence[str]) -> list[str]:
        """Those of the texts that the tower cuts."""
        return self.tower.too_long(texts)

    def modules(self) -> Sequence[nn.Module]:
        """Tower and projection."""
        return (self.tower, self.head)


class TwoTowerModel(ContrastiveModel):
    """A two-tower model of ours, in eval mode; a student has its teacher's text side.

    Args:
        name: of the recipe.
        origin: the checkpoint folder, or ``starter``.
    """

    def __init__(self, name: str, origin: str, two_tower: TwoTower) -> None:
        two_tower.requires_grad_(requires_grad=False).eval()
        self.name = name
        self.origin = ModelOrigin(loader="edgeclip", name=origin)
        bias = two_tower.logit_bias
        self.encoder = EncoderSpec(
            preprocess=two_tower.preprocess,
            embedding_dim=two_tower.embedding_dim,
            logit_scale=float(two_tower.logit_scale.exp()),
            logit_bias=0.0 if bias is None else float(bias),
            score="softmax" if bias is None else "sigmoid",
        )
        if isinstance(two_tower.text, GivenText):
            teacher = two_tower.text.teacher
            self.text: TextTower = two_tower.text.encoder
            self.distilled_from = (teacher.image_sha256, *teacher.distilled_from)
        else:
            self.text = TextTowerWithHead(two_tower.text, two_tower.text_head)
        self._image = ImageTowerWithHead(two_tower.image, two_tower.image_head).eval()

    @torch.inference_mode()
    def encode_image(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) → (N, D)."""
        embedding: Tensor = self._image(images)
        return embedding

    def exportable(self) -> nn.Module:
        """The image encoder; train-time branches (timm, open_clip) are merged in a copy."""
        return merge_branches(self._image).eval()

    def image_modules(self) -> Sequence[nn.Module]:
        """Tower and head."""
        return (self._image,)
