"""Two towers and their projections in, the model to train out: one space, one temperature."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from edgeclip.errors import RecipeError
from edgeclip.spec import PreprocessSpec
from edgeclip.training.model import TextModule
from edgeclip.training.recipe import Model, Tower

_TEXT_BATCH = 256


class TwoTower(nn.Module):
    """The model of CLIP (Radford 2021, figure 3): two encoders, linear projections into one space, a temperature.

    A locked tower stays in eval mode and takes no gradient (LiT, Zhai 2022); its projection is trained all the same.

    Args:
        image: (N, 3, H, W) → features (N, F).
        image_head: (N, F) → (N, D).
        text: tokens → features (N, T).
        text_head: (N, T) → (N, D).
        preprocess: what images go through before.
        model: the section of the recipe that it was built from.
        logit_scale: inverse temperature to start with.
        logit_bias: SigLIP's bias to start with; None for the softmax losses.

    Attributes:
        logit_scale: logarithm of the inverse temperature.
        logit_bias: SigLIP's bias, or None.
        locked: which of ``image`` and ``text`` are locked.
        max_logit_scale: that ``clamp_logit_scale`` clamps to.
    """

    def __init__(
        self,
        image: nn.Module,
        image_head: nn.Module,
        text: TextModule,
        text_head: nn.Module,
        *,
        preprocess: PreprocessSpec,
        model: Model,
        logit_scale: float,
        logit_bias: float | None = None,
        max_logit_scale: float = 100.0,
    ) -> None:
        super().__init__()
        self.image = image
        self.image_head = image_head
        self.text = text
        self.text_head = text_head
        self.logit_scale = nn.Parameter(torch.tensor(math.log(logit_scale)))
        self.logit_bias = None if logit_bias is None else nn.Parameter(torch.tensor(float(logit_bias)))
        self.preprocess = preprocess
        self.model = model
        self.max_logit_scale = max_logit_scale
        self.locked = frozenset(side for side in ("image", "text") if getattr(model, side).locked)
        for side in ("image", "text"):
            _choose_trained(getattr(self, side), getattr(model, side), side)
        self.train()

    @property
    def embedding_dim(self) -> int:
        """D of the shared space."""
        return self.model.embedding_dim

    @property
    def image_width(self) -> int:
        """F of the image tower's features."""
        head = self.image_head
        return self.embedding_dim if isinstance(head, nn.Identity) else int(head.in_features)  # type: ignore[arg-type]

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Texts as one tensor on the CPU, first axis N, for ``encode_text``."""
        return self.text.tokenize(texts)

    def encode_image(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W), or a locked tower's features (N, F) → (N, D), not normalised."""
        embedding: Tensor = self.image_head(images if images.dim() == 2 else self.image_features(images))
        return embedding

    def encode_text(self, tokens: Tensor) -> Tensor:
        """What ``tokenize`` gives, or a locked tower's features (N, T) → (N, D), not normalised."""
        features = tokens if tokens.is_floating_point() else self.text_features(tokens)
        embedding: Tensor = self.text_head(features)
        return embedding

    def image_features(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) → features before the projection (N, F); of a locked tower they never change."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and "image" not in self.locked):
            features: Tensor = self.image(images)
        return features

    def text_features(self, tokens: Tensor) -> Tensor:
        """Tokens → features before the projection (N, T); of a locked tower they never change."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and "text" not in self.locked):
            features: Tensor = self.text(tokens)
        return features

    def forward(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Images and tokens, or cached features of locked towers, of N pairs.

        Returns:
            Unit rows (N, D) of images and of texts, the inverse temperature and the bias (scalars).
        """
        image_embeddings = normalize(self.encode_image(images), dim=-1)
        text_embeddings = normalize(self.encode_text(tokens), dim=-1)
        return image_embeddings, text_embeddings, self.logit_scale.exp(), self.logit_bias

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit rows (N, D) of texts on the model's device, in batches and in eval mode, without gradients."""
        training, device = self.training, self.logit_scale.device
        self.eval()
        batches = [texts[start : start + _TEXT_BATCH] for start in range(0, len(texts), _TEXT_BATCH)]
        rows = torch.cat([self.encode_text(self.tokenize(batch).to(device)) for batch in batches])
        self.train(training)
        return normalize(rows.float(), dim=-1)

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Keep the inverse temperature at or below ``max_logit_scale``, after an optimizer step (CLIP, section 2.5)."""
        self.logit_scale.clamp_(max=math.log(self.max_logit_scale))

    def train(self, mode: bool = True) -> TwoTower:
        """As ``torch.nn.Module.train``; locked towers stay in eval mode."""
        super().train(mode)
        for side in self.locked:
            getattr(self, side).eval()
        return self

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute inner activations of the towers that are trained in the backward pass.

        Raises:
            RecipeError: a tower cannot do that.
        """
        for side in sorted({"image", "text"} - self.locked):
            tower = getattr(self, side)
            if any(parameter.requires_grad for parameter in tower.parameters()):
                switch = getattr(tower, "set_grad_checkpointing", None)
                if switch is None:
                    name = getattr(self.model, side).name
                    raise RecipeError(f"the {side} tower {name} cannot checkpoint: set scale.checkpointing to false")
                switch(enable)


def _choose_trained(module: nn.Module, tower: Tower, side: str) -> None:
    """Let gradients reach what is trained: nothing of a locked tower, else what ``trainable`` matches."""
    found = 0
    for name, parameter in module.named_parameters():
        trained = not tower.locked and bool(re.search(tower.trainable, name))
        parameter.requires_grad_(trained)
        found += trained
    if not tower.locked and not found and next(module.parameters(), None) is not None:
        raise RecipeError(f"expected model.{side}.trainable to match a parameter, got {tower.trainable!r}: none does")
