"""Unit embeddings in, class scores and the best labels out.

A product with a large table is bound by memory: 100,000 float32 rows of 512 are 205 MB, read once a frame. In 8 bits,
with a scale for every 128 elements, they are a quarter of that, and ONNX Runtime's ``MatMulNBits`` reads them five
times as fast. The dot products are then off by some 0.0002 (standard deviation, random unit rows), so the largest ones
are computed again from the float32 rows: which rows are best, and their dot products, are those of float32, and the
others only enter a softmax's sum, where their errors cancel (``benchmarks/scoring.py`` prints both).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeclip.decisions import Decisions, look_at
from edgeclip.devices.machine.cpu import usable_cores
from edgeclip.errors import TableError
from edgeclip.prompts import FloatArray, PromptTable
from edgeclip.runtime.records import Scored
from edgeclip.spec import EncoderSpec
from edgeclip.tensors import all_finite

_log = logging.getLogger("edgeclip")

_LARGE = 1 << 22  # elements of a table; below, NumPy's product takes less than a millisecond
EXACT = 128  # rows whose dot products are computed again
_BLOCK = 128  # elements that share a scale
_ZERO_POINT = 128  # of MatMulNBits, for weights stored as uint8
_ROWS_AT_ONCE = 4096  # quantized together, which bounds the memory that it takes
_PROBES = 4
# On one processor in use products of unit rows were off by 0.002 at most; ten times that is no rounding.
_LARGEST_ERROR = 0.02
_GROUP = 32


class Scorer:
    """A prompt table with a model's scale, bias and kind of score; may be used by several threads.

    Args:
        table: C unit rows of width D.
        encoder: whose ``logit_scale``, ``logit_bias`` and ``score`` apply.
        decisions: those of the table that hold for the variant that runs; None for scores as the model gives them.

    Attributes:
        table: the table.
        labels: its C labels in row order.
        row_of: label to row.
        background: rows that mean "nothing of interest".
        decided: whether decisions apply.
        calibrated: whether scores are probabilities that were fitted on labelled images.

    Raises:
        TableError: a table without rows, with two rows of one label, or that does not score unit vectors from 0 to 1.
    """

    def __init__(self, table: PromptTable, encoder: EncoderSpec, decisions: Decisions | None = None) -> None:
        self.table = table
        self.labels = table.labels
        self.row_of = {label: row for row, label in enumerate(self.labels)}
        if not 0 < len(self.row_of) == len(self.labels):
            raise TableError(
                f"expected rows of different labels in table {table.name!r}, got {len(self.row_of)} labels for "
                f"{len(self.labels)} rows: build it again"
            )
        rows = table.embeddings
        if rows.ndim != 2 or len(rows) != len(self.labels) or not all_finite(rows):
            raise TableError(
                f"expected {len(self.labels)} rows of finite numbers in table {table.name!r}, one a class, got "
                f"{rows.shape}: build it again"
            )
        self.background = frozenset(self.row_of[label] for label in table.background)
        thresholds = decisions.thresholds if decisions else table.thresholds
        self._thresholds = {self.row_of[label]: float(value) for label, value in thresholds.items()}
        self._decisions = decisions
        self.decided = decisions is not None
        self.calibrated = decisions is not None and decisions.facts.calibrated
        self._rows = np.ascontiguousarray(table.embeddings, np.float32)  # (C, D), as the table has it
        self._encoder = encoder
        self._dots: Callable[[FloatArray], FloatArray] = self._choose_product()
        self._try_out()

    def logits(self, embeddings: FloatArray) -> FloatArray:
        """Logits (N, C) float32 of unit embeddings (N, D): what the softmax or sigmoid is taken of."""
        logits = self._dots(embeddings)  # (N, C); all that follows is done in place: C may be large
        logits *= np.float32(self._encoder.logit_scale)
        if self.table.cache:
            self.table.cache.add_to(logits, embeddings)
        if self._encoder.score == "sigmoid":  # a bias common to all classes would cancel in a softmax
            logits += np.float32(self._encoder.logit_bias)
        return logits

    def scores(self, embeddings: FloatArray) -> FloatArray:
        """Scores (N, C) float32 of unit embeddings (N, D), in [0, 1].

        A row sums to 1 for softmax; scores are independent for sigmoid. With decisions on labelled images the best of
        a row is the probability that it is right, and a row of softmax sums to at most 1.

        Raises:
            TableError: a score that is not finite.
        """
        scores = self.logits(embeddings)
        if self._decisions is None:
            self._link(scores)
        else:
            seen = look_at(scores)
            scores /= np.float32(self._decisions.facts.temperature)
            self._decisions.spread(self._link(scores), seen, embeddings)
        if not np.isfinite(scores.sum()):
            raise TableError(f"expected finite scores of table {self.table.name!r}, got others: build it again")
        return scores

    def _link(self, logits: FloatArray) -> FloatArray:
        """Softmax or sigmoid of logits (N, C), in place."""
        if self._encoder.score == "sigmoid":
            logits *= 0.5
            np.tanh(logits, out=logits)
            logits += 1.0
            logits *= 0.5
            return logits
        logits -= logits.max(axis=1, keepdims=True)
        np.exp(logits, out=logits)
        logits /= logits.sum(axis=1, keepdims=True)
        return logits

    def top(self, scores: FloatArray, k: int) -> list[Scored]:
        """The k best labels of one row (C,) of ``scores``, best first; fewer if the table has fewer classes."""
        k = min(k, len(scores))
        if k < 1:
            return []
        candidates = largest(scores, k)
        best = candidates[np.argsort(-scores[candidates], kind="stable")[:k]]
        return [Scored(self.labels[i], float(scores[i])) for i in best]

    def is_background(self, row: int) -> bool:
        """Whether a row means "nothing of interest"."""
        return row in self.background

    def threshold_of(self, row: int, default: float) -> float:
        """The class's own threshold, or ``default`` if the table has none for it."""
        return self._thresholds.get(row, default)

    def at_threshold(self, scores: FloatArray, default: float) -> list[int]:
        """Rows, in order, whose score (C,) reaches their own threshold, or ``default``; never a background row."""
        lowest = min(self._thresholds.values(), default=default)
        rows = np.flatnonzero(scores >= min(lowest, default)).tolist()
        return [row for row in rows if row not in self.background and scores[row] >= self._thresholds.get(row, default)]

    def _try_out(self) -> None:
        """Score a few unit vectors: figures may be finite one by one, and not together."""
        cache = self.table.cache
        try:
            with np.errstate(all="ignore"):  # what comes of it is looked at below
                probes = _unit_vectors(self._rows, self._rows if cache is None else cache.keys)
                scores = self.scores(probes)
                reported = [self.top(row, 1)[0] for row in scores]
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            raise TableError(f"table {self.table.name!r} cannot score a unit vector ({why}): build it again") from error
        if scores.shape != (len(probes), len(self.labels)) or not all(0 <= best.score <= 1 + 1e-5 for best in reported):
            raise TableError(
                f"expected scores from 0 to 1 of table {self.table.name!r}, got {min(best.score for best in reported)} "
                f"to {max(best.score for best in reported)}: build it again"
            )

    def _choose_product(self) -> Callable[[FloatArray], FloatArray]:
        """Embeddings (N, D) → dot products (N, C), of a large table by its rows in 8 bits where that works here."""
        if self._rows.size >= _LARGE:
            try:
                return QuantizedRows(self._rows)
            except Exception as error:  # noqa: BLE001 - an older ONNX Runtime raises errors of many kinds
                _log.info("table %s is scored in float32, which takes longer: %s", self.table.name, error)
        return self._exact

    def _exact(self, embeddings: FloatArray) -> FloatArray:
        dots: FloatArray = np.ascontiguousarray(embeddings, np.float32) @ self._rows.T
        return dots


