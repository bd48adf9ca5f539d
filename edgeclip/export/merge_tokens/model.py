"""A ContrastiveModel and a number of tokens in; the same model with an image tower that merges them, out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from edgeclip.bundle import Bundle
from edgeclip.documents import read_json
from edgeclip.errors import BundleError
from edgeclip.export.merge_tokens.blocks import MergingBlocks, merge_tower
from edgeclip.export.photographs import Photograph
from edgeclip.export.proofs import preprocess
from edgeclip.printable import counted
from edgeclip.prompts import FloatArray
from edgeclip.runtime.proof.parity import ParityReport, compare_embeddings
from edgeclip.spec import ModelIdentity
from edgeclip.training.model import ContrastiveModel

REPORT = "reports/merge-tokens.json"


class MergeReport(msgspec.Struct, frozen=True, kw_only=True):
    """What merging does to a model, beside making it faster; a bundle's ``reports/merge-tokens.json``.

    Attributes:
        merged: R, the tokens merged in each block.
        tokens: how many enter each block, and last how many leave the last one.
        unmerged_model: id of the model before.
        agreement: of the merged tower's embeddings with the unmerged one's, in torch.
    """

    merged: int
    tokens: tuple[int, ...]
    unmerged_model: str
    agreement: ParityReport

    def line(self) -> str:
        """The report in a sentence."""
        found = self.agreement
        same = "" if found.agreement is None else f", same best class of {found.classes} in {found.agreement:.0%}"
        return (
            f"merges {self.merged} tokens a block: {self.tokens[0]} enter the first, {self.tokens[-2]} the last; on "
            f"{counted(found.images, 'photograph')} cosine to the unmerged model {found.mean_cosine:.4f} (worst "
            f"{found.min_cosine:.4f}, {found.worst[0]}){same}"
        )


class MergedModel(ContrastiveModel):
    """A model whose image tower merges tokens; text side, preprocessing and scoring are those of the model itself.

    Its id is another, since its embeddings are. It takes the prompt tables of the unmerged model: the text encoder is
    the same, and the image encoder is meant to give the same embeddings.

    Args:
        model: stays as it is.
        merged: R, tokens merged in each block.

    Raises:
        ModelError: the image tower is none of those that tokens can be merged in.
        InputError: ``merged`` is negative, or more than the first block can merge.
    """

    def __init__(self, model: ContrastiveModel, merged: int) -> None:
        self.unmerged = model
        self.merged = merged
        self.name = f"{model.name}, {merged} tokens merged a block"
        self.origin = model.origin
        self.encoder = model.encoder
        self.text = model.text
        size = model.encoder.preprocess
        self._tower = merge_tower(model.exportable(), merged, image_size=(size.height, size.width), name=model.name)

    @cached_property
    def identity(self) -> ModelIdentity:
        """The unmerged model's, with a digest that says what became of its image encoder."""
        before = self.unmerged.identity
        digest = hashlib.sha256(f"{before.image_sha256} merge_tokens={self.merged}".encode()).hexdigest()
        return msgspec.structs.replace(
            before,
            name=self.name,
            image_sha256=digest,
            distilled_from=(before.image_sha256, *before.distilled_from),
        )

    def encode_image(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) float32 → (N, D) float32, not normalised, by the merged tower."""
        with torch.inference_mode():
            embeddings: Tensor = self._tower(images)
        return embeddings.float()

    def exportable(self) -> nn.Module:
        """The merged tower."""
        return self._tower

    def image_modules(self) -> Sequence[nn.Module]:
        """The unmerged model's: merging adds no weights."""
        return self.unmerged.image_modules()

    def report(self, photos: Sequence[Photograph], classes: FloatArray) -> MergeReport:
        """Compare with the unmerged model.

        Args:
            photos: real photographs.
            classes: (C, D) unit rows for the agreement of the best class; none of them is taken with C < 2.
        """
        images = torch.from_numpy(preprocess(photos, self.encoder))
        before, after = (
            np.concatenate([model.encode_image(image[None]).numpy() for image in images])
            for model in (self.unmerged, self)
        )
        names = [name for name, _ in photos]
        blocks = next(module for module in self._tower.modules() if isinstance(module, MergingBlocks))
        return MergeReport(
            merged=self.merged,
            tokens=blocks.tokens,
            unmerged_model=self.unmerged.identity.id,
            agreement=compare_embeddings(before, after, names, batch_size=1, classes=classes),
        )


def merge_report(bundle: Bundle) -> MergeReport | None:
    """A bundle's report, or None where no tokens are merged.

    Raises:
        IntegrityError: it is altered.
        BundleError: it is not what the export writes.
    """
    if REPORT not in bundle.manifest.files:
        return None
    return read_json(bundle.file(REPORT), MergeReport, error=BundleError)
