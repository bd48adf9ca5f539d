"""A locked image tower and labelled images in, pooled features out; computed once, then read from the cache."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edgeclip.files import atomic_folder, cache_dir
from edgeclip.runtime.engines.base import Engine, FloatArray, load_engine
from edgeclip.runtime.images import Image, opencv
from edgeclip.runtime.preprocess.preprocess import Preprocessor
from edgeclip.spec import EncoderSpec
from edgeclip.training.data.labelled import LabelledSamples, content_digest
from edgeclip.training.data.pairs import PairSource
from edgeclip.training.model import weights_digest
from edgeclip.training.towers.pretrained import ImageTower
from edgeclip.training.towers.quiet import quiet

_BATCH = 16


class Features(NamedTuple):
    """Pooled features (N, F) float16 of N images, their labels (N,) int64, and how many samples were damaged."""

    features: npt.NDArray[np.float16]
    labels: npt.NDArray[np.int64]
    skipped: int


def cached_features(
    tower: ImageTower, source: PairSource, *, view: int = 0, progress: Callable[[int], None] | None = None
) -> Features:
    """Features of every labelled image of a source.

    The cache is keyed by the tower's weights, its preprocessing, all that the source holds and the view. The tower
    runs in ONNX Runtime, several times as fast as eager torch for a depthwise CNN on a CPU.

    Args:
        view: shrink each image to this side first, pixels; 0 to leave it as it is.
        progress: called with the number of images done.
    """
    key = hashlib.sha256(weights_digest([tower.module]).encode())
    key.update(msgspec.json.encode(tower.preprocess) + str(view).encode())
    key.update(content_digest(source).encode())
    folder = cache_dir("features") / key.hexdigest()
    if not folder.is_dir():
        with atomic_folder(folder) as temporary:
            samples = LabelledSamples(source)
            features, labels = _extract(tower, samples, view, progress)
            np.save(temporary / "features.npy", features)
            np.save(temporary / "labels.npy", labels)
            np.save(temporary / "skipped.npy", samples.skipped.count)
    return Features(
        np.load(folder / "features.npy", mmap_mode="r"),
        np.load(folder / "labels.npy"),
        int(np.load(folder / "skipped.npy")),
    )


def _extract(
    tower: ImageTower, samples: LabelledSamples, view: int, progress: Callable[[int], None] | None
) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.int64]]:
    labels: list[int] = []

    def images() -> Iterator[Image]:
        for sample in samples:
            labels.append(sample.label)
            yield shrink(sample.image, view) if view else sample.image

    features = features_of(tower, images(), progress=progress)
    return features, np.array(labels, np.int64)


def features_of(
    tower: ImageTower, images: Iterable[Image], *, progress: Callable[[int], None] | None = None
) -> npt.NDArray[np.float16]:
    """Pooled features (N, F) of N decoded images.

    A depthwise CNN on a CPU runs in ONNX Runtime, where it is several times as fast as in eager torch; any other tower
    runs where its weights are.

    Args:
        progress: called with the number of images done.
    """
    preprocess = Preprocessor(tower.preprocess)
    rows: list[npt.NDArray[np.float16]] = []
    pending: list[FloatArray] = []
    done = 0
    with _running(tower) as run:
        for image in images:
            pending.append(preprocess(image))
            if len(pending) == _BATCH:
                rows.append(run(np.stack(pending)).astype(np.float16))
                done += len(pending)
                pending.clear()
                if progress:
                    progress(done)
        if pending:
            rows.append(run(np.stack(pending)).astype(np.float16))
    return np.concatenate(rows) if rows else np.empty((0, tower.width), np.float16)


@contextlib.contextmanager
def _running(tower: ImageTower) -> Iterator[Callable[[FloatArray], FloatArray]]:
    device = next((parameter.device for parameter in tower.module.parameters()), torch.device("cpu"))
    depthwise = any(isinstance(module, nn.Conv2d) and module.groups > 1 for module in tower.module.modules())
    if depthwise and device.type == "cpu":
        with load_tower(tower) as engine:
            yield engine.infer
        return

    @torch.inference_mode()
    def run(images: FloatArray) -> FloatArray:
        features: FloatArray = tower.module(torch.from_numpy(images).to(device)).float().cpu().numpy()
        return features

    training = tower.module.training
    tower.module.eval()
    try:
        yield run
    finally:
        tower.module.train(training)


def shrink(image: Image, side: int) -> Image:
    """The image with its shorter side at ``side`` pixels, as a small sensor would have seen it; never enlarged."""
    height, width = image.shape[:2]
    scale = side / min(height, width)
    if scale >= 1:
        return image
    cv2 = opencv()
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small: Image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return small


def load_tower(tower: ImageTower) -> Engine:
    """The tower in ONNX Runtime: preprocessed (N, 3, H, W) → pooled features (N, F)."""
    spec = EncoderSpec(preprocess=tower.preprocess, embedding_dim=tower.width, logit_scale=1.0)
    example = torch.zeros(2, 3, tower.preprocess.height, tower.preprocess.width)
    with tempfile.TemporaryDirectory() as folder, quiet():
        path = Path(folder) / "tower.onnx"
        torch.onnx.export(
            tower.module,
            (example,),
            str(path),
            dynamo=True,
            verbose=False,
            input_names=["image"],
            output_names=["embedding"],
            dynamic_shapes=({0: torch.export.Dim("N")},),
        )
        return load_engine("onnxruntime", path, spec)
