"""A source of pairs in, endless batches of preprocessed images and texts out, resumable at the sample.

Samples are read, decoded and augmented in worker processes, each of which makes whole batches of its share of the
source (``BatchMaker``). Everything random about a sample depends on the seed, the epoch and its key alone, and its
place on the seed, the epoch and its reader. A saved state is therefore small: the position of every worker. Taking it
up again reads the begun epoch up to there once more, without decoding.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from edgeclip.errors import EdgeclipError, InputError, TrainingError
from edgeclip.files import sha256_json
from edgeclip.prompts import load_templates
from edgeclip.runtime.engines.base import normalise
from edgeclip.runtime.images import Image, opencv
from edgeclip.spec import PreprocessSpec
from edgeclip.training.data.augment import Augmenter
from edgeclip.training.data.labelled import decoded
from edgeclip.training.data.pairs import MOST_NAMED, Classes, Damaged, ImageTextPair, PairSource, Share, Tally
from edgeclip.training.recipe import Augment, Data

_AS_IT_IS = Augment()


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


class PairLoader:
    """Endless batches of a source's pairs for one process.

    Args:
        source: the pairs.
        spec: what the image encoder expects.
        data: the recipe's section; of it ``templates``, ``shuffle_buffer`` (a worker's) and ``workers``.
        batch_size: N, of this process.
        seed: of order, captions and augmentation; the same in all processes.
        rank, world: this process and how many there are; each gets its share of the source.
        augment: random changes of the images.
        images_only: leave texts out, and take samples without any.

    Attributes:
        skipped: samples passed over so far because they are damaged or incomplete, counted again in each epoch.
        first_skipped: the first few of them, with the reason.

    Raises:
        PromptError: unusable templates.
        TrainingError: (while iterating) nothing usable, damaged shards, a label without a name, a worker that died.
        SourceError: (while iterating) a file, command or address cannot be read.
    """

    def __init__(
        self,
        source: PairSource,
        spec: PreprocessSpec,
        data: Data,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        augment: Augment = _AS_IT_IS,
        images_only: bool = False,
    ) -> None:
        self._workers = data.workers
        readers = max(1, data.workers)
        # Loads their libraries here, once, and not in every forked worker.
        opencv()
        Augmenter(spec, augment)
        chooser = None if images_only else TextChooser(source.classes, load_templates(data.templates))
        self._maker = BatchMaker(
            source=source,
            spec=spec,
            augment=augment,
            chooser=chooser,
            batch_size=batch_size,
            shuffle_buffer=data.shuffle_buffer,
            seed=seed,
            first_part=rank * readers,
            parts=world * readers,
        )
        self._made_for = {
            "source": source.identity(),
            "texts": sha256_json(None if chooser is None else chooser.templates),
            "augment": sha256_json([augment, spec]),
            "batch_size": batch_size,
            "seed": seed,
            "rank": rank,
            "world": world,
            "workers": readers,
            "shuffle_buffer": data.shuffle_buffer,
        }
        self._positions = [Position() for _ in range(readers)]
        self._batches = 0
        self._skipped = Tally()

    @property
    def skipped(self) -> int:
        """Damaged or incomplete samples passed over so far."""
        return self._skipped.count

    @property
    def first_skipped(self) -> tuple[str, ...]:
        """The first few of them: key and reason."""
        return tuple(self._skipped.named)

    @property
    def epoch(self) -> int:
        """How often every worker has been through its share."""
        return min(position.epoch for position in self._positions)

    def __iter__(self) -> Iterator[PairBatch]:
        """Batches from where the last iteration or the loaded state ended; what was only fetched ahead comes again."""
        first = self._batches % len(self._positions)
        loader: Iterable[MadeBatch | _Failed] = DataLoader(
            _Batches(self._maker, list(self._positions), first),
            batch_size=None,
            num_workers=self._workers,
            collate_fn=_as_it_is,
            # Its own, or starting the workers would draw from the generator that the training is seeded by.
            generator=torch.Generator().manual_seed(0),
        )
        try:
            for made in _started(loader) if self._workers else _own_randomness(loader):
                if isinstance(made, _Failed):
                    raise made.error
                self._positions[made.worker] = made.position
                self._batches += 1
                self._skipped.count += made.skipped.count
                self._skipped.named = (self._skipped.named + made.skipped.named)[:MOST_NAMED]
                yield made.batch
        except RuntimeError as error:
            # Raised by torch's signal handler, wherever in here that may be.
            if "DataLoader worker" not in str(error):
                raise
            raise TrainingError(
                f"a loader's worker died ({error}): lower data.workers or data.shuffle_buffer"
            ) from error

    def state_dict(self) -> dict[str, Any]:
        """Where this process is, after the last batch that was taken: plain values, to be saved as JSON or by torch.

        Each process has its own; a trainer saves all of them.
        """
        return {
            "made_for": dict(self._made_for),
            "batches": self._batches,
            "positions": [[position.epoch, position.drawn] for position in self._positions],
            "skipped": self._skipped.count,
            "first_skipped": list(self._skipped.named),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there: the batches that follow are the same as without the interruption.

        Raises:
            TrainingError: the state is of another source, seed, batch size, or number of workers or processes.
        """
        made_for = state.get("made_for", {})
        if other := [key for key, value in self._made_for.items() if made_for.get(key) != value]:
            details = ", ".join(f"{key} {made_for.get(key)} (now {self._made_for[key]})" for key in other)
            raise TrainingError(f"the loader's saved state is of other data or settings: {details}; use the same again")
        self._positions = [Position(epoch, drawn) for epoch, drawn in state["positions"]]
        self._batches = state["batches"]
        self._skipped = Tally(state["skipped"], list(state["first_skipped"]))


