"""A bundle's image encoder, loaded: frames in, unit embeddings out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np

from edgeclip.bundle import Bundle
from edgeclip.errors import EngineError
from edgeclip.prompts import FloatArray, unit_rows
from edgeclip.runtime.engines.base import ByteArray, Pending, load_engine
from edgeclip.runtime.preprocess.preprocess import Pixels, Preprocessor


@dataclass(frozen=True)
class PendingEmbeddings:
    """A batch under way in the engine."""

    parts: tuple[Pending, ...]
    process: int = field(default_factory=os.getpid)

    def result(self) -> tuple[FloatArray, float]:
        """Wait for it: unit embeddings (N, D), and how long the engine took, milliseconds.

        Raises:
            EngineError: a failed run, a result that is not finite, or one that was begun before a fork.
        """
        if self.process != os.getpid():
            raise EngineError("expected a batch begun in this process, got one begun before it was forked")
        results = [part.result() for part in self.parts]
        return unit_rows(np.concatenate([rows for rows, _ in results])), sum(took for _, took in results)


class ImageEncoder:
    """Preprocessing and engine of one variant, behind one call.

    Args:
        bundle: an opened bundle; the variant's files are checked against their hashes here.
        variant: name of the variant.
        engine: name of the inference engine (see ``edgeclip/engine_list.py``).
        threads: CPU threads an inference; None for all that this process may use, shared by ``parallel`` inferences.
        parallel: inferences that will be under way at once (see ``start``).

    Raises:
        VariantError, IntegrityError, EngineError: as the bundle and the engine say.
    """

    def __init__(
        self,
        bundle: Bundle,
        variant: str = "fp32",
        *,
        engine: str = "onnxruntime",
        threads: int | None = None,
        parallel: int = 1,
    ) -> None:
        self.bundle = bundle
        self.variant = bundle.variant(variant)
        self.preprocess = Preprocessor(bundle.manifest.encoder.preprocess)
        self.engine = load_engine(
            engine,
            bundle.variant_path(variant),
            bundle.manifest.encoder,
            precision=self.variant.precision,
            threads=threads,
            parallel=parallel,
        )

    def encode(self, frames: Sequence[Pixels]) -> FloatArray:
        """Unit embeddings (N, D) float32 of N frames."""
        small = np.stack([self.preprocess.resize(frame) for frame in frames])
        return self.encode_preprocessed(self.preprocess.normalise_batch(small))

    def encode_preprocessed(self, images: FloatArray) -> FloatArray:
        """Unit embeddings (N, D) of a preprocessed batch (N, 3, H, W)."""
        if self.variant.dynamic_batch:
            return unit_rows(self.engine.infer(images))
        return unit_rows(np.concatenate([self.engine.infer(images[i : i + 1]) for i in range(len(images))]))

    def start(self, frames: ByteArray) -> PendingEmbeddings:
        """Begin to encode resized frames (N, H, W, 3) uint8; a variant with a fixed batch takes one at a time.

        Raises:
            EngineError: a wrong shape or dtype.
        """
        if self.variant.dynamic_batch:
            return PendingEmbeddings((self.engine.start(frames),))
        return PendingEmbeddings(tuple(self.engine.start(frames[i : i + 1]) for i in range(len(frames))))

    def close(self) -> None:
        """Release the engine; one from before a fork is left as it is."""
        if not self.engine.forked:
            self.engine.close()

    def __enter__(self) -> ImageEncoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
