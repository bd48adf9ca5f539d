"""A bundle in; what its encoder and prompt tables say of images, cameras and files out, in one call each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias, cast, overload

import numpy as np

from edgeclip.bundle import Bundle, open_bundle
from edgeclip.errors import InputError
from edgeclip.extras import require
from edgeclip.prompts import FloatArray, PromptTable, TextEncoder, unit_rows
from edgeclip.runtime.decision import Decider, DecisionOptions
from edgeclip.runtime.encoder import ImageEncoder
from edgeclip.runtime.engines.base import check_threads
from edgeclip.runtime.images import Image, as_image
from edgeclip.runtime.proof.choose import Choice, choose
from edgeclip.runtime.records import Scored
from edgeclip.runtime.scoring import Scorer
from edgeclip.runtime.sinks.base import Sink
from edgeclip.runtime.sources.open import Source, SourceOptions, open_source
from edgeclip.runtime.stream import Stream, StreamOptions
from edgeclip.runtime.tables import TableSet

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

TableLike = str | Path | PromptTable
ImageLike: TypeAlias = "str | os.PathLike[str] | Image | PillowImage"

_BATCH = 8  # images decoded and encoded at once; larger ones brought no more on any engine that was measured


@dataclass(frozen=True, eq=False)
class Classification:
    """What a prompt table says of one image.

    Attributes:
        label: the best class, or ``unknown`` where the table says that its score means nothing.
        score: of the best row, in [0, 1].
        top: the best classes, best first, each ``(label, score)``.
        embedding: (D,) float32, of unit length.
        calibrated: ``score`` is the calibrated probability that the best class is right.
    """

    label: str
    score: float
    top: list[Scored]
    embedding: FloatArray = field(repr=False)
    calibrated: bool = False
    _row_of: dict[str, int] = field(default_factory=dict, repr=False)

    def to_supervision(self) -> Any:
        """``top`` as ``supervision.Classifications``: ``class_id`` is the row of a class in the prompt table.

        Raises:
            MissingExtraError: supervision is not installed.
        """
        supervision = require("supervision", purpose="make supervision.Classifications", extra="supervision")
        return supervision.Classifications(
            class_id=np.array([self._row_of[label] for label, _ in self.top], np.int64),
            confidence=np.array([score for _, score in self.top], np.float32),
        )


class Labeller:
    """A bundle with the variant and engine that were proved to be the fastest here; a context manager.

    A process that is forked off loads an encoder of its own when it needs one.

    Args:
        bundle: an opened bundle, or the path of one.
        variant, engine: restrict the choice; by default any.
        threads: CPU threads an inference; None for all.
        unproved: let a bundle without golden images run, which nothing was proved on.
        progress: called with a short sentence while variants are proved, which takes seconds the first time.

    Attributes:
        bundle: the bundle.
        choice: what will run, and why.

    Raises:
        EdgeclipError: the bundle cannot be trusted, or nothing in it runs here.
    """

    def __init__(
        self,
        bundle: Bundle | str | os.PathLike[str],
        *,
        variant: str | None = None,
        engine: str | None = None,
        threads: int | None = None,
        unproved: bool = False,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        check_threads(threads)
        self.bundle = open_bundle(bundle)
        self._threads = threads
        self._unproved = unproved
        self._encoder: ImageEncoder | None = None
        self._text: TextEncoder | None = None
        self._text_process = 0
        self._scorers: dict[str, Scorer] = {}  # by name, while the bundle's tables have these digests:
        self._there: tuple[str, ...] = ()
        self.choice: Choice = choose(
            self.bundle, variant=variant, engine=engine, threads=threads, unproved=unproved, progress=progress
        )

    # Images -----------------------------------------------------------------------------------------------------------

    @overload
    def classify(  # type: ignore[overload-overlap]  # a str is a sequence of str, and is one image
        self, images: ImageLike, *, table: TableLike | None = ..., top_k: int = ...
    ) -> Classification: ...

    @overload
    def classify(
        self, images: Sequence[ImageLike], *, table: TableLike | None = ..., top_k: int = ...
    ) -> list[Classification]: ...

    def classify(
        self, images: ImageLike | Sequence[ImageLike], *, table: TableLike | None = None, top_k: int = 5
    ) -> Classification | list[Classification]:
        """Say what a prompt table says of an image, or of each of several.

        Args:
            images: an image file's path, (H, W, 3) uint8 RGB, a Pillow image, or a list of these.
            table: name of a table of the bundle, a ``.safetensors`` file or a table; may be left out where the bundle
                has one only.
            top_k: classes to report.

        Returns:
            One result for one image, a list for a list.

        Raises:
            SourceError: an image that cannot be read.
            InputError: something that is no image, or ``top_k`` below 1.
            TableError: no such table, or one of another model.
        """
        if not isinstance(top_k, int) or top_k < 1:
            raise InputError(f"expected top_k of at least 1, a whole number, got {top_k!r}")
        scorer = self._scorer(table)
        several = _several(images)
        found: list[Classification] = []
        for rows in self._embed(several):
            for row, scores in zip(rows, scorer.scores(rows), strict=True):
                said = Decider(DecisionOptions()).update(scorer, scores, frame=0, time_s=0.0, top_k=top_k)
                found.append(Classification(said.label, said.score, said.top, row, said.calibrated, scorer.row_of))
        return found if several is images else found[0]

    def embed_images(self, images: ImageLike | Sequence[ImageLike]) -> FloatArray:
        """Unit embeddings (N, D) float32 of images; N is 1 for a single one.

        Args:
            images: as for ``classify``.

        Raises:
            SourceError, InputError: as for ``classify``.
        """
        rows = list(self._embed(_several(images)))
        return np.concatenate(rows) if rows else np.empty((0, self.bundle.manifest.encoder.embedding_dim), np.float32)

    def embed_text(self, texts: str | Sequence[str]) -> FloatArray:
        """Unit embeddings (N, D) float32 of texts, by the text encoder that the bundle's tables are made with.

        Raises:
            InputError: no text.
            MissingExtraError: the text encoder's libraries are not installed; a device needs none for its tables.
            ModelError: its weights cannot be had, or are not those that the bundle was made with.
        """
        several = [texts] if isinstance(texts, str) else list(texts)
        if not several:
            raise InputError("expected texts to embed, got an empty list")
        if strange := [text for text in several if not isinstance(text, str)]:
            raise InputError(f"expected texts, got {strange[0]!r}")
        if self._text is None:
            self._text, self._text_process = self.bundle.text_encoder(), os.getpid()
        if self._text_process != os.getpid():
            raise InputError(
                "expected a labeller that embeds texts in one process, got one that was forked after it had: open it "
                "after the fork, or start processes by spawn"
            )
        return unit_rows(self._text.encode_text(several))

    # Streams ----------------------------------------------------------------------------------------------------------

    def stream(
        self,
        *sources: str | os.PathLike[str] | int | Source,
        table: TableLike | Sequence[TableLike] | None = None,
        realtime: bool = False,
        options: StreamOptions | None = None,
        source_options: SourceOptions | None = None,
        sinks: Sequence[Sink] = (),
    ) -> Stream:
        """Label one or several sources; iterate over the result for labelled frames, or over its ``events()``.

        Args:
            sources: a file, a folder, an address (see docs/sources.md), a camera's index, or an opened source.
            table: name of a table of the bundle, a ``.safetensors`` file, a table, or several of these; may be left
                out where the bundle has one only.
            realtime: play files as cameras.
            options: rare knobs.
            source_options: rare knobs of opening the sources.
            sinks: where labelled frames go besides.

        Raises:
            EdgeclipError: a source, table, option or sink that cannot be used.
        """
        tables = TableSet(self.bundle, find_tables(self.bundle, table), variant=self.choice.variant)
        opened: list[Source] = []
        try:
            opened.extend(_opened(source, realtime=realtime, options=source_options) for source in sources)
            return Stream(
                self.bundle,
                opened,
                tables,
                options,
                sinks,
                variant=self.choice.variant,
                engine=self.choice.engine,
                threads=self._threads,
                golden=self.choice.golden,
                unproved=self._unproved,
            )
        except BaseException:
            for taken in opened:
                if taken.process == os.getpid():
                    taken.close()
            raise

    # ------------------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Labeller:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the encoder that ``classify`` and ``embed_images`` loaded; it is loaded again when asked for."""
        if self._encoder:
            self._encoder.close()
        self._encoder = None

    def _embed(self, images: Sequence[ImageLike]) -> Iterator[FloatArray]:
        """Unit embeddings (B, D) of some images at a time."""
        for start in range(0, len(images), _BATCH):
            pixels = [as_image(image) for image in images[start : start + _BATCH]]
            if self._encoder is None or self._encoder.engine.forked:
                self._encoder = ImageEncoder(
                    self.bundle, self.choice.variant, engine=self.choice.engine, threads=self._threads
                )
            yield self._encoder.encode(pixels)

    def _scorer(self, table: TableLike | None) -> Scorer:
        """A table ready to score, kept for the next call where it is one of the bundle's and has not changed."""
        if isinstance(table, str) and not table.endswith(".safetensors"):
            key = table
        elif table is None:
            key = ""
        else:
            return self._scorer_of(table)
        manifest = self.bundle.manifest
        there = tuple(manifest.files[entry.file].sha256 for entry in manifest.tables)
        if self._there != there:
            self._scorers, self._there = {}, there
        if key not in self._scorers:
            self._scorers[key] = self._scorer_of(table)
        return self._scorers[key]

    def _scorer_of(self, table: TableLike | None) -> Scorer:
        tables = TableSet(self.bundle, find_tables(self.bundle, table), variant=self.choice.variant)
        return tables.current()[0]


