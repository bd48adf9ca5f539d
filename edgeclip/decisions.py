"""What a variant's scores of one prompt table mean: fitted on images, kept in the table, applied on the device.

A label's calibrated probability is that of the frame showing any of the classes, ``sigmoid(v · f + a)``, times that of
the best class being right if it does, ``sigmoid(w · f + b_c)``. The features f are what is seen in a frame's logits and
embedding:

- the best logit, its margin to the second, log Σ exp of all, and the entropy of their softmax;
- what ridge regression on the labelled images says of the best class, by how much it is ahead of the others, what it
  says of "none of these" and of the class that it holds for the likeliest, and the difference of the last two.

The offset ``b_c`` is for how often the class is right when it is best. A frame's other classes share what is left of
the probability of any, and what is missing to 1 is "unknown".
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from edgeclip.errors import TableError
from edgeclip.key_cache import LARGEST, FloatArray
from edgeclip.printable import counted
from edgeclip.tensors import Tensors

Promise = Literal["own", "together", "none"]
Doubles = npt.NDArray[np.float64]
Rows = npt.NDArray[np.intp]

FEATURES = 4 + 5  # of the logits, of the regression
_NEXT = 0.999  # of the best score: the most that another can have
_COLDEST = 1e-6  # temperature: logits over it stay finite in float32
_MOST = 0.999999  # a probability of 1 is never reached, so that a threshold of 1 lets nothing pass


class ClassDecision(msgspec.Struct, frozen=True, omit_defaults=True):
    """From which probability a class is reported, and what was promised of it.

    Attributes:
        threshold: calibrated probability in (0, 1] below which the label is ``unknown``; 1 lets nothing pass.
        promise: the target precision is promised for this class by itself, together with others, or not at all.
        images: labelled images of the class that it was fitted on.
        accepted, right: of images that were not fitted on, how many were reported as the class, and how many rightly.
    """

    threshold: float
    promise: Promise = "none"
    images: int = 0
    accepted: int = 0
    right: int = 0


class DecisionFacts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What decisions are bound to, and what was seen when they were fitted.

    Attributes:
        variant: form of the encoder.
        graph: hex sha256 over the variant's graph files.
        rows: content hash of the table without decisions.
        temperature: logits are divided by it before the softmax or sigmoid.
        classes: by label, for the classes that may be reported.
        target: the precision that was asked for; None without labels.
        confidence: how sure each promise is by itself, in (0, 1).
        calibrated: whether scores are probabilities; False without labels.
        label_rate: without labels: the share of the footage's frames that is labelled at most.
        data: hex sha256 of the record of the labelled images; refitting begins from it.
        figures: shares and errors as measured, by name.
        engine: inference engine of the embeddings.
    """

    variant: str
    graph: str
    rows: str
    temperature: float = 1.0
    classes: dict[str, ClassDecision]
    target: float | None = None
    confidence: float | None = None
    calibrated: bool = True
    label_rate: float | None = None
    data: str = ""
    figures: dict[str, float] = {}
    engine: str = ""


class BestLogits(NamedTuple):
    """Of N frames: the best row (N,), and what is seen in their logits (N, 4) float64."""

    best: Rows
    features: Doubles


def look_at(logits: FloatArray) -> BestLogits:
    """Best row, margin to the second, log Σ exp and negative entropy of logits (N, C)."""
    best = logits.argmax(axis=1)
    top = np.take_along_axis(logits, best[:, None], axis=1)[:, 0].astype(np.float64)
    second = np.partition(logits, -2, axis=1)[:, -2].astype(np.float64) if logits.shape[1] > 1 else top
    shifted = (logits - top[:, None].astype(np.float32)).astype(np.float64)
    weights = np.exp(shifted)
    total = weights.sum(axis=1)
    log_total = np.log(total)
    entropy = log_total - (weights * shifted).sum(axis=1) / total
    return BestLogits(best, np.stack([top, top - second, top + log_total, -entropy], axis=1))


class Sure(NamedTuple):
    """Of N frames, both (N,) float64: the probability of any class of the table, and of the best one being right."""

    known: Doubles
    right: Doubles


