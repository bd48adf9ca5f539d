"""A bundle's encoder and images in, unit embeddings out; what was computed once is read from the cache.

The cache has a file for every variant's graph, engine, version, machine and preprocessing. A record in it is the sha256
of an image's bytes, its row, and a checksum over both that is keyed by what the rows were made with. Records are
appended whole batches at a time, under a lock: a run that was killed goes on from where it was, and a set that shares
images with another has them already. A torn record at the end is cut off by whoever appends next, and one that does
not match its checksum counts as absent, so that its row is made again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgeclip.bundle import Bundle
from edgeclip.calibration.hashed_images import HashedImages
from edgeclip.devices.machine.cuda import find_gpu
from edgeclip.devices.machine.probe import describe_machine, installed_versions
from edgeclip.engine_list import engine_entry
from edgeclip.errors import EdgeclipError, SourceError
from edgeclip.files import cache_dir, sha256_json
from edgeclip.prompts import FloatArray
from edgeclip.runtime.encoder import ImageEncoder
from edgeclip.runtime.engines.base import engine_class
from edgeclip.runtime.images import Image

_log = logging.getLogger("edgeclip")

_BATCH = 32
_TOLD = 20
_CHECK_BYTES = 16


class EmbeddingStore:
    """Embeddings by the sha256 of their images. Several processes may read and add at once.

    Args:
        path: the file; made with its folder when the first rows are added.
        width: D, numbers a row.
        key: hex sha256 of all that decides a row besides its image; other stores' records do not pass for this one's.
    """

    def __init__(self, path: Path, width: int, key: str) -> None:
        self._path = path
        self._key = bytes.fromhex(key)
        self._record = np.dtype([("digest", "V32"), ("row", "<f4", (width,)), ("check", f"V{_CHECK_BYTES}")])
        self._at: dict[bytes, int] = {}
        self._full = False
        self._records = np.empty(0, self._record)
        self._map()
        digests = np.ascontiguousarray(self._records["digest"]).tobytes()
        for number in range(len(self._records)):  # the last record of an image holds
            self._at[digests[32 * number : 32 * number + 32]] = number

    def get(self, digest: str) -> FloatArray | None:
        """The row (D,) float32 of an image; None if there is none that can be trusted."""
        number = self._at.get(bytes.fromhex(digest))
        if number is None:
            return None
        if number >= len(self._records):
            self._map()
        if number >= len(self._records):
            return None
        record = self._records[number]
        row = np.array(record["row"], np.float32)
        return row if self._check(record["digest"].tobytes(), row) == record["check"].tobytes() else None

    def add(self, digests: Sequence[str], rows: FloatArray) -> None:
        """Append rows (N, D) of N images in one write; where that cannot be, they are not kept, and that is said."""
        records = np.empty(len(digests), self._record)
        names = [bytes.fromhex(digest) for digest in digests]
        for record, name, row in zip(records, names, rows, strict=True):
            record["digest"], record["row"] = np.void(name), row
            record["check"] = np.void(self._check(name, row))
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX)
                whole = stream.seek(0, 2) // self._record.itemsize
                stream.truncate(whole * self._record.itemsize)  # a killed writer's last record may be torn
                stream.write(records.tobytes())
        except OSError as error:  # no room, or a cache that may only be read
            if not self._full:
                _log.warning("not kept in the cache: %s (%s)", self._path, error.strerror)
            self._full = True
            return
        self._at.update((name, whole + number) for number, name in enumerate(names))

    def _check(self, name: bytes, row: FloatArray) -> bytes:
        content = name + np.asarray(row, "<f4").tobytes()
        return hashlib.blake2b(content, digest_size=_CHECK_BYTES, key=self._key).digest()

    def _map(self) -> None:
        whole = self._path.stat().st_size // self._record.itemsize if self._path.is_file() else 0
        if whole:
            self._records = np.memmap(self._path, self._record, "r", shape=(whole,))


class ImageEmbeddings(NamedTuple):
    """Unit embeddings (N, D) float32 of N images, and which could be decoded (N,) bool; the rows of others are 0."""

    rows: FloatArray
    keep: npt.NDArray[np.bool_]


def image_embeddings(
    bundle: Bundle,
    variant: str,
    items: HashedImages,
    *,
    engine: str = "onnxruntime",
    progress: Callable[[int, int], None] | None = None,
    passed_over: Callable[[str], None] | None = None,
) -> ImageEmbeddings:
    """Embed images. Those that cannot be decoded are passed over, marked and named.

    The engine is loaded only if a row is missing. Images are held one batch at a time, resized.

    Args:
        variant: form of the encoder.
        engine: name of an inference engine (see ``ENGINES``).
        progress: called with (images done, images in all).
        passed_over: called with what is wrong with each image that is; by default the first few are logged.

    Raises:
        SourceError: no image can be decoded.
        VariantError, IntegrityError, EngineError, MissingExtraError: as the bundle and the engine say.
    """
    key, width = store_key(bundle, variant, engine), bundle.manifest.encoder.embedding_dim
    store = EmbeddingStore(cache_dir("image-embeddings") / f"{key}.rows", width, key)
    rows, keep = np.zeros((len(items), width), np.float32), np.zeros(len(items), np.bool_)
    wrong: list[str] = []
    with contextlib.ExitStack() as stack:
        encoder: ImageEncoder | None = None
        pending: list[tuple[int, str, Image]] = []

        def flush() -> None:
            if pending and encoder:
                where = [row for row, _, _ in pending]
                small = np.stack([image for _, _, image in pending])
                rows[where] = encoder.encode_preprocessed(encoder.preprocess.normalise_batch(small))
                store.add([digest for _, digest, _ in pending], rows[where])
                pending.clear()

        for row, item in enumerate(items):
            try:
                digest = item.digest()
                known = store.get(digest)
                if known is None:
                    image = item.read()
                    encoder = encoder or stack.enter_context(ImageEncoder(bundle, variant, engine=engine))
                    pending.append((row, digest, encoder.preprocess.resize(image)))
                else:
                    rows[row] = known
                keep[row] = True
            except SourceError as error:
                wrong.append(str(error))
                if passed_over:
                    passed_over(str(error))
                elif len(wrong) <= _TOLD:
                    _log.warning("passed over: %s", error)
            if len(pending) == _BATCH:
                flush()
            if progress and (row + 1) % _BATCH == 0:
                progress(row + 1, len(items))
        flush()
    if progress:
        progress(len(items), len(items))
    if not keep.any():
        raise SourceError(f"none of {len(items)} images can be decoded; of the first it is said: {wrong[0]}")
    return ImageEmbeddings(rows, keep)


def store_key(bundle: Bundle, variant: str, engine: str) -> str:
    """Hex sha256 of all that decides an image's row besides the image.

    Raises:
        VariantError: no such variant.
        EngineError: no such engine.
    """
    on_cpu = engine_class(engine).on_cpu
    machine = describe_machine()
    gpu = None
    if not on_cpu:
        with contextlib.suppress(EdgeclipError):  # the engine itself says what is missing
            gpu = find_gpu()
    return sha256_json(
        [
            bundle.graph_digests(variant),
            bundle.variant(variant).precision,
            bundle.manifest.encoder.preprocess,
            engine,
            installed_versions(engine_entry(engine).packages),
            {part: machine.get(part) for part in ("architecture", "cpu", "board", "l4t")},
            gpu and [gpu.name, gpu.sm],
        ]
    )