def _started(items: Iterable[Any]) -> Iterator[Any]:
    """Start the workers with one OpenCV thread each: they are the threads.

    It is set here, before they are forked. A fork has no threads of the pool that OpenCV may have started by now, and
    to tell it in the worker to end them would wait for them for ever.
    """
    cv2 = opencv()
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        return iter(items)
    finally:
        cv2.setNumThreads(threads)


def _own_randomness(items: Iterable[Any]) -> Iterator[Any]:
    """Items made with torch's generator set aside, so that making them here leaves no trace in it."""
    iterator = iter(items)
    while True:
        with torch.random.fork_rng(devices=[]):
            item = next(iterator, None)
        if item is None:
            return
        yield item


def _as_it_is(item: Any) -> Any:
    return item


@dataclass(frozen=True)
class _Failed:
    """An error of ours in a worker, to be raised as it is and not wrapped in the worker's traceback."""

    error: EdgeclipError


class _Batches(IterableDataset[Any]):
    """What a DataLoader's worker iterates over; its number 0 is our worker ``first``."""

    def __init__(self, maker: BatchMaker, positions: list[Position], first: int) -> None:
        self.maker, self.positions, self.first = maker, positions, first

    def __iter__(self) -> Iterator[MadeBatch | _Failed]:
        info = get_worker_info()
        worker = (self.first + (info.id if info else 0)) % len(self.positions)
        batches = self.maker.batches(worker, self.positions[worker])
        while True:
            try:
                made: MadeBatch | _Failed = next(batches)
            except EdgeclipError as error:
                made = _Failed(error)
            yield made
            if isinstance(made, _Failed):
                return


@dataclass
class Position:
    """Where a reader is: how many samples, damaged ones included, it has drawn of which epoch."""

    epoch: int = 0
    drawn: int = 0


@dataclass(frozen=True)
class MadeBatch:
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
    chooser: TextChooser | None  # None: images only
    batch_size: int
    shuffle_buffer: int
    seed: int
    first_part: int
    parts: int

    def batches(self, worker: int, position: Position) -> Iterator[MadeBatch]:
        """Endless, from a position on; a batch may span two epochs."""
        augmenter = Augmenter(self.spec, self.augment)
        position, skipped = Position(position.epoch, position.drawn), Tally()
        keys: list[str] = []
        images: list[Image] = []
        texts: list[tuple[str, int]] = []
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
                texts.append(made[1])
                if len(keys) == self.batch_size:
                    batch = self._batch(keys, images, texts)
                    yield MadeBatch(batch, worker, Position(position.epoch, position.drawn), skipped)
                    keys, images, texts, skipped = [], [], [], Tally()
            if fresh and not used:
                raise TrainingError(self._nothing(position.drawn, skipped))
            position = Position(position.epoch + 1)

    def _ordered(self, worker: int, epoch: int) -> Iterator[ImageTextPair | Damaged]:
        part = self.first_part + worker
        items = self.source.read(Share(part, self.parts, self.seed, epoch))
        if not self.source.streamed:
            return items
        return shuffled(items, self.shuffle_buffer, random.Random(f"{self.seed}/{epoch}/{part}"))

    def _prepare(
        self, item: ImageTextPair | Damaged, epoch: int, augmenter: Augmenter
    ) -> tuple[Image, tuple[str, int]] | Damaged:
        if isinstance(item, Damaged):
            return item
        own = int.from_bytes(
            hashlib.blake2b(f"{self.seed}/{epoch}/{item.key}".encode(), digest_size=8).digest(), "little"
        )
        if self.chooser is None:
            text: tuple[str, int] | None = ("", text_group(item.key))
        else:
            text = self.chooser.choose(item, random.Random(own))
        if text is None:
            if self.chooser and item.label >= 0 and self.chooser.classes:
                raise TrainingError(
                    f"expected labels from 0 to {len(self.chooser.classes) - 1}, one for each class name, "
                    f"got {item.label} in {item.key}: check data.classes"
                )
            return Damaged(item.key, "caption missing" if item.label < 0 else "label without data.classes")
        torch.default_generator.manual_seed(own)
        try:
            return augmenter(decoded(item)), text
        except InputError as error:
            return Damaged(item.key, str(error))

    def _batch(self, keys: list[str], images: list[Image], texts: list[tuple[str, int]]) -> PairBatch:
        pixels = torch.empty(len(images), 3, self.spec.height, self.spec.width)
        for image, row in zip(images, pixels.numpy(), strict=True):  # one by one: stacking them first costs a copy
            normalise(self.spec, image[None], row[None])
        return PairBatch(
            keys=tuple(keys),
            images=pixels,
            texts=() if self.chooser is None else tuple(text for text, _ in texts),
            groups=torch.tensor([group for _, group in texts], dtype=torch.int64),
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


class TextChooser:
    """Chooses the text of a sample: one of its captions, or one of its class's names in one of the templates.

    Args:
        classes: names of each class.
        templates: ``{}`` stands for the name.
    """

    def __init__(self, classes: Classes, templates: Sequence[str]) -> None:
        self.classes, self.templates = classes, tuple(templates)

    def choose(self, pair: ImageTextPair, rng: random.Random) -> tuple[str, int] | None:
        """(text, group), or None if it has neither caption nor class name. Equal captions or labels have one group."""
        if pair.captions:
            text = rng.choice(pair.captions)
            return text, text_group(text)
        if 0 <= pair.label < len(self.classes):
            name = rng.choice(self.classes[pair.label])
            return rng.choice(self.templates).replace("{}", name), pair.label
        return None


def text_group(text: str) -> int:
    """A number of 62 bits for a text: the same in every process, so that gathered batches agree; above all labels."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 2 | 1 << 61
