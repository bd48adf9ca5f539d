"""An image and the changes that a recipe asks for in, the encoder's size in bytes out.

The changes are torchvision's (``transforms.v2``), on uint8 tensors; the plain resize is edgeclip's own, so that a model
trained without a random crop sees exactly what a device will show it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from edgeclip.extras import require
from edgeclip.runtime.images import Image
from edgeclip.runtime.preprocess.preprocess import Preprocessor
from edgeclip.spec import PreprocessSpec
from edgeclip.training.recipe import Augment

_RATIO = (3 / 4, 4 / 3)


class Augmenter:
    """Images of any size to the encoder's, changed at random; of one thread.

    Random numbers come from torch's default generator, so that a caller that seeds it gets the same image again.

    Args:
        spec: what the encoder expects.
        augment: the changes.
    """

    def __init__(self, spec: PreprocessSpec, augment: Augment) -> None:
        self.preprocess = Preprocessor(spec)
        self._crops = augment.crop_scale != (1.0, 1.0)
        self._change = _changes(spec, augment) if augment.active else None

    def __call__(self, image: Image) -> Image:
        """(H, W, 3) uint8 RGB to (height, width, 3) uint8 RGB, before normalisation."""
        small = image if self._crops else self.preprocess.resize(image)
        if self._change is None:
            return small
        tensor = torch.from_numpy(np.ascontiguousarray(small)).permute(2, 0, 1)  # (3, H, W), a view
        changed: Image = self._change(tensor).permute(1, 2, 0).numpy()
        return changed


def _changes(spec: PreprocessSpec, augment: Augment) -> Any:
    transforms: Any = require("torchvision.transforms.v2", purpose="augment images", extra="train")
    steps: list[Any] = []
    if augment.crop_scale != (1.0, 1.0):
        steps.append(
            transforms.RandomResizedCrop(
                (spec.height, spec.width),
                scale=augment.crop_scale,
                ratio=_RATIO,
                interpolation=transforms.InterpolationMode(spec.interpolation),
                antialias=True,
            )
        )
    if augment.flip:
        steps.append(transforms.RandomHorizontalFlip(augment.flip))
    if augment.colour:
        steps.append(transforms.ColorJitter(augment.colour, augment.colour, augment.colour))
    if augment.random_erase:
        # Erased to the mean colour, which is 0 after normalisation.
        steps.append(transforms.RandomErasing(augment.random_erase, value=[round(255 * m) for m in spec.mean]))
    return transforms.Compose(steps)
