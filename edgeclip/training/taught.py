"""A teacher and images in, its embedding of each image out: computed once, kept on disk, looked up by sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from edgeclip.errors import TrainingError
from edgeclip.training.distributed import World
from edgeclip.training.locked import PairFeatures, pair_features
from edgeclip.training.model import ContrastiveModel
from edgeclip.training.pairs import PairSource
from edgeclip.training.towers import ImageTower


class Taught:
    """What a teacher says of every image of a source as it is: whole, and prepared as the teacher takes it.

    The embeddings lie in the cache folder, as a locked tower's features do, in float16. Rows are found by the samples'
    keys, so a student may be shown the images in any order and in any view.

    Args:
        teacher: any model, on the device that it is to run on.
        source: the images.

    Raises:
        TrainingError: no image can be read, or two samples have one key.
    """

    def __init__(self, teacher: ContrastiveModel, source: PairSource, world: World) -> None:
        encoder = teacher.encoder
        tower = ImageTower(teacher.exportable(), encoder.embedding_dim, encoder.preprocess)
        pairs = computed_once(tower, source, world)
        self._embeddings = pairs.features
        self._rows = {said.key: row for row, said in enumerate(pairs.said)}
        if len(self._rows) < len(pairs.said):
            ((key, count),) = Counter(said.key for said in pairs.said).most_common(1)
            raise TrainingError(
                f"expected a key of its own for each sample of {source.name}, got {key} {count} times: a teacher's "
                "embedding is found by it; name the samples differently"
            )

    def __call__(self, keys: Sequence[str]) -> Tensor:
        """Samples' keys → the teacher's unit embeddings (N, D) float32, on the CPU."""
        rows = self._embeddings[[self._rows[key] for key in keys]]
        return normalize(torch.from_numpy(rows).float(), dim=-1)


def computed_once(tower: ImageTower, source: PairSource, world: World) -> PairFeatures:
    """:func:`pair_features` by the main process; the others wait and read what it wrote."""
    if world.main:
        pair_features(tower, source)
    world.wait()
    return pair_features(tower, source)