@dataclass(frozen=True)
class Confidence:
    """How sure a best class is to be right.

    Attributes:
        weights: (9,) float64 of the features, in the order of the module's list, for the best class being right.
        class_bias: (C,) float64, added to that.
        known: (10,) float64, the same and a constant for the frame showing any of the classes.
        rows: (K + 1, D) float32: ridge regression's rows of the K classes that have labelled images, and of "none".
        offsets: (K + 1,) float64.
        verified: (K,) int64, which table rows the K are.
    """

    weights: Doubles
    class_bias: Doubles
    known: Doubles
    rows: FloatArray
    offsets: Doubles
    verified: npt.NDArray[np.int64]

    def check(self, classes: int, width: int) -> None:
        """Refuse what does not fit a table of C classes and width D.

        Raises:
            TableError: with what was expected and got.
        """
        count = self.verified.size
        numbers = (self.weights, self.class_bias, self.known, self.rows, self.offsets, self.verified)
        got = tuple((part.dtype.name, part.shape) for part in numbers)
        of_doubles = [(FEATURES,), (classes,), (FEATURES + 1,), (count + 1,)]
        doubles = [("float64", shape) for shape in of_doubles]
        expected = (*doubles[:3], ("float32", (count + 1, width)), doubles[3], ("int64", (count,)))
        if got != expected or not count:
            raise TableError(f"expected decisions of shapes {expected}, got {got}: fit them again")
        if self.verified.min() < 0 or self.verified.max() >= classes or len(np.unique(self.verified)) < count:
            raise TableError(f"expected decisions on different rows of {classes}, got others: fit them again")
        if not all(bool((np.abs(part) <= LARGEST).all()) for part in numbers):  # what is no number is no less either
            raise TableError(f"expected decisions of finite figures up to {LARGEST:g}, got others: fit them again")

    def of(self, seen: BestLogits, embeddings: FloatArray) -> Sure:
        """How sure it is of N frames.

        Args:
            embeddings: (N, D) float32 of unit length.
        """
        said = (embeddings @ self.rows.T).astype(np.float64) + self.offsets  # (N, K + 1)
        features = np.concatenate([seen.features, second_opinion(said, seen.best, self.verified)], axis=1)
        known = sigmoid(features @ self.known[:-1] + self.known[-1])
        return Sure(known, known * sigmoid(features @ self.weights + self.class_bias[seen.best]))

    def tensors(self) -> dict[str, npt.NDArray[Any]]:
        """What is stored of it."""
        return {name: np.ascontiguousarray(getattr(self, name)) for name in _PARTS}


_PARTS: dict[str, tuple[str, int]] = {  # type as stored, and dimensions
    "weights": ("F64", 1),
    "class_bias": ("F64", 1),
    "known": ("F64", 1),
    "rows": ("F32", 2),
    "offsets": ("F64", 1),
    "verified": ("I64", 1),
}


def second_opinion(said: Doubles, best: Rows, verified: npt.NDArray[np.int64]) -> Doubles:
    """The last five features (N, 5) of what a regression says (N, K + 1); of a class without labelled images, 0."""
    frames = np.arange(len(said))
    place = np.full(max(int(best.max(initial=0)), int(verified.max(initial=0))) + 1, -1)
    place[verified] = np.arange(len(verified))
    own = place[best]
    known = own >= 0
    mine = np.where(known, said[frames, own], 0.0)
    others = said[:, :-1].copy()
    others[frames[known], own[known]] = -np.inf
    other = others.max(axis=1, initial=-np.inf)
    none, likeliest = said[:, -1], said[:, :-1].max(axis=1)
    ahead = mine - np.where(np.isfinite(other), other, 0.0)
    return np.stack([mine, ahead, none, likeliest, likeliest - none], axis=1)


def sigmoid(values: Doubles) -> Doubles:
    """1 / (1 + exp(-x)), without overflow."""
    result: Doubles = 0.5 * (1.0 + np.tanh(0.5 * values))
    return result


