"""A tower that is not trained and its inputs in, what it makes of them out: computed once, not at each step.

Of images the pooled features (a locked tower's) or the embeddings (a teacher's) are kept on disk, beside the samples
that they are of; of texts the features are kept in memory.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import normalize

from edgeclip.errors import TrainingError
from edgeclip.files import atomic_folder, cache_dir, sha256_json
from edgeclip.prompts import load_templates
from edgeclip.runtime.images import Image
from edgeclip.training.data.labelled import content_digest, decoded_pairs
from edgeclip.training.data.loader import PairBatch, TextChooser, text_group
from edgeclip.training.data.pairs import ImageTextPair, PairSource, Tally
from edgeclip.training.loop.distributed import World
from edgeclip.training.loop.features import features_of
from edgeclip.training.model import ContrastiveModel, weights_digest
from edgeclip.training.recipe import Data
from edgeclip.training.towers.pretrained import ImageTower

_Stored = tuple[list[tuple[str, tuple[str, ...], int]], int]  # key, captions and label of each sample; those left out
_TEXT_BATCH = 256
_TEXTS_KEPT = 200_000  # a caption that is seen once in an epoch of more is not worth the memory


class PairFeatures(NamedTuple):
    """Features (N, F) float16 of the N images that could be read, their samples, and how many were left out.

    A sample's image is a path that leads nowhere: its features stand in its place.
    """

    features: npt.NDArray[np.float16]
    samples: list[ImageTextPair]
    skipped: int


def pair_features(
    tower: ImageTower, source: PairSource, *, progress: Callable[[int], None] | None = None
) -> PairFeatures:
    """Features of every image of a source, from the cache if they were computed before.

    The cache is keyed by the tower's weights, its preprocessing and all that the source holds.

    Args:
        progress: called with the number of images done.

    Raises:
        TrainingError: no image can be read.
    """
    key = sha256_json([weights_digest([tower.module]), tower.preprocess, content_digest(source), "samples"])
    folder = cache_dir("features") / key
    if not folder.is_dir():
        samples: list[tuple[str, tuple[str, ...], int]] = []
        skipped = Tally()

        def images() -> Iterator[Image]:
            for pair, image in decoded_pairs(source, skipped):
                samples.append((pair.key, pair.captions, pair.label))
                yield image

        features = features_of(tower, images(), progress=progress)
        if not samples:
            raise TrainingError(f"no image of {source.name} could be read ({skipped})")
        with atomic_folder(folder) as temporary:
            np.save(temporary / "features.npy", features)
            (temporary / "samples.msgpack").write_bytes(msgspec.msgpack.encode((samples, skipped.count)))
    stored, count = msgspec.msgpack.decode((folder / "samples.msgpack").read_bytes(), type=_Stored)
    kept = [ImageTextPair(key, Path(), captions, label) for key, captions, label in stored]
    return PairFeatures(np.load(folder / "features.npy", mmap_mode="r"), kept, count)


def pair_features_once(tower: ImageTower, source: PairSource, world: World) -> PairFeatures:
    """``pair_features`` by the main process; the others wait and read what it wrote."""
    if world.main:
        pair_features(tower, source)
    world.wait()
    return pair_features(tower, source)


class FeatureLoader:
    """Endless batches as ``PairLoader`` gives, with features (N, F) for images.

    Each epoch is one permutation of all pairs; the processes divide each batch.

    Args:
        pairs: from ``pair_features``.
        source: for its class names.
        batch_size: N, of this process.
        images_only: leave texts out, and take samples without any.

    Attributes:
        skipped: samples whose image or text is missing.

    Raises:
        TrainingError: no sample has a text.
    """

    def __init__(
        self,
        pairs: PairFeatures,
        source: PairSource,
        data: Data,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        images_only: bool = False,
    ) -> None:
        self._size, self._seed, self._rank, self._world = batch_size, seed, rank, world
        self._chooser = None if images_only else TextChooser(source.classes, load_templates(data.templates))
        self._features, self._samples = pairs.features, pairs.samples
        self._rows = [row for row, sample in enumerate(pairs.samples) if self._text_of(sample, 0)]
        if not self._rows:
            raise TrainingError(
                f"expected captions, or labels with data.classes, in {source.name}, got neither in "
                f"{len(pairs.samples)} samples"
            )
        self.skipped = pairs.skipped + len(pairs.samples) - len(self._rows)
        self._batches = 0
        self._made_for = {"rows": len(self._rows), "batch_size": batch_size, "seed": seed, "rank": rank, "world": world}

    def __iter__(self) -> Iterator[PairBatch]:
        """Batches from where the last iteration, or the loaded state, ended."""
        count, order, ordered = len(self._rows), np.empty(0, np.int64), -1
        while True:
            first = (self._batches * self._world + self._rank) * self._size
            rows: list[int] = []
            texts: list[tuple[str, int]] = []
            for place in range(first, first + self._size):
                epoch, within = divmod(place, count)
                if epoch != ordered:
                    order, ordered = np.random.default_rng([self._seed, epoch]).permutation(count), epoch
                rows.append(self._rows[order[within]])
                texts.append(self._text_of(self._samples[rows[-1]], epoch) or ("", -1))
            self._batches += 1
            yield PairBatch(
                keys=tuple(self._samples[row].key for row in rows),
                images=torch.from_numpy(self._features[rows].astype(np.float32)),
                texts=() if self._chooser is None else tuple(text for text, _ in texts),
                groups=torch.tensor([group for _, group in texts]),
            )

    def state_dict(self) -> dict[str, Any]:
        """Where this process is, after the last batch that was taken."""
        return {"made_for": dict(self._made_for), "batches": self._batches}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there.

        Raises:
            TrainingError: the state is of other data, or another seed, batch size or number of processes.
        """
        if state.get("made_for") != self._made_for:
            raise TrainingError(
                "the loader's saved state is of other data or settings "
                f"({state.get('made_for')}, now {self._made_for}): use the same again"
            )
        self._batches = state["batches"]

    def _text_of(self, sample: ImageTextPair, epoch: int) -> tuple[str, int] | None:
        if self._chooser is None:
            return "", text_group(sample.key)
        return self._chooser.choose(sample, random.Random(f"{self._seed}/{epoch}/{sample.key}"))


