"""Class names × prompt templates in, a prompt table of unit rows out; building needs a text encoder, using does not."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Protocol

import msgspec
import numpy as np
from safetensors.numpy import save_file

from edgeclip.class_names import SIMPLE_TEMPLATES as SIMPLE_TEMPLATES
from edgeclip.class_names import PromptClass as PromptClass
from edgeclip.class_names import load_templates as load_templates
from edgeclip.class_names import make_classes as make_classes
from edgeclip.class_names import parse_classes as parse_classes
from edgeclip.decisions import Decisions, read_decisions, stored_decisions
from edgeclip.errors import PromptError, TableError
from edgeclip.files import atomic_file
from edgeclip.key_cache import FloatArray as FloatArray
from edgeclip.key_cache import KeyCache, require_unit
from edgeclip.spec import MOST_WIDTH
from edgeclip.tensors import open_tensors

_Names = Annotated[list[str], msgspec.Meta(min_length=1)]  # a label, and the names of its class

TABLE_FORMAT = "edgeclip.prompt-table.1"
ALIKE = 0.9999  # cosine from which two rows say the same; singular and plural of a word are at 0.99
_ALIKE_BLOCK = 1024  # rows compared with all others at once
_VARIATIONS = frozenset(map(chr, range(0xFE00, 0xFE10)))  # choose between two pictures of one emoji
_SHOWN, _LONGEST = 5, 40  # labels that a message names, and how much of each

_log = logging.getLogger("edgeclip")


class TextEncoder(Protocol):
    """What a table builder needs of a model."""

    def encode_text(self, texts: Sequence[str]) -> FloatArray:
        """Embeddings (N, D) float32, not necessarily normalised."""
        ...


@dataclass(frozen=True)
class PromptTable:
    """Precomputed text embeddings of a set of classes.

    Attributes:
        name: what the table is called in a bundle.
        classes: C classes in row order.
        embeddings: (C, D) float32, rows of unit length.
        templates: prompt templates, ``{}`` standing for the name.
        model_id: identity of the model that made the rows (``ModelIdentity.id``).
        background: labels of rows that mean "nothing of interest"; a frame that is best described by one is unknown.
        thresholds: label to score in (0, 1] below which the class counts as absent; not every class needs one.
        adapted: how the rows were changed by labelled images, in words and digests; empty for rows of text alone.
        cache: labelled image embeddings that are scored beside the rows (Tip-Adapter).
        decisions: what scores mean, one for each variant that they were fitted for; they replace ``thresholds`` there.

    Raises:
        TableError: decisions that do not fit, a background row or a threshold of a class that is not in the table, or
            a threshold out of range.
    """

    name: str
    classes: tuple[PromptClass, ...]
    embeddings: FloatArray
    templates: tuple[str, ...]
    model_id: str
    background: tuple[str, ...] = ()
    thresholds: Mapping[str, float] = field(default_factory=dict)
    adapted: str = ""
    cache: KeyCache | None = None
    decisions: tuple[Decisions, ...] = ()

    def __post_init__(self) -> None:
        if self.embeddings.ndim != 2:
            raise TableError(f"expected rows (C, D) in table {self.name!r}, got an array {self.embeddings.shape}")
        named = {*self.background, *self.thresholds}
        if strange := sorted(named.difference(self.labels) if named else ()):
            raise TableError(f"expected background rows and thresholds of classes of {self.name!r}, got {strange[:3]}")
        if named and len(set(self.background)) == len(self.classes):
            raise TableError(f"expected a class of interest in table {self.name!r}, got background rows only")
        if wrong := {label: value for label, value in self.thresholds.items() if not 0 < value <= 1}:
            raise TableError(f"expected thresholds above 0 and up to 1 in table {self.name!r}, got {wrong}")
        if self.cache:
            self.cache.check(len(self.classes), self.embeddings.shape[-1])

    @property
    def labels(self) -> tuple[str, ...]:
        """The C labels in row order."""
        return tuple(item.label for item in self.classes)

    @property
    def content_hash(self) -> str:
        """sha256 of what the rows were made from, what is said of them, and the decisions."""
        if not self.decisions:
            return self.rows_hash
        return hashlib.sha256("".join([self.rows_hash, *(each.sha256 for each in self.decisions)]).encode()).hexdigest()

    @property
    def rows_hash(self) -> str:
        """The same without the decisions: what these are bound to (classes, synonyms, templates, model, adaptation)."""
        said = content_hash(
            self.classes, self.templates, self.model_id, background=self.background, thresholds=self.thresholds
        )
        if not self.adapted and self.cache is None:
            return said
        # Rows that were fitted to images follow from no prompt: the hash covers them, and the keys, themselves.
        more = hashlib.sha256(f"{said}{self.adapted}{self.cache.sha256 if self.cache else ''}".encode())
        more.update(np.ascontiguousarray(self.embeddings).data)  # of the array itself: a copy could be gigabytes
        return more.hexdigest()

    def _check_texts(self, path: Path) -> None:
        """Refuse a name that no table can have, and labels that are empty."""
        try:
            check_table_name(self.name)
        except PromptError as error:
            raise TableError(f"{path}: {error}") from error
        if not all(map(str.strip, self.labels)):
            raise TableError(f"expected a label for every class of {path}, got an empty one: make it again")

    def check_decisions(self) -> None:
        """Refuse decisions on these rows that do not fit them; those on earlier rows are stale, and kept.

        Raises:
            TableError: with what was expected and got.
        """
        for each in self.decisions:
            if each.facts.rows == self.rows_hash:
                each.check(self.labels, self.embeddings.shape[-1])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one ``.safetensors`` file atomically: tensor ``embeddings`` and JSON metadata."""
        metadata = {
            "format": TABLE_FORMAT,
            "name": self.name,
            "classes": json.dumps([[item.label, *item.names] for item in self.classes], ensure_ascii=False),
            "templates": json.dumps(self.templates, ensure_ascii=False),
            "model_id": self.model_id,
            "content_hash": self.content_hash,
        }
        if self.background:
            metadata["background"] = json.dumps(self.background, ensure_ascii=False)
        if self.thresholds:
            metadata["thresholds"] = json.dumps(_plain(self.thresholds), ensure_ascii=False)
        if self.adapted:
            metadata["adapted"] = self.adapted
        tensors = {"embeddings": np.ascontiguousarray(self.embeddings)}
        if self.cache:
            metadata, tensors = metadata | self.cache.metadata(), tensors | self.cache.tensors()
        said, fitted = stored_decisions(self.decisions)
        metadata, tensors = metadata | said, tensors | fitted
        with atomic_file(Path(path)) as temporary:
            save_file(tensors, temporary, metadata=metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PromptTable:
        """Read a table and check that it is whole.

        Raises:
            TableError: not a table, inconsistent, or its rows are not of unit length.
        """
        path = Path(path)
        if not path.is_file():
            raise TableError(
                f"expected a prompt table at {path}, got no such file: make it with edgeclip prompts build"
            )
        with open_tensors(path, error=TableError) as stored:
            if (found := stored.metadata.get("format")) != TABLE_FORMAT:
                raise TableError(
                    f"{path} is not a prompt table (expected format {TABLE_FORMAT}, got {found}): make it with "
                    "edgeclip prompts build"
                )
            classes = stored.json("classes", list[_Names])
            embeddings = stored.array("embeddings", "F32", (len(classes), None), widest=MOST_WIDTH)
            table = cls(
                name=stored.text("name"),
                classes=tuple(PromptClass(label, tuple(names)) for label, *names in classes),
                embeddings=embeddings,
                templates=tuple(stored.json("templates", list[str])),
                model_id=stored.text("model_id"),
                background=tuple(stored.json("background", list[str], [])),
                thresholds=stored.json("thresholds", dict[str, int | float], {}),  # as written: they are in the hash
                adapted=stored.metadata.get("adapted", ""),
                cache=KeyCache.read(stored, embeddings.shape[1]),
                decisions=read_decisions(stored),
            )
            content = stored.metadata.get("content_hash")
        table._check_texts(path)
        require_unit(table.embeddings, str(path))
        table.check_decisions()
        if content != table.content_hash:
            raise TableError(f"{path}: its classes or templates do not match its content hash: make it again")
        return table


def content_hash(
    classes: Sequence[PromptClass],
    templates: Sequence[str],
    model_id: str,
    *,
    background: Sequence[str] = (),
    thresholds: Mapping[str, float] | None = None,
) -> str:
    """sha256 over everything that determines a table's rows, and over what is said of them."""
    content: list[Any] = [[[item.label, *item.names] for item in classes], list(templates), model_id]
    if background or thresholds:  # tables without either keep the hash that they always had
        content += [list(background), sorted(_plain(thresholds or {}).items())]
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()


def _plain(thresholds: Mapping[str, float]) -> dict[str, int | float]:
    """Thresholds as JSON has them; a whole number stays one, as it is written so."""
    return {label: value if isinstance(value, int | float) else float(value) for label, value in thresholds.items()}


def encode_table(
    encoder: TextEncoder,
    classes: Sequence[PromptClass],
    templates: Sequence[str],
    *,
    name: str,
    model_id: str,
    batch_size: int = 128,
    progress: Callable[[int, int], None] | None = None,
) -> PromptTable:
    """Encode every name × template and average per class: normalise, average, normalise again (CLIP, section 3.1.4).

    All prompts go through the encoder together, each distinct text once.

    Args:
        batch_size: prompts a forward pass.
        progress: called with (prompts done, prompts in all) after each batch.

    Raises:
        PromptError: no class or template, or an embedding that is not finite.
    """
    if not classes or not templates:
        raise PromptError(f"expected classes and templates, got {len(classes)} and {len(templates)}")
    prompts = [[template.replace("{}", alias) for alias in item.names for template in templates] for item in classes]
    texts = list(dict.fromkeys(text for group in prompts for text in group))
    encoded = encode_texts(encoder, texts, batch_size=batch_size, progress=progress)  # (T, D)
    row_of = {text: row for row, text in enumerate(texts)}
    means = np.stack([encoded[[row_of[text] for text in group]].mean(axis=0) for group in prompts])  # (C, D)
    return PromptTable(name, tuple(classes), unit_rows(means), tuple(templates), model_id)


def encode_texts(
    encoder: TextEncoder,
    texts: Sequence[str],
    *,
    batch_size: int = 128,
    progress: Callable[[int, int], None] | None = None,
) -> FloatArray:
    """Unit rows (T, D) float32 of different texts, in their order; batches hold texts of like length and pad little.

    Raises:
        PromptError: an embedding that is not finite.
    """
    order = sorted(range(len(texts)), key=lambda index: (len(texts[index]), texts[index]))
    rows: list[FloatArray] = []
    for start in range(0, len(order), batch_size):
        rows.append(encoder.encode_text([texts[index] for index in order[start : start + batch_size]]))
        if progress:
            progress(min(start + batch_size, len(order)), len(order))
    encoded = unit_rows(np.concatenate(rows))
    if not np.isfinite(encoded).all():
        raise PromptError("the text encoder gave embeddings that are not finite: check the model's weights")
    back = np.empty_like(encoded)
    back[order] = encoded
    return back


def alike_rows(rows: FloatArray) -> list[list[int]]:
    """Groups of unit rows (C, D) that are equal or nearly so: no image is told apart by them. Each group has two."""
    groups: list[list[int]] = []
    taken = np.zeros(len(rows), bool)
    for start in range(0, len(rows), _ALIKE_BLOCK):
        near = rows[start : start + _ALIKE_BLOCK] @ rows.T >= ALIKE  # (B, C)
        for row, found in enumerate(near, start):
            if taken[row]:
                continue
            group = [row, *(int(other) for other in np.flatnonzero(found) if other > row and not taken[other])]
            if len(group) > 1:
                groups.append(group)
                taken[group] = True
    return groups


def name_alike(table: PromptTable) -> None:
    """Warn of classes whose rows are (nearly) equal, or whose labels look the same, by name.

    Raises:
        PromptError: there are several classes and all rows are equal: the text encoder sees no difference at all.
    """
    groups = alike_rows(table.embeddings)
    if groups and len(groups[0]) == len(table.classes):
        raise PromptError(
            f"all {len(table.classes)} classes of {table.name!r} get the same row ({_shown(table.labels)}): the text "
            "encoder cannot tell them apart; give other names, or check the model's tokenizer"
        )
    for group in groups:
        _log.warning(
            "table %s: the model cannot tell these classes apart, their rows are equal: %s",
            table.name,
            _shown([table.labels[row] for row in group]),
        )
    looks: dict[str, list[str]] = {}
    for label in table.labels:
        looks.setdefault(_looks(label), []).append(label)
    told = {table.labels[row] for group in groups for row in group}
    for labels in looks.values():
        if len(labels) > 1 and not told.issuperset(labels):
            _log.warning("table %s: these classes look the same: %s", table.name, _shown(labels))


def _looks(label: str) -> str:
    """A label without what a reader does not see: case, composed or decomposed letters, characters without width."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", label).casefold())
    return "".join(each for each in folded if unicodedata.category(each) != "Cf" and each not in _VARIATIONS)


def _shown(labels: Sequence[str]) -> str:
    """A few labels so that they are seen to differ: those that look the same are written in ASCII."""
    same = len({_looks(label) for label in labels}) < len(labels)
    cut = [label if len(label) <= _LONGEST else f"{label[:_LONGEST]}…" for label in labels[:_SHOWN]]
    few = [ascii(label) if same else repr(label) for label in cut]
    return ", ".join(few) + (f" and {len(labels) - _SHOWN} more" if len(labels) > _SHOWN else "")


def unit_rows(rows: FloatArray) -> FloatArray:
    """Rows (N, D) scaled to unit length, float32; a zero row stays zero."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: FloatArray = (rows / np.maximum(lengths, 1e-12)).astype(np.float32)
    return unit


def check_table_name(name: str) -> None:
    """Refuse a table name that could not be a file name everywhere.

    Raises:
        PromptError: with what was expected.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise PromptError(f"expected a table name of letters, digits, '.', '_' and '-', got {name!r}")
