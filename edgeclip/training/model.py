"""What every contrastive image–text model becomes here, whichever library built it."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from edgeclip.errors import ModelError
from edgeclip.prompts import FloatArray
from edgeclip.spec import EncoderSpec, ModelIdentity, ModelOrigin, Sha256

_SPARE_TOKENS = 128


class TextTower(ABC):
    """The text side of a model: strings in, embeddings out."""

    @abstractmethod
    def encode_text(self, texts: Sequence[str]) -> FloatArray:
        """Tokenize and encode; embeddings (N, D) float32, not normalised.

        Raises:
            ModelError: the tokenizer's files cannot be had.
        """

    def too_long(self, texts: Sequence[str]) -> list[str]:  # noqa: ARG002 - for towers whose texts have an end
        """Those of the texts that are longer than the model's context, so that ``encode_text`` cuts them."""
        return []

    @abstractmethod
    def modules(self) -> Sequence[nn.Module]:
        """The modules whose weights make up this tower, in a fixed order."""

    @cached_property
    def sha256(self) -> str:
        """Digest of the tower's weights; the same on every machine."""
        return weights_digest(self.modules())


class TextModule(nn.Module, ABC):
    """A text tower that can be trained: tokens in, features before the projection out.

    Attributes:
        width: T of the features.
    """

    width: int

    @abstractmethod
    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Texts as one tensor on the CPU, first axis N, that ``forward`` takes on any device and in any chunks.

        Raises:
            ModelError: the tokenizer's files cannot be had.
        """

    def too_long(self, texts: Sequence[str]) -> list[str]:  # noqa: ARG002 - as TextTower
        """Those of the texts that ``tokenize`` cuts."""
        return []

    @abstractmethod
    def forward(self, tokens: Tensor) -> Tensor:
        """What ``tokenize`` gives → features (N, T)."""


def check_vocabulary(tokens: int, rows: int, model: str) -> None:
    """Refuse a tokenizer of another model: it would give texts that mean nothing, or all the same.

    Args:
        tokens: that the tokenizer knows.
        rows: of the model's table of tokens; made a round number, it may be a little more.

    Raises:
        ModelError: with both numbers.
    """
    if abs(tokens - rows) > min(_SPARE_TOKENS, rows // 20):
        raise ModelError(
            f"expected a tokenizer of {rows:,} tokens, as the text encoder of {model} has, got one of {tokens:,}: put "
            "the model's own tokenizer files beside its weights"
        )


class ContrastiveModel(ABC):
    """Two encoders into one space, with everything that is needed to use them elsewhere.

    Attributes:
        name: for people, e.g. ``ViT-B-32 (laion2b_s34b_b79k)``.
        origin: how to load it again.
        encoder: preprocessing, width and scoring.
        text: the text side.
        distilled_from: see ``ModelIdentity.distilled_from``.
        notes: what was settled when it was loaded that its name does not say, each in a sentence.
    """

    name: str
    origin: ModelOrigin
    encoder: EncoderSpec
    text: TextTower
    distilled_from: tuple[Sha256, ...] = ()
    notes: tuple[str, ...] = ()

    @abstractmethod
    def encode_image(self, images: Tensor) -> Tensor:
        """The library's own image embedding, the reference of every export.

        Args:
            images: (N, 3, H, W) float32, preprocessed as ``encoder.preprocess`` says.

        Returns:
            (N, D) float32, not normalised.
        """

    @abstractmethod
    def exportable(self) -> nn.Module:
        """A module in eval mode, ready for export (branches merged, no in-place tricks): (N, 3, H, W) → (N, D) float32.

        It may share weights with this model but never changes what ``encode_image`` returns.
        """

    @abstractmethod
    def image_modules(self) -> Sequence[nn.Module]:
        """The modules whose weights make up the image side, in a fixed order."""

    def encode_text(self, texts: Sequence[str]) -> FloatArray:
        """Embeddings (N, D) float32, not normalised."""
        return self.text.encode_text(texts)

    @cached_property
    def identity(self) -> ModelIdentity:
        """Name, origin and the digests of both sides' weights."""
        return ModelIdentity(
            name=self.name,
            origin=self.origin,
            image_sha256=weights_digest(self.image_modules()),
            text_sha256=self.text.sha256,
            distilled_from=self.distilled_from,
        )


def weights_digest(modules: Sequence[nn.Module]) -> str:
    """sha256 over the names, shapes, dtypes and values of all parameters and persistent buffers.

    Raises:
        ModelError: a weight is not finite.
    """
    return states_digest([module.state_dict() for module in modules])


def states_digest(states: Sequence[Mapping[str, Tensor]]) -> str:
    """``weights_digest`` of modules by their state dicts."""
    digest = hashlib.sha256()
    for state in states:
        for name, tensor in sorted(state.items()):
            value = tensor.detach().cpu().contiguous()
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise ModelError(f"weight {name} holds values that are not finite: the checkpoint is damaged")
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
            digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
