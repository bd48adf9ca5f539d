"""Preprocessed batches in, embeddings out: the one interface that every inference engine fills.

To add an engine: subclass :class:`Engine` in a file of its own, fill ``_infer`` and ``close``, and add a line to
``ENGINES``.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from edgeclip.errors import EngineError, InputError
from edgeclip.spec import EncoderSpec, Precision

FloatArray = npt.NDArray[np.float32]

# Name -> "module:class"; the module is imported when the engine is asked for, so an engine that is not installed
# costs nothing.
ENGINES = {"onnxruntime": "edgeclip.runtime.ort_engine:OrtEngine"}


class Engine(ABC):
    """One loaded image encoder. Owns its memory until :meth:`close` or the end of a ``with`` block.

    Args:
        path: the ONNX graph.
        encoder: what it takes and returns.
        precision: of the variant; an engine may prepare an INT8 graph differently.
        threads: CPU threads for one inference; None for as many as this process may use.

    Raises:
        EngineError: the graph cannot be loaded or does not fit ``encoder``.
    """

    name: str

    def __init__(
        self, path: Path, encoder: EncoderSpec, *, precision: Precision = "fp32", threads: int | None = None
    ) -> None:
        self.path = path
        self.encoder = encoder
        self.precision = precision
        self.threads = threads

    def infer(self, images: FloatArray) -> FloatArray:
        """Encode a batch.

        Args:
            images: (N, 3, H, W) float32, preprocessed.

        Returns:
            (N, D) float32, not normalised.

        Raises:
            EngineError: a wrong shape or dtype, a failed run, or a result that is not finite.
        """
        spec = self.encoder.preprocess
        if images.dtype != np.float32 or images.ndim != 4 or images.shape[1:] != (3, spec.height, spec.width):
            raise EngineError(
                f"expected float32 (N, 3, {spec.height}, {spec.width}), got {images.dtype} {images.shape}: "
                "use the bundle's PreprocessSpec"
            )
        embeddings = self._infer(images)
        if embeddings.shape != (len(images), self.encoder.embedding_dim):
            raise EngineError(
                f"{self.path.name} returned {embeddings.shape}, expected {(len(images), self.encoder.embedding_dim)}: "
                "export the bundle again"
            )
        if not np.isfinite(embeddings).all():
            raise EngineError(
                f"{self.path.name} returned values that are not finite on {self.name}: try --variant fp32"
            )
        return embeddings

    @abstractmethod
    def _infer(self, images: FloatArray) -> FloatArray:
        """Run checked input; return whatever the graph gives as float32."""

    def close(self) -> None:  # noqa: B027 - an engine that owns nothing has nothing to release
        """Release the engine's memory."""

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def load_engine(
    name: str, path: Path, encoder: EncoderSpec, *, precision: Precision = "fp32", threads: int | None = None
) -> Engine:
    """Load an encoder with the engine called ``name``.

    Raises:
        InputError: ``threads`` is below 1.
        EngineError: no such engine, or it cannot load the graph.
        MissingExtraError: the engine's library is not installed.
    """
    if threads is not None and threads < 1:
        raise InputError(f"expected --threads of at least 1, got {threads}")
    if name not in ENGINES:
        raise EngineError(f"expected an engine out of {', '.join(ENGINES)}, got {name!r}")
    module, _, attribute = ENGINES[name].partition(":")
    engine_class: type[Engine] = getattr(importlib.import_module(module), attribute)
    return engine_class(path, encoder, precision=precision, threads=threads)
