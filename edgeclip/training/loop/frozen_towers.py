"""What a locked tower makes of the same inputs in, computed once: images' features on disk, texts' in memory.

A teacher and images in, its embedding of each image out: computed once, kept on disk, looked up by sample.
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

from edgeclip.errors import SourceError, TrainingError
from edgeclip.files import atomic_folder, cache_dir, sha256_json
from edgeclip.prompts import load_templates
from edgeclip.training.data.labelled import content_digest, decoded
from edgeclip.training.data.loader import PairBatch
from edgeclip.training.data.pairs import Damaged, Pair, PairSource, Share, Tally
from edgeclip.training.data.tables import Sayings, text_group
from edgeclip.training.loop.distributed import World
from edgeclip.training.loop.features import features_of
from edgeclip.training.model import ContrastiveModel, weights_digest
from edgeclip.training.recipe import Data
from edgeclip.training.towers.pretrained import ImageTower

_TEXT_BATCH = 256
_TEXTS_KEPT = 200_000  # a caption that is seen once in an epoch of more is not worth the memory


class Said(NamedTuple):
    """What there is to say of a sample whose image is a row of features."""

    key: str
    captions: tuple[str, ...]
    label: int


class PairFeatures(NamedTuple):
    """Features (N, F) float16 of the N images that could be read, what may be said of each, and who was left out."""

    features: npt.NDArray[np.float16]
    said: list[Said]
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
    key = sha256_json([weights_digest([tower.module]), tower.preprocess, content_digest(source), "pairs"])
    folder = cache_dir("features") / key
    if not folder.is_dir():
        said: list[Said] = []
        skipped = Tally()
        features = features_of(tower, _images(source, said, skipped), progress=progress)
        if not said:
            raise TrainingError(f"no image of {source.name} could be read ({skipped})")
        with atomic_folder(folder) as temporary:
            np.save(temporary / "features.npy", features)
            (temporary / "said.msgpack").write_bytes(msgspec.msgpack.encode((said, skipped.count)))
    stored, count = msgspec.msgpack.decode((folder / "said.msgpack").read_bytes(), type=tuple[list[Said], int])
    return PairFeatures(np.load(folder / "features.npy", mmap_mode="r"), stored, count)


def _images(source: PairSource, said: list[Said], skipped: Tally) -> Iterator[npt.NDArray[np.uint8]]:
    for item in source.read(Share()):
        if isinstance(item, Damaged):
            skipped.add(item)
            continue
        try:
            image = decoded(item)
        except SourceError as error:
            skipped.add(Damaged(item.key, str(error)))
            continue
        said.append(Said(item.key, item.captions, item.label))
        yield image


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
        TrainingError: nothing can be said of any image.
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
        self._sayings = None if images_only else Sayings(source.classes, load_templates(data.templates))
        self._features, self._said = pairs.features, pairs.said
        self._rows = [row for row, said in enumerate(pairs.said) if self._say(said, 0, seed)]
        if not self._rows:
            raise TrainingError(
                f"expected captions, or labels with data.classes, in {source.name}, got neither in "
                f"{len(self._said)} samples"
            )
        self.skipped = pairs.skipped + len(pairs.said) - len(self._rows)
        self._size, self._seed, self._rank, self._world = batch_size, seed, rank, world
        self._batches = 0
        self._made_for = {"rows": len(self._rows), "batch_size": batch_size, "seed": seed, "rank": rank, "world": world}

    def __iter__(self) -> Iterator[PairBatch]:
        """Batches from where the last iteration, or the loaded state, ended."""
        count, order, ordered = len(self._rows), np.empty(0, np.int64), -1
        while True:
            first = (self._batches * self._world + self._rank) * self._size
            rows: list[int] = []
            said: list[tuple[str, int]] = []
            for place in range(first, first + self._size):
                epoch, within = divmod(place, count)
                if epoch != ordered:
                    order, ordered = np.random.default_rng([self._seed, epoch]).permutation(count), epoch
                rows.append(self._rows[order[within]])
                said.append(self._say(self._said[rows[-1]], epoch, self._seed) or ("", -1))
            self._batches += 1
            yield PairBatch(
                keys=tuple(self._said[row].key for row in rows),
                images=torch.from_numpy(self._features[rows].astype(np.float32)),
                texts=() if self._sayings is None else tuple(text for text, _ in said),
                groups=torch.tensor([group for _, group in said]),
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

    def _say(self, said: Said, epoch: int, seed: int) -> tuple[str, int] | None:
        if self._sayings is None:
            return "", text_group(said.key)
        pair = Pair(said.key, Path(), said.captions, said.label)
        return self._sayings.choose(pair, random.Random(f"{seed}/{epoch}/{said.key}"))


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
    """``pair_features`` by the main process; the others wait and read what it wrote."""
    if world.main:
        pair_features(tower, source)
    world.wait()
    return pair_features(tower, source)
