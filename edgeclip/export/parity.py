"""A model and its ONNX graph in, how well their embeddings of real photographs agree out; or a typed error."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from edgeclip.errors import InputError
from edgeclip.export.photographs import Photograph
from edgeclip.prompts import FloatArray
from edgeclip.runtime.engine import load_engine
from edgeclip.runtime.parity import LIMITS, Limits, ParityReport, compare_embeddings, worst_of
from edgeclip.runtime.preprocess import Preprocessor
from edgeclip.spec import EncoderSpec
from edgeclip.training.model import ContrastiveModel


def check_parity(
    model: ContrastiveModel, onnx_path: Path, photos: Sequence[Photograph], *, limits: Limits = LIMITS["fp32"]
) -> ParityReport:
    """Compare an ONNX file on ONNX Runtime's CPU provider with the model's own ``encode_image``.

    Both see the same preprocessed photographs, the file one by one and all in one batch.

    Raises:
        ParityError: below the limit, with the worst images.
        EngineError: the file does not load or run, or gives values that are not finite.
    """
    images = preprocess(photos, model.encoder)
    reference = np.concatenate([model.encode_image(torch.from_numpy(image[None])).numpy() for image in images])
    names = [name for name, _ in photos]
    reports = [
        compare_embeddings(reference, candidate, names, batch_size=size)
        for size, candidate in run_onnx(onnx_path, images, model.encoder)
    ]
    return worst_of(reports).require(limits, what=f"{onnx_path.name} differs from {model.name}")


def preprocess(photos: Sequence[Photograph], encoder: EncoderSpec) -> FloatArray:
    """Photographs as one batch (N, 3, H, W) float32.

    Raises:
        InputError: there are none.
    """
    if not photos:
        raise InputError("expected photographs to compare on, got none")
    preprocessor = Preprocessor(encoder.preprocess)
    return np.stack([preprocessor(pixels) for _, pixels in photos])


def run_onnx(path: Path, images: FloatArray, encoder: EncoderSpec) -> list[tuple[int, FloatArray]]:
    """Embeddings (N, D) of all images at batch 1 and at batch N: [(batch size, rows)]."""
    with load_engine("onnxruntime", path, encoder) as engine:
        rows = [(1, np.concatenate([engine.infer(image[None]) for image in images]))]
        if len(images) > 1:
            rows.append((len(images), engine.infer(images)))
    return rows
