"""A reader's share of a source in, its batches out, each with the position to go on from."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgeclip.errors import InputError, TrainingError
from edgeclip.runtime.images import Image
from edgeclip.runtime.normalise import normalise
from edgeclip.spec import PreprocessSpec
from edgeclip.training.augment import Augmenter
from edgeclip.training.captions import Sayings, text_group
from edgeclip.training.labelled import decoded
from edgeclip.training.pairs import Damaged, Pair, PairSource, Share, Tally
from edgeclip.training.recipe import Augment


@dataclass(frozen=True)
class PairBatch:
    """N samples.

    Attributes:
        keys: what the source calls them.
        images: (N, 3, H, W) float32, normalised as the PreprocessSpec says.
        texts: one a sample, chosen anew each epoch; () if only images were asked for.
        groups: (N,) int64, equal where texts say the same: one class, or one caption. In images-only batches, and for
            different captions, all distinct. Equal across processes too.
    """

    keys: tuple[str, ...]
    images: Tensor
    texts: tuple[str, ...]
    groups: Tensor


@dataclass
class Position:
    """Where a reader is: how many samples, damaged ones included, it has drawn of which epoch."""

    epoch: int = 0
    drawn: int = 0


@dataclass(frozen=True)
class Made:
    """A batch, who made it, where it was then, and what it passed over since the batch before."""

    batch: PairBatch
    worker: int
    position: Position
    skipped: Tally


@dataclass(frozen=True)
class BatchMaker:
    """Makes the batches of one reader; pickled into the workers."""

    source: PairSource
    spec: PreprocessSpec
    augment: Augment
    sayings: Sayings | None  # None: images only
    batch_size: int
    shuffle_buffer: int
    seed: int
    first_part: int
    parts: int

    def batches(self, worker: int, position: Position) -> Iterator[Made]:
        """Endless, from a position on; a batch may span two epochs."""
        augmenter = Augmenter(self.spec, self.augment)
        position, skipped = Position(position.epoch, position.drawn), Tally()
        keys: list[str] = []
        images: list[Image] = []
        said: list[tuple[str, int]] = []
        while True:
            used, fresh = 0, not position.drawn
            for item in itertools.islice(self._ordered(worker, position.epoch), position.drawn, None):
                position.drawn += 1
                made = self._prepare(item, position.epoch, augmenter)
                if isinstance(made, Damaged):
                    skipped.add(made)
                    continue
                used += 1
                keys.append(item.key)
                images.append(made[0])
                said.append(made[1])
                if len(keys) == self.batch_size:
                    batch = self._batch(keys, images, said)
                    yield Made(batch, worker, Position(position.epoch, position.drawn), skipped)
                    keys, images, said, skipped = [], [], [], Tally()
            if fresh and not used:
                raise TrainingError(self._nothing(position.drawn, skipped))
            position = Position(position.epoch + 1)

    def _ordered(self, worker: int, epoch: int) -> Iterator[Pair | Damaged]:
        part = self.first_part + worker
        items = self.source.read(Share(part, self.parts, self.seed, epoch))
        if not self.source.streamed:
            return items
        return shuffled(items, self.shuffle_buffer, random.Random(f"{self.seed}/{epoch}/{part}"))

    def _prepare(
        self, item: Pair | Damaged, epoch: int, augmenter: Augmenter
    ) -> tuple[Image, tuple[str, int]] | Damaged:
        if isinstance(item, Damaged):
            return item
        own = int.from_bytes(
            hashlib.blake2b(f"{self.seed}/{epoch}/{item.key}".encode(), digest_size=8).digest(), "little"
        )
        if self.sayings is None:
            says: tuple[str, int] | None = ("", text_group(item.key))
        else:
            says = self.sayings.choose(item, random.Random(own))
        if says is None:
            if self.sayings and item.label >= 0 and self.sayings.classes:
                raise TrainingError(
                    f"expected labels from 0 to {len(self.sayings.classes) - 1}, one for each class name, "
                    f"got {item.label} in {item.key}: check data.classes"
                )
            return Damaged(item.key, "caption missing" if item.label < 0 else "label without data.classes")
        torch.default_generator.manual_seed(own)
        try:
            return augmenter(decoded(item)), says
        except InputError as error:
            return Damaged(item.key, str(error))

    def _batch(self, keys: list[str], images: list[Image], said: list[tuple[str, int]]) -> PairBatch:
        pixels = torch.empty(len(images), 3, self.spec.height, self.spec.width)
        for image, row in zip(images, pixels.numpy(), strict=True):  # one by one: stacking them first costs a copy
            normalise(self.spec, image[None], row[None])
        return PairBatch(
            keys=tuple(keys),
            images=pixels,
            texts=() if self.sayings is None else tuple(text for text, _ in said),
            groups=torch.tensor([group for _, group in said], dtype=torch.int64),
        )

    def _nothing(self, drawn: int, skipped: Tally) -> str:
        if drawn:
            return f"expected images with captions in {self.source.name}, could use none of {drawn} samples ({skipped})"
        return (
            f"expected samples for each of {self.parts} readers (workers × processes) in {self.source.name}, got too "
            "few: lower data.workers, or write more shards"
        )


def shuffled(items: Iterable[Any], size: int, rng: random.Random) -> Iterator[Any]:
    """Items in random order, each drawn from a buffer of ``size`` that the following ones refill."""
    buffer: list[Any] = []
    for item in items:
        if len(buffer) < size:
            buffer.append(item)
            continue
        place = rng.randrange(size)
        yield buffer[place]
        buffer[place] = item
    rng.shuffle(buffer)
    yield from buffer
