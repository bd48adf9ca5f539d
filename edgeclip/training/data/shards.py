"""WebDataset tars in (files, ``pipe:`` commands, addresses), their samples out, streamed.

A sample is a run of files that share their name up to the first dot: an image, and ``.cls`` (a class index), ``.txt``
(a caption) or ``.json`` (an object with a caption or captions).

The format is that of the package ``webdataset``, which is not used: its pipelines cannot be taken up again at the
sample, and it does not count what it passes over. Tars are read by ``tarfile``, made strict.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import itertools
import tarfile
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import msgspec

from edgeclip.errors import EdgeclipError, TrainingError
from edgeclip.files import sha256_json
from edgeclip.limits import check_limit
from edgeclip.printable import printable
from edgeclip.runtime.images import IMAGE_SUFFIXES
from edgeclip.runtime.sources.address import without_password
from edgeclip.tars import TAR_ERRORS, PlainHeader
from edgeclip.training.data.labelled import read_class_names
from edgeclip.training.data.pairs import Classes, Damaged, ImageTextPair, PairSource, Share
from edgeclip.training.data.patterns import expand, short_names
from edgeclip.training.data.streams import is_local, open_stream
from edgeclip.training.data.tables import CAPTION_KEYS, captions_of
from edgeclip.training.recipe import Data

_GZIP = b"\x1f\x8b"
_TARFILE: Any = tarfile  # its kinds of HeaderError are in no stub
_BUFFER_BYTES = 1 << 20


class ShardPairs(PairSource):
    """Samples of WebDataset shards. Shards are shuffled whole and divided among the readers.

    Args:
        patterns: globs of tars relative to the working directory, ``pipe:`` commands or addresses; ``{000..123}`` and
            ``{a,b}`` stand for several.
        classes: names of each class, for samples with ``.cls``.
        caption_key: key of the caption in ``.json`` files; by default the usual names.
        labels_only: read only what class an image is of. A ``.cls`` that holds a name, no index, becomes its caption.

    Attributes:
        shards: paths, commands and addresses, in order.

    Raises:
        TrainingError: no shard matches.
    """

    streamed = True

    def __init__(
        self,
        patterns: str | Sequence[str],
        *,
        classes: Classes = (),
        caption_key: str = "",
        labels_only: bool = False,
    ) -> None:
        patterns = [patterns] if isinstance(patterns, str) else list(patterns)
        self.name = ", ".join(without_password(pattern) for pattern in patterns)
        self.shards = [shard for pattern in patterns for shard in expand(pattern)]
        self._names = short_names(self.shards)
        self.classes = classes
        self._caption_keys = (caption_key,) if caption_key else CAPTION_KEYS
        self._labels_only = labels_only

    def read(self, share: Share) -> Iterator[ImageTextPair | Damaged]:
        """The share's shards one after the other; with fewer shards than readers, several readers divide a shard."""
        order, count = share.order(len(self.shards)), len(self.shards)
        if count >= share.parts:
            mine, first, step = order[share.part :: share.parts], 0, 1
        else:
            mine = [order[share.part % count]]
            first, step = share.part // count, len(range(share.part % count, share.parts, count))
        for index in mine:
            samples = self._samples(self.shards[index], self._names[index])
            # A shard without samples is a writer's mistake, even beside good ones.
            if (head := next(samples, None)) is None:
                raise TrainingError(
                    f"no sample in {without_password(self.shards[index])}: expected files like 000.jpg with 000.txt "
                    "or 000.cls; leave it out or write it again"
                )
            yield from itertools.islice(itertools.chain([head], samples), first, None, step)

    def identity(self) -> str:
        """Of the shards' names, the sizes of files, and the classes; contents are not read."""
        sizes = [Path(shard).stat().st_size if is_local(shard) else None for shard in self.shards]
        return sha256_json([self._names, sizes, self.classes])

    def _samples(self, shard: str, short: str) -> Iterator[ImageTextPair | Damaged]:
        name = without_password(shard)
        with open_stream(shard) as stream, contextlib.closing(tar_files(stream, name=name)) as files:
            for key, group in itertools.groupby(_named(files), key=lambda item: item[0]):
                content = {suffix: data for _, suffix, data in group}
                if (sample := self._sample(f"{short}:{key}", content)) is not None:
                    yield sample

    def _sample(self, key: str, content: dict[str, bytes]) -> ImageTextPair | Damaged | None:
        images = [data for suffix, data in content.items() if suffix in IMAGE_SUFFIXES]
        about_image = content.keys() & {".txt", ".json", ".cls"}
        if not images:
            return Damaged(key, "no image") if about_image else None  # other files are none of ours
        if self._labels_only:
            return _labelled(key, images[0], content.get(".cls", b""))
        try:
            label = int(content[".cls"]) if ".cls" in content else -1
            captions = [content[".txt"].decode()] if ".txt" in content else []
            if ".json" in content:
                described = msgspec.json.decode(content[".json"])
                if any(key in described for key in self._caption_keys):  # img2dataset says the same in both
                    captions += captions_of(described, self._caption_keys)
        except (ValueError, TypeError) as error:  # msgspec's and Unicode's among them
            return Damaged(key, str(error))
        distinct = dict.fromkeys(text.strip() for text in captions)
        return ImageTextPair(key, images[0], tuple(filter(None, distinct)), label)


