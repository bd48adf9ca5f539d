"""A locked image tower and labelled images in, pooled features out; computed once, then read from the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from edgeclip.files import atomic_folder, cache_dir
from edgeclip.runtime.images import Image, opencv
from edgeclip.training.data.labelled import LabelledSamples, content_digest
from edgeclip.training.data.pairs import PairSource
from edgeclip.training.loop.features import features_of
from edgeclip.training.model import weights_digest
from edgeclip.training.towers.pretrained import ImageTower


class Features(NamedTuple):
    """Pooled features (N, F) float16 of N images, their labels (N,) int64, and how many samples were damaged."""

    features: npt.NDArray[np.float16]
    labels: npt.NDArray[np.int64]
    skipped: int


def cached_features(
    tower: ImageTower, source: PairSource, *, view: int = 0, progress: Callable[[int], None] | None = None
) -> Features:
    """Features of every labelled image of a source.

    The cache is keyed by the tower's weights, its preprocessing, all that the source holds and the view.

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
