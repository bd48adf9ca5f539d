"""Labelled images and a model in training in, its zero-shot top-1 out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import msgspec
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from edgeclip.errors import RecipeError
from edgeclip.prompts import FloatArray, PromptClass, encode_table, load_templates
from edgeclip.runtime.preprocess.preprocess import Preprocessor
from edgeclip.spec import PreprocessSpec
from edgeclip.training.data.labelled import LabelledSamples
from edgeclip.training.data.pairs import open_pairs
from edgeclip.training.recipe import Data

_BATCH = 64
_KEPT_BYTES = 512 << 20  # validation images that are kept decoded; a larger set is read each time


class ZeroShot:
    """A labelled validation set, scored as the device will: prompts averaged per class, the nearest class wins.

    Args:
        data: ``val``, its class names (``val_classes`` or ``classes``) and ``templates``.
        spec: what the image encoder expects.

    Raises:
        SourceError, TrainingError: ``data.val`` cannot be read.
        RecipeError: its classes have no names.
    """

    def __init__(self, data: Data, spec: PreprocessSpec) -> None:
        source = open_pairs(msgspec.structs.replace(data, pairs=data.val, classes=data.val_classes or data.classes))
        if not source.classes:
            raise RecipeError(f"expected class names for data.val {data.val}, got none: set data.val_classes")
        self.classes = source.classes
        self._templates = load_templates(data.templates)
        self._samples = LabelledSamples(source)
        self._preprocess = Preprocessor(spec)
        self._kept: list[tuple[Tensor, Tensor]] | None = None

    def top1(
        self, encode_image: Callable[[Tensor], Tensor], encode_text: Callable[[Sequence[str]], FloatArray]
    ) -> float:
        """Share of images whose class has the largest cosine.

        Args:
            encode_image: (N, 3, H, W) float32 on the CPU → (N, D).
            encode_text: texts → (N, D) float32.
        """
        rows = torch.from_numpy(self._rows(encode_text))  # (C, D)
        right = total = 0
        for images, labels in self._batches():
            embeddings = normalize(encode_image(images).float().cpu(), dim=-1)  # (N, D)
            right += int(((embeddings @ rows.T).argmax(dim=1) == labels).sum())
            total += len(labels)
        return right / total

    def _rows(self, encode_text: Callable[[Sequence[str]], FloatArray]) -> FloatArray:
        classes = [PromptClass(names[0], tuple(names)) for names in self.classes]
        return encode_table(_Encoder(encode_text), classes, self._templates, name="val", model_id="").embeddings

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (N, 3, H, W) and labels (N,)."""
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[tuple[Tensor, Tensor]] = []
        size = 0
        for batch in self._read():
            size += batch[0].nbytes
            if size <= _KEPT_BYTES:
                kept.append(batch)
            yield batch
        if size <= _KEPT_BYTES:
            self._kept = kept

    def _read(self) -> Iterator[tuple[Tensor, Tensor]]:
        images: list[FloatArray] = []
        labels: list[int] = []
        for sample in self._samples:
            images.append(self._preprocess(sample.image))
            labels.append(sample.label)
            if len(images) == _BATCH:
                yield torch.from_numpy(np.stack(images)), torch.tensor(labels)
                images, labels = [], []
        if images:
            yield torch.from_numpy(np.stack(images)), torch.tensor(labels)


class _Encoder:
    """A function as the text encoder that a table builder wants."""

    def __init__(self, encode_text: Callable[[Sequence[str]], FloatArray]) -> None:
        self._encode_text = encode_text

    def encode_text(self, texts: Sequence[str]) -> FloatArray:
        """Embeddings (N, D) float32."""
        return self._encode_text(texts)