def open(
    bundle: Bundle | str | os.PathLike[str],
    *,
    variant: str | None = None,
    engine: str | None = None,
    threads: int | None = None,
    unproved: bool = False,
) -> Labeller:
    """Open a bundle for labelling, with the fastest variant and engine that are proved on this machine.

    ```python
    with edgeclip.open("starter") as labeller:
        print(labeller.classify("photo.jpg", table="objects").label)
        for frame in labeller.stream("rtsp://camera/stream", table="objects"):
            print(frame.label, frame.score)
    ```

    Args:
        bundle: a folder, a ``.tar``, the word ``starter``, or an opened bundle.
        variant, engine: restrict the choice.
        threads: CPU threads an inference; None for all.
        unproved: let a bundle without golden images run, which nothing was proved on.

    Raises:
        EdgeclipError: the bundle cannot be trusted, or nothing in it runs here.
    """
    return Labeller(bundle, variant=variant, engine=engine, threads=threads, unproved=unproved)


def _several(images: ImageLike | Sequence[ImageLike]) -> Sequence[ImageLike]:
    """A list of images as it is, a single one as a list of one."""
    return images if isinstance(images, list | tuple) else [cast("ImageLike", images)]


def _opened(source: str | os.PathLike[str] | int | Source, *, realtime: bool, options: SourceOptions | None) -> Source:
    if isinstance(source, Source):
        return source
    if isinstance(source, Integral) and str(source) not in {"True", "False"}:
        return open_source(int(source), realtime=realtime, options=options)
    if isinstance(source, str | os.PathLike):
        return open_source(str(source), realtime=realtime, options=options)
    raise InputError(
        f"expected a path, an address, a camera's index or an opened source, got {type(source).__name__}: images in "
        "memory go to classify()"
    )