@dataclass(frozen=True)
class Decisions:
    """Decisions of one variant on one prompt table.

    Attributes:
        facts: thresholds, promises, and what they are bound to.
        confidence: how probabilities come about; None without labels.
    """

    facts: DecisionFacts
    confidence: Confidence | None = None

    def __post_init__(self) -> None:
        facts = self.facts
        if not _COLDEST <= facts.temperature <= LARGEST:
            raise TableError(
                f"expected a temperature from {_COLDEST:g} to {LARGEST:g}, got {facts.temperature}: fit the decisions "
                "again"
            )
        for name, value, needed in (
            ("target", facts.target, facts.calibrated),
            ("label_rate", facts.label_rate, not facts.calibrated),
        ):
            if (value is None and needed) or (value is not None and not 0 <= value <= 1):
                raise TableError(f"expected a {name} from 0 to 1, got {value}: fit the decisions again")
        if wrong := {label: value for label, value in self.thresholds.items() if not 0 < value <= 1}:
            raise TableError(f"expected thresholds above 0 and up to 1, got {wrong}: fit the decisions again")

    @property
    def thresholds(self) -> dict[str, float]:
        """Label to the probability from which on the class is reported."""
        return {label: each.threshold for label, each in self.facts.classes.items()}

    def check(self, labels: Sequence[str], width: int) -> None:
        """Refuse decisions that do not fit a table's labels and width.

        Raises:
            TableError: with what was expected and got.
        """
        if strange := sorted(set(self.facts.classes).difference(labels)):
            raise TableError(f"expected decisions on classes of the table, got {strange[:3]}: fit them again")
        if self.confidence:
            self.confidence.check(len(labels), width)

    def spread(self, scores: FloatArray, seen: BestLogits, embeddings: FloatArray) -> None:
        """Scale scores (N, C) in place so that the best is its calibrated probability and all sum to at most 1."""
        if self.confidence is None:
            return
        frames = np.arange(len(scores))
        sure = self.confidence.of(seen, embeddings)
        right = np.minimum(sure.right, _MOST).astype(np.float32)  # (N,)
        rest = np.maximum(1 - scores[frames, seen.best].astype(np.float64), 1e-12)
        scores[frames, seen.best] = 0
        second = np.maximum(scores.max(axis=1).astype(np.float64), 1e-12)
        share = np.minimum(np.minimum(sure.known - sure.right, rest) / rest, _NEXT * right / second)  # best stays best
        scores *= share[:, None].astype(np.float32)
        scores[frames, seen.best] = right

    @property
    def sha256(self) -> str:
        """Digest of all of it."""
        digest = hashlib.sha256(msgspec.json.encode(self.facts, order="sorted"))
        if self.confidence:
            for name, tensor in self.confidence.tensors().items():
                digest.update(name.encode() + str(tensor.shape).encode() + tensor.tobytes())
        return digest.hexdigest()


def stored_decisions(decisions: Sequence[Decisions]) -> tuple[dict[str, str], dict[str, npt.NDArray[Any]]]:
    """Metadata and tensors that a table's file holds for its decisions."""
    if not decisions:
        return {}, {}
    tensors = {
        f"decisions.{number}.{name}": tensor
        for number, each in enumerate(decisions)
        for name, tensor in (each.confidence.tensors().items() if each.confidence else ())
    }
    return {"decisions": msgspec.json.encode([each.facts for each in decisions]).decode()}, tensors


def read_decisions(stored: Tensors) -> tuple[Decisions, ...]:
    """The decisions in an opened safetensors file.

    Raises:
        TableError: they cannot be used.
    """
    read = []
    for number, each in enumerate(stored.json("decisions", list[DecisionFacts], [])):
        parts = {name: f"decisions.{number}.{name}" for name in _PARTS}
        present = [place for place in parts.values() if place in stored.names]
        if present and len(present) < len(parts):
            raise TableError(f"expected {', '.join(parts.values())}, got only {', '.join(present)}: fit them again")
        arrays = {
            name: stored.array(parts[name], kind, (None,) * dimensions)
            for name, (kind, dimensions) in _PARTS.items()
            if present
        }
        read.append(Decisions(each, Confidence(**arrays) if arrays else None))
    return tuple(read)


class Current(NamedTuple):
    """The decisions that hold for a variant, if any, and in a sentence why or why not; empty if there are none."""

    decisions: Decisions | None
    said: str


def current_decisions(
    decisions: Sequence[Decisions], *, table: str, rows: str, variant: str | None, graph: str
) -> Current:
    """Find the decisions that were fitted for this variant's graph and these rows.

    Args:
        decisions: of the table.
        table: its name, for the sentence.
        rows: its content hash without decisions.
        variant: what will run; None if that is not known, for which no decisions hold.
        graph: hex sha256 over its files.
    """
    if not decisions or variant is None:
        return Current(None, "")
    refit = f"edgeclip calibrate decisions --table {table} --refit"
    found = next((each for each in decisions if each.facts.variant == variant), None)
    if found is None:
        fitted = ", ".join(each.facts.variant for each in decisions)
        return Current(
            None,
            f"table {table}: its decisions were fitted for {fitted}, not for {variant}: scores are not calibrated; "
            f"run {refit} --variant {variant}",
        )
    if found.facts.rows == rows and found.facts.graph == graph:
        return Current(found, _sentence(table, found.facts))
    why = "the prompts have changed" if found.facts.rows != rows else f"{variant} is another graph now"
    return Current(None, f"table {table}: its decisions are stale ({why}): run {refit}")


def _sentence(table: str, facts: DecisionFacts) -> str:
    if not facts.calibrated:
        return (
            f"table {table}: without labels; at most {facts.label_rate:.2%} of frames like those of the footage "
            "get a label; scores are not probabilities"
        )
    on = f" (on {facts.engine})" if facts.engine else ""
    held = sum(each.promise != "none" for each in facts.classes.values())
    return (
        f"table {table}: calibrated for {facts.variant}{on}; precision {facts.target:g} is promised for {held} of "
        f"{counted(len(facts.classes), 'class', 'classes')}"
    )
