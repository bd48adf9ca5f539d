"""Files of tensors from outside: what is in them is held against what is expected before memory is taken for it."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edgeclip.decisions import FEATURES, ClassDecision, Confidence, DecisionFacts, Decisions
from edgeclip.errors import EdgeclipError, TableError
from edgeclip.key_cache import KeyCache
from edgeclip.prompts import PromptTable, make_classes, unit_rows
from edgeclip.runtime.scoring import Scorer
from edgeclip.spec import EncoderSpec, PreprocessSpec
from edgeclip.tensors import open_tensors
from tests.conftest import WIDTH

LABELS = ["cat", "rocket", "cup", "dog"]
ENCODER = EncoderSpec(
    preprocess=PreprocessSpec(height=8, width=8, resize_to=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    embedding_dim=WIDTH,
    logit_scale=100.0,
)
Arrays = dict[str, np.ndarray[Any, Any]]
Texts = dict[str, str]


def rows(count: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return unit_rows(np.random.default_rng(seed).standard_normal((count, WIDTH)).astype(np.float32))


def decisions(of: str, **changes: Any) -> Decisions:
    facts = DecisionFacts(
        variant="fp32", graph="0" * 64, rows=of, classes={"cat": ClassDecision(0.5)}, **{"target": 0.9} | changes
    )
    numbers = np.random.default_rng(1)
    confidence = Confidence(
        weights=numbers.standard_normal(FEATURES),
        class_bias=numbers.standard_normal(len(LABELS)),
        known=numbers.standard_normal(FEATURES + 1),
        rows=rows(3, seed=2),
        offsets=numbers.standard_normal(3),
        verified=np.array([0, 2], np.int64),
    )
    return Decisions(facts, confidence)


def whole_table() -> PromptTable:
    """One with everything that a table can hold."""
    parts: dict[str, Any] = {
        "name": "things",
        "classes": make_classes(LABELS),
        "embeddings": rows(len(LABELS)),
        "templates": ("{}", "a photo of a {}."),
        "model_id": "m",
        "background": ("dog",),
        "thresholds": {"cup": 0.5},
        "cache": KeyCache(rows(5, seed=3), np.array([0, 1, 1, 2, 3], np.int64), 5.0, 4.0),
    }
    return PromptTable(**parts, decisions=(decisions(PromptTable(**parts).rows_hash),))


def contents(tmp_path: Path) -> tuple[Arrays, Texts]:
    path = tmp_path / "whole.safetensors"
    whole_table().save(path)
    with open_tensors(path, error=TableError) as stored:
        return load_file(path), dict(stored.metadata)


def test_a_whole_table_comes_back(tmp_path: Path) -> None:
    table = whole_table()
    table.save(tmp_path / "t.safetensors")
    back = PromptTable.load(tmp_path / "t.safetensors")
    assert back.content_hash == table.content_hash
    given, expected = (Scorer(each, ENCODER, each.decisions[0]).scores(rows(6)) for each in (back, table))
    np.testing.assert_array_equal(given, expected)


def facts(change: Callable[[dict[str, Any]], Any]) -> Callable[[Texts], None]:
    """Change what a table's metadata says of its decisions."""

    def changed(texts: Texts) -> None:
        said = json.loads(texts["decisions"])
        change(said[0])
        texts["decisions"] = json.dumps(said)

    return changed


def filled(name: str, value: float) -> Callable[[Arrays, Texts], None]:
    return lambda arrays, _: arrays.update({name: np.full_like(arrays[name], value)})


def retyped(name: str, kind: type) -> Callable[[Arrays, Texts], None]:
    return lambda arrays, _: arrays.update({name: arrays[name].astype(kind)})


def reshaped(name: str, *shape: int) -> Callable[[Arrays, Texts], None]:
    return lambda arrays, _: arrays.update({name: np.resize(arrays[name], shape)})


def dropped(name: str) -> Callable[[Arrays, Texts], None]:
    return lambda arrays, texts: [found.pop(name, None) for found in (arrays, texts)].clear()


def said(name: str, text: str) -> Callable[[Arrays, Texts], None]:
    return lambda _, texts: texts.update({name: text})