def open_shards(texts: Sequence[str], data: Data) -> ShardPairs:
    """The shards of a recipe."""
    classes = tuple(map(tuple, read_class_names(Path(data.classes)))) if data.classes else ()
    return ShardPairs(texts, classes=classes, caption_key=data.caption_key)


def _labelled(key: str, image: bytes, label: bytes) -> ImageTextPair | Damaged:
    text = label.decode("utf-8", "replace").strip()
    if not text:
        return Damaged(key, "label missing")
    return ImageTextPair(key, image, (), int(text)) if text.isdecimal() else ImageTextPair(key, image, (text,))


def _named(files: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, str, bytes]]:
    """(key, suffix, content): ``a/b.seg.png`` has the key ``a/b`` and the suffix ``.seg.png``."""
    for path, data in files:
        pure = PurePosixPath(path)
        stem, dot, suffix = pure.name.partition(".")
        if stem and dot:
            yield str(pure.with_name(stem)), f".{suffix.lower()}", data


def tar_files(stream: BinaryIO, *, name: str) -> Generator[tuple[str, bytes], None, None]:
    """Regular files of a tar, plain or gzipped, or of several in a row, in stored order.

    Args:
        name: of the archive, for messages.

    Raises:
        TrainingError: not a tar, damaged, a file of it is sparse or too large, or it ends early; what came before has
            been given by then.
    """
    buffered = io.BufferedReader(stream, _BUFFER_BYTES)  # type: ignore[type-var]
    try:
        zipped = buffered.peek(2)[:2] == _GZIP
        plain: Any = gzip.GzipFile(fileobj=buffered) if zipped else buffered
        # With `ignore_zeros` it goes on behind an end, where another archive may stand.
        with _WholeTar.open(
            fileobj=plain, mode="r|", tarinfo=_Header, ignore_zeros=True, encoding="utf-8", errors="backslashreplace"
        ) as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # it would keep them all
                if member.isreg():  # no link, no folder
                    if member.issparse() or member.size < 0:
                        raise tarfile.ReadError(f"{member.name} is sparse, or its size makes no sense")
                    where = f"{printable(member.name, lines=False)} of {name}"
                    check_limit("shard_file_bytes", member.size, where, error=TrainingError)
                    data = archive.fileobj.read(member.size)  # as `extractfile` does, in half the time
                    if len(data) < member.size:
                        raise tarfile.ReadError(f"it ends within {member.name}")
                    yield member.name, data
    except EdgeclipError:
        raise
    except TAR_ERRORS as error:
        reason = {"unexpected end of data": "it ends within a file"}.get(str(error), printable(str(error), lines=False))
        raise TrainingError(f"{name} is not a readable tar ({reason}): copy or write it again") from error
    finally:
        buffered.detach()  # whoever opened the stream closes it


class _WholeTar(tarfile.TarFile):
    """A tar whose end is only where the mark for it is, ``ended``; ``tarfile`` takes damage and a cut for it too."""

    members: list[tarfile.TarInfo]
    ended = False


class _Header(PlainHeader):
    """A header of a ``_WholeTar``; anything else in its place is an error."""

    @classmethod
    def fromtarfile(cls, tarfile_: Any) -> Any:
        try:
            header = super().fromtarfile(tarfile_)
        except tarfile.HeaderError as error:
            tarfile_.ended |= isinstance(error, _TARFILE.EOFHeaderError)
            if tarfile_.ended and isinstance(error, _TARFILE.EOFHeaderError | _TARFILE.EmptyHeaderError):
                raise
            if tarfile_.ended and isinstance(error, _TARFILE.TruncatedHeaderError):
                raise _TARFILE.EOFHeaderError("padding that fills no whole block") from error
            what = "is empty" if not tarfile_.offset else "ends without the mark for it"
            if isinstance(error, _TARFILE.InvalidHeaderError):
                what = f"has a bad header ({error})"
            raise tarfile.ReadError(f"it {what}, after {tarfile_.offset:,} bytes") from error
        tarfile_.ended = False
        return header