def find_tables(bundle: Bundle, wanted: TableLike | Sequence[TableLike] | None) -> list[PromptTable]:
    """The tables that are meant by names in the bundle, by ``.safetensors`` files or by themselves.

    Raises:
        TableError: no such table, or one of another model.
        InputError: an empty list.
    """
    return [table for table, _ in find_tables_and_files(bundle, wanted)]


def find_tables_and_files(
    bundle: Bundle, wanted: TableLike | Sequence[TableLike] | None
) -> list[tuple[PromptTable, Path | None]]:
    """The same, each with what ``TableWatch`` has to watch for changes of it."""
    if wanted is None:
        return [(bundle.table(), bundle.path)]
    if not isinstance(wanted, str | Path | PromptTable | Sequence):
        raise InputError(f"expected a table, its name or its file, got {wanted!r}")
    several = [wanted] if isinstance(wanted, str | Path | PromptTable) else list(wanted)
    if strange := [item for item in several if not isinstance(item, str | Path | PromptTable)]:
        raise InputError(f"expected a table, its name or its file, got {strange[0]!r}")
    if not several:
        raise InputError("expected a prompt table, got an empty list: name one, or leave it out")
    return [_find_table(bundle, item) for item in several]


def _find_table(bundle: Bundle, wanted: TableLike) -> tuple[PromptTable, Path | None]:
    if isinstance(wanted, PromptTable):
        table, file = wanted, None
    elif isinstance(wanted, Path) or wanted.endswith(".safetensors"):
        table, file = PromptTable.load(Path(wanted)), Path(wanted)
    else:
        return bundle.table(wanted), bundle.path
    bundle.check_table(table)
    return table, file