def fact(**changes: Any) -> Callable[[Arrays, Texts], None]:
    return lambda _, texts: facts(lambda said: said.update(changes))(texts)


DEEP = "[" * 200_000 + "]" * 200_000
SPOILED: dict[str, Callable[[Arrays, Texts], None]] = {
    "alpha that overflows": said("cache_alpha", "1e308"),
    "alpha that is no number": said("cache_alpha", "nan"),
    "alpha that is a word": said("cache_alpha", '"five"'),
    "alpha below zero": said("cache_alpha", "-1.0"),
    "beta that overflows": said("cache_beta", "1e300"),
    "beta of nothing": said("cache_beta", "null"),
    "cold": fact(temperature=1e-300),
    "hot": fact(temperature=1e300),
    "no temperature": fact(temperature=None),
    "no target": fact(target=None),
    "target that is a word": fact(target="high"),
    "no label rate": fact(calibrated=False),
    "threshold of nothing": fact(classes={"cat": {"threshold": None}}),
    "threshold above 1": fact(classes={"cat": {"threshold": 7}}),
    "decisions on a class that is not there": fact(classes={"lorry": {"threshold": 0.5}}),
    "weights that overflow together": lambda arrays, _: arrays.update(
        {"decisions.0.weights": np.array([1e300, -1e300] * 4 + [1e300])}
    ),
    "rows that overflow": filled("decisions.0.rows", 3e38),
    "offsets that are no number": filled("decisions.0.offsets", np.nan),
    "verified as floats": retyped("decisions.0.verified", np.float64),
    "verified as bytes": retyped("decisions.0.verified", np.uint8),
    "verified twice": filled("decisions.0.verified", 1),
    "verified outside": filled("decisions.0.verified", 1 << 40),
    "none verified": lambda arrays, _: arrays.update(
        {
            "decisions.0.verified": np.zeros(0, np.int64),
            "decisions.0.rows": rows(1),
            "decisions.0.offsets": np.zeros(1),
        }
    ),
    "a part of decisions": dropped("decisions.0.known"),
    "bias of another length": reshaped("decisions.0.class_bias", 3),
    "weights in two dimensions": reshaped("decisions.0.weights", 1, FEATURES),
    "no dimension": reshaped("embeddings"),
    "three dimensions": reshaped("embeddings", len(LABELS), 2, 2),
    "no width": reshaped("embeddings", len(LABELS), 0),
    "rows as doubles": retyped("embeddings", np.float64),
    "rows as bytes": retyped("embeddings", np.int8),
    "rows without a number": filled("embeddings", np.nan),
    "rows of no length": filled("embeddings", 0),
    "rows without an end": filled("embeddings", np.inf),
    "no rows": dropped("embeddings"),
    "keys of another width": reshaped("cache_keys", 5, WIDTH - 1),
    "keys without labels": dropped("cache_labels"),
    "labels as floats": retyped("cache_labels", np.float32),
    "labels outside": filled("cache_labels", 99),
    "labels of no dimension": reshaped("cache_labels"),
    "a label of nothing": said("classes", '[["cat","cat"],[null],["cup"],["dog"]]'),
    "a class without a label": said("classes", '[["cat","cat"],[],["cup"],["dog"]]'),
    "classes that are a number": said("classes", "7"),
    "classes that are none": said("classes", "[]"),
    "classes that are no JSON": said("classes", "cat, rocket"),
    "a label that is half a letter": said("classes", '[["\\ud800"],["rocket"],["cup"],["dog"]]'),
    "classes nested deeply": said("classes", DEEP),
    "decisions nested deeply": said("decisions", '[{"x":' + DEEP + "}]"),
    "templates nested deeply": said("templates", DEEP),
    "background of numbers": said("background", "[1]"),
    "thresholds of nothing": said("thresholds", '{"cat": null}'),
    "thresholds beyond numbers": said("thresholds", '{"cat": 1e999}'),
    "no format": dropped("format"),
    "no name": dropped("name"),
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_a_table_that_cannot_be_scored_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Arrays, Texts], None]
) -> None:
    arrays, texts = contents(tmp_path)
    spoil(arrays, texts)
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, tmp_path / "t", metadata=texts)
    # Whoever spoils a table on purpose also writes the hash of what is in it.
    monkeypatch.setattr(PromptTable, "content_hash", texts["content_hash"])
    with pytest.raises(TableError):
        PromptTable.load(tmp_path / "t")


