"""Photographs in, a bundle's golden set out: 64 views, the FP32 graph's embeddings of them, and classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgeclip.bundle import Bundle
from edgeclip.calibration.images import crops
from edgeclip.errors import ModelError
from edgeclip.export.photographs import Photograph
from edgeclip.prompts import FloatArray, build_table
from edgeclip.runtime.engine import load_engine
from edgeclip.runtime.golden import COUNT, Golden, decoded_inputs, golden_files
from edgeclip.spec import EncoderSpec
from edgeclip.training.model import TextTower

_SEED = 20  # unlike that of the calibration's crops: what ranges were measured on proves little


def make_golden(fp32: Path, encoder: EncoderSpec, photos: Sequence[Photograph], classes: FloatArray) -> Golden:
    """Take all photographs, and random crops of them up to ``COUNT`` views, and encode them.

    Args:
        fp32: the FP32 graph, already proved against its model.
        classes: (C, D) unit rows; see :func:`class_rows`.
    """
    names, images = [list(column)[:COUNT] for column in zip(*photos, strict=True)]
    views = COUNT - len(images)
    names += [f"{names[view % len(photos)]}, crop {view // len(photos) + 1}" for view in range(views)]
    images += crops(images, views, seed=_SEED)
    files = golden_files(images, encoder.preprocess)
    inputs = decoded_inputs(files, encoder.preprocess)
    with load_engine("onnxruntime", fp32, encoder) as engine:
        embeddings = np.concatenate([engine.infer(image[None]) for image in inputs])
    return Golden(tuple(names), files, embeddings, classes)


def class_rows(text: TextTower, width: int) -> FloatArray:
    """Rows (C, D) of the classes of the starter's table, by the model's own text encoder.

    Returns:
        (0, D) where the tokenizer's files cannot be had: agreement and margins are then not taken.
    """
    classes = Bundle.open("starter").table("objects").classes
    try:
        return build_table(text, classes, ("a photo of a {}.",), name="golden", model_id="").embeddings
    except ModelError:
        return np.zeros((0, width), np.float32)