class TeacherEmbeddings:
    """A teacher's embedding of every image of a source, computed once: whole, and prepared as the teacher takes it.

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
        pairs = pair_features_once(tower, source, world)
        self._embeddings = pairs.features
        self._rows = {sample.key: row for row, sample in enumerate(pairs.samples)}
        if len(self._rows) < len(pairs.samples):
            ((key, count),) = Counter(sample.key for sample in pairs.samples).most_common(1)
            raise TrainingError(
                f"expected a key of its own for each sample of {source.name}, got {key} {count} times: a teacher's "
                "embedding is found by it; name the samples differently"
            )

    def __call__(self, keys: Sequence[str]) -> Tensor:
        """Samples' keys → the teacher's unit embeddings (N, D) float32, on the CPU."""
        rows = self._embeddings[[self._rows[key] for key in keys]]
        return normalize(torch.from_numpy(rows).float(), dim=-1)


class TextFeatures:
    """A locked text tower's features, each distinct text encoded once.

    Args:
        encode: texts → (N, T), without gradients.
    """

    def __init__(self, encode: Callable[[Sequence[str]], Tensor]) -> None:
        self._encode = encode
        self._known: dict[str, Tensor] = {}

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(N, T) float32."""
        new = sorted({text for text in texts if text not in self._known}, key=len)
        found = self._known
        if len(found) + len(new) > _TEXTS_KEPT:
            found = {text: found[text] for text in texts if text in found}
        for start in range(0, len(new), _TEXT_BATCH):
            part = new[start : start + _TEXT_BATCH]
            found.update(zip(part, self._encode(part).float(), strict=True))
        return torch.stack([found[text] for text in texts])