def peak_mib(*, afresh: bool = False) -> int:
    """The most memory that this process has had at once, since it was asked for afresh."""
    if afresh:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


def header_of(length: int, text: bytes) -> bytes:
    return struct.pack("<Q", length) + text


MANY = b"{" + b",".join(b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(500_000)) + b"}"
WIDE = b'{"a":{"dtype":"F32","shape":[' + b"0," * 15_000_000 + b'0],"data_offsets":[0,0]}}'
TEXTS = b'{"__metadata__":{' + b",".join(b'"%x":""' % i for i in range(2_000_000)) + b"}}"
WIDEST = b'{"embeddings":{"dtype":"F32","shape":[1,%d],"data_offsets":[0,%d]},"__metadata__":{%s}}' % (
    (1 << 29) - 1000,
    (1 << 31) - 4000,
    b'"format":"edgeclip.prompt-table.1","classes":"[[\\"a\\"]]"',
)
SPARSE = b'{"embeddings":{"dtype":"F32","shape":[1,%d],"data_offsets":[0,%d]}}' % (1 << 40, 1 << 42)


@pytest.mark.parametrize(
    ("raw", "size"),
    [
        (b"", 0),
        (b"\0" * 7, 0),
        (header_of(1 << 62, b"{}"), 0),
        (header_of(len(MANY), MANY), 0),
        (header_of(len(WIDE), WIDE), 0),
        (header_of(len(TEXTS), TEXTS), 0),
        (header_of(64 << 20, b""), 65 << 20),
        (header_of(len(SPARSE), SPARSE), (1 << 42) + 8 + len(SPARSE)),
        (header_of(len(WIDEST), WIDEST), (1 << 31) - 4000 + 8 + len(WIDEST)),
        (header_of(2, b"[]"), 0),
        (header_of(4, b'"\xff\\"'), 0),
    ],
    ids=["empty", "short", "endless", "many", "wide", "texts", "blank", "sparse", "widest", "list", "bytes"],
)
def test_a_header_is_bounded_before_it_is_read(tmp_path: Path, raw: bytes, size: int) -> None:
    path = tmp_path / "t.safetensors"
    path.write_bytes(raw)
    if size:
        with path.open("r+b") as file:
            file.truncate(size)  # takes no room on the disk
    before = peak_mib(afresh=True)
    with pytest.raises(EdgeclipError):
        PromptTable.load(path)
    assert peak_mib() - before < 200


def test_a_bound_can_be_raised_and_its_refusal_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole_table().save(tmp_path / "t.safetensors")
    monkeypatch.setenv("EDGECLIP_MAX_TABLE_BYTES", "100")
    with pytest.raises(TableError, match="EDGECLIP_MAX_TABLE_BYTES"):
        PromptTable.load(tmp_path / "t.safetensors")
    monkeypatch.setenv("EDGECLIP_MAX_TABLE_BYTES", "100000")
    assert PromptTable.load(tmp_path / "t.safetensors").labels == tuple(LABELS)


@pytest.mark.parametrize("text", ['he said "\\\\" {"[', "\\", '"' * 50, "\\" * 51])
def test_text_with_quotes_and_backslashes_is_no_structure(tmp_path: Path, text: str) -> None:
    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "t", metadata={"said": text * 30_000})
    with open_tensors(tmp_path / "t", error=TableError) as stored:
        assert stored.text("said") == text * 30_000


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_what_overflows_together_is_found_by_scoring_once(score: Any) -> None:
    encoder = msgspec.structs.replace(ENCODER, score=score)
    table = whole_table()
    Scorer(table, encoder, table.decisions[0])
    assert table.cache
    object.__setattr__(table.cache, "alpha", 1e308)  # past what the cache itself refuses
    with pytest.raises(TableError, match="score"):
        Scorer(table, encoder, table.decisions[0])
