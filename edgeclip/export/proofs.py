"""A model and its ONNX graph in, how well their embeddings of real photographs agree out; or a typed error.

Photographs in, a bundle's golden set out: up to 64 of them, the FP32 graph's embeddings of them, and classes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from edgeclip.bundle import Bundle
from edgeclip.calibration.images import crops
from edgeclip.errors import InputError, ModelError
from edgeclip.export.photographs import Photograph
from edgeclip.printable import printable
from edgeclip.prompts import FloatArray, alike_rows, encode_table
from edgeclip.runtime.engines.base import load_engine
from edgeclip.runtime.preprocess.preprocess import Preprocessor
from edgeclip.runtime.proof.basis import Origin
from edgeclip.runtime.proof.distinct import pixels_digest
from edgeclip.runtime.proof.golden import COUNT, GoldenImages, crop_name, decoded_inputs, golden_files
from edgeclip.runtime.proof.parity import LIMITS, ParityLimits, ParityReport, compare_embeddings, worst_of
from edgeclip.spec import EncoderSpec
from edgeclip.training.model import ContrastiveModel, TextTower

_log = logging.getLogger("edgeclip")
_BATCH = 16
_SEED = 20  # unlike that of the calibration's crops
_UNCHECKED = "top-1 agreement and margin loss cannot be checked"


def check_parity(
    model: ContrastiveModel,
    onnx_path: Path,
    photos: Sequence[Photograph],
    *,
    limits: ParityLimits = LIMITS["fp32"],
    classes: FloatArray | None = None,
) -> ParityReport:
    """Compare an ONNX file on ONNX Runtime's CPU provider with the model's own ``encode_image``.

    Both see the same preprocessed photographs, the file one by one and in batches.

    Args:
        classes: (C, D) unit rows; see ``class_rows``.

    Raises:
        ParityError: below the limit, with the worst images.
        EngineError: the file does not load or run, or gives values that are not finite.
    """
    images = preprocess(photos, model.encoder)
    reference = np.concatenate([model.encode_image(torch.from_numpy(image[None])).numpy() for image in images])
    names = [name for name, _ in photos]
    reports = [
        compare_embeddings(reference, candidate, names, batch_size=size, classes=classes)
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
    """Embeddings (N, D) of all images at batch 1 and at batch N, or 16 if N is more: [(batch size, rows)]."""
    with load_engine("onnxruntime", path, encoder) as engine:
        rows = []
        for size in sorted({1, min(len(images), _BATCH)}):
            batches = [images[start : start + size] for start in range(0, len(images), size)]
            rows.append((size, np.concatenate([engine.infer(batch) for batch in batches])))
    return rows


def make_golden(
    fp32: Path,
    encoder: EncoderSpec,
    photos: Sequence[Photograph],
    classes: FloatArray,
    *,
    origin: Origin = "stand-ins",
) -> GoldenImages:
    """Take the first ``COUNT`` photographs and encode them; of stand-ins, which are few, random crops as well.

    Args:
        fp32: the FP32 graph, already proved against its model.
        photos: may be lazy: each is read once.
        classes: (C, D) unit rows; see ``class_rows``.
        origin: whose they are.
    """
    names, digests, files = list[str](), list[str](), list[bytes]()
    for name, pixels in islice(photos, COUNT):
        names.append(name)
        digests.append(pixels_digest(pixels))
        files += golden_files([pixels], encoder.preprocess)
    if origin == "stand-ins" and (views := COUNT - len(files)) > 0:
        files += golden_files(crops([pixels for _, pixels in photos], views, seed=_SEED), encoder.preprocess)
        names += [crop_name(names[view % len(photos)], view // len(photos) + 1) for view in range(views)]
        digests += [digests[view % len(photos)] for view in range(views)]
    inputs = decoded_inputs(files, encoder.preprocess)
    with load_engine("onnxruntime", fp32, encoder) as engine:
        embeddings = np.concatenate([engine.infer(image[None]) for image in inputs])
    return GoldenImages(tuple(names), tuple(files), embeddings, classes, tuple(digests), origin)


def class_rows(text: TextTower, width: int) -> FloatArray:
    """Rows (C, D) of the classes of the starter's table, by the model's own text encoder.

    Returns:
        (0, D), with a warning, where it has no tokenizer or cannot tell the classes apart: top-1 agreement and margin
        loss can then not be checked.
    """
    classes = Bundle.open("starter").table("objects").classes
    try:
        table = encode_table(text, classes, ("a photo of a {}.",), name="golden", model_id="")
    except ModelError as error:
        _log.warning("%s: no prompt can be encoded (%s)", _UNCHECKED, printable(str(error)))
        return np.zeros((0, width), np.float32)
    if (alike := alike_rows(table.embeddings)) and len(alike[0]) == len(classes):
        _log.warning("%s: the text encoder cannot tell classes apart, all get the same row", _UNCHECKED)
        return np.zeros((0, width), np.float32)
    return table.embeddings