def _unit_vectors(rows: FloatArray, keys: FloatArray) -> FloatArray:
    """(N, D) to try a table with: along axes, in random directions, and its own rows and keys."""
    width = rows.shape[1]
    axis = np.eye(1, width, dtype=np.float32)
    random = np.random.default_rng(0).standard_normal((_PROBES, width))
    random /= np.linalg.norm(random, axis=1, keepdims=True)
    own = [found[:: -(-len(found) // _PROBES)] for found in (rows, keys)]
    return np.concatenate([axis, -axis, random.astype(np.float32), *own])


def largest(scores: FloatArray, k: int) -> npt.NDArray[np.intp]:
    """Indices of (C,) scores, in order, among which are those of the k largest; few more unless many are equal."""
    groups = len(scores) // _GROUP
    if groups < k:
        return np.arange(len(scores)) if len(scores) <= k else np.sort(np.argpartition(scores, -k)[-k:])
    # The k largest of the groups' maxima are k scores, so the k largest scores are no less than the least of them.
    maxima = scores[: groups * _GROUP].reshape(_GROUP, groups).max(axis=0)
    return np.flatnonzero(scores >= np.partition(maxima, groups - k)[groups - k])


class QuantizedRows:
    """Rows in 8 bits beside the float32 ones; may be used by several threads.

    Args:
        rows: (C, D) float32 unit rows, kept and not copied.

    Raises:
        RuntimeError: this ONNX Runtime has no such product, or computes it wrongly on this processor.
    """

    def __init__(self, rows: FloatArray) -> None:
        self._rows = rows
        self._session, self._kept = _open(rows)
        probes = rows[:: -(-len(rows) // _PROBES)]
        error = float(np.abs(self._nearly(probes) - probes @ rows.T).max())
        if not error <= _LARGEST_ERROR:
            raise RuntimeError(f"expected products in 8 bits within {_LARGEST_ERROR}, got {error:.3f}")

    def __call__(self, embeddings: FloatArray) -> FloatArray:
        """Embeddings (N, D) float32 → dot products (N, C) float32, the ``EXACT`` largest of each exactly."""
        dots = self._nearly(embeddings)
        for embedding, own in zip(embeddings, dots, strict=True):
            best = largest(own, EXACT)
            own[best] = self._rows[best] @ embedding
        return dots

    def _nearly(self, embeddings: FloatArray) -> FloatArray:
        dots: FloatArray = self._session.run(None, {"e": np.ascontiguousarray(embeddings, np.float32)})[0]
        return dots


def _open(rows: FloatArray) -> tuple[Any, list[Any]]:
    """(session, what it reads and must therefore be kept)."""
    import onnxruntime

    quantized, scales = _quantize(rows)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the encoder needs the cores
    kept = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in (quantized, scales)]
    options.add_external_initializers(["q", "s"], kept)
    model = _model(rows.shape, quantized.shape)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"]), kept


def _quantize(rows: FloatArray) -> tuple[npt.NDArray[np.uint8], FloatArray]:
    """(C, D) → uint8 (C, blocks, _BLOCK) around the zero-point, and a scale for each block (C * blocks,)."""
    count, width = rows.shape
    blocks = -(-width // _BLOCK)
    quantized = np.empty((count, blocks, _BLOCK), np.uint8)
    scales = np.empty((count, blocks), np.float32)
    for first in range(0, count, _ROWS_AT_ONCE):
        part = rows[first : first + _ROWS_AT_ONCE]
        padded = np.zeros((len(part), blocks, _BLOCK), np.float32)
        padded.reshape(len(part), -1)[:, :width] = part
        scale = np.maximum(np.abs(padded).max(axis=2) / 127, np.float32(1e-12))
        scales[first : first + len(part)] = scale
        quantized[first : first + len(part)] = np.rint(padded / scale[..., None]) + _ZERO_POINT
    return quantized, scales.reshape(-1)


# The graph as protobuf, by onnx.proto's field numbers: the device side has no `onnx` to write it with. -------------

_FLOAT, _UINT8 = 1, 2  # TensorProto.DataType
_INT = 2  # AttributeProto.AttributeType
_EXTERNAL = 1  # TensorProto.DataLocation


def _model(rows: tuple[int, ...], quantized: tuple[int, ...]) -> bytes:
    """y (N, C) = MatMulNBits(e (N, D), q, s), whose weights the session is given when it is made."""
    (count, width), (_, blocks, block) = rows, quantized
    attributes = {"K": width, "N": count, "bits": 8, "block_size": block, "accuracy_level": 4}  # 4: products in int8
    node = _message(
        *((1, name) for name in ("e", "q", "s")),
        (2, "y"),
        (4, "MatMulNBits"),
        *((5, _message((1, name), (3, value), (20, _INT))) for name, value in attributes.items()),
        (7, "com.microsoft"),
    )
    graph = _message(
        (1, node),
        (2, "table"),
        (5, _initializer("q", _UINT8, (count, blocks, block))),
        (5, _initializer("s", _FLOAT, (count * blocks,))),
        (11, _value("e", ("N", width))),
        (12, _value("y", ("N", count))),
    )
    opsets = [_message((1, ""), (2, 17)), _message((1, "com.microsoft"), (2, 1))]
    return _message((1, 8), (7, graph), *((8, opset) for opset in opsets))


def _initializer(name: str, kind: int, shape: tuple[int, ...]) -> bytes:
    location = _message((1, "location"), (2, "given"))
    return _message(*((1, size) for size in shape), (2, kind), (8, name), (13, location), (14, _EXTERNAL))


def _value(name: str, shape: tuple[int | str, ...]) -> bytes:
    dimensions = [(1, _message((1, size) if isinstance(size, int) else (2, size))) for size in shape]
    tensor = _message((1, _FLOAT), (2, _message(*dimensions)))
    return _message((1, name), (2, _message((1, tensor))))


def _message(*fields: tuple[int, int | str | bytes]) -> bytes:
    """A protobuf message of (field number, value)."""
    out = bytearray()
    for number, value in fields:
        if isinstance(value, int):
            out += _varint(number << 3) + _varint(value)
        else:
            data = value.encode() if isinstance(value, str) else value
            out += _varint(number << 3 | 2) + _varint(len(data)) + data
    return bytes(out)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
