"""Tables carry what is said of their rows; those in use are replaced whole, while frames are scored, or not at all."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edgeclip import Bundle, PromptTable, make_classes
from edgeclip.errors import TableError
from edgeclip.prompts import TABLE_FORMAT, PromptClass, content_hash, unit_rows
from edgeclip.runtime import scoring
from edgeclip.runtime.scoring import Scorer
from edgeclip.runtime.tables import TableSet, TableWatch
from tests.conftest import WIDTH, make_table

WAIT_S = 20.0


def table_of(bundle: Bundle, name: str, labels: list[str], seed: int = 1) -> PromptTable:
    rows = np.random.default_rng(seed).standard_normal((len(labels), WIDTH)).astype(np.float32)
    return PromptTable(name, make_classes(labels), unit_rows(rows), ("{}",), bundle.manifest.model.id)


class Changes:
    """Collects what a watch tells of, and what it warns of."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog
        self.names: list[str] = []
        self._changed = threading.Condition()

    def __call__(self, name: str) -> None:
        with self._changed:
            self.names.append(name)
            self._changed.notify_all()

    def wait(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.names) >= count, WAIT_S), "the table was not replaced"

    def wait_for_warning(self, text: str) -> None:
        def warned() -> bool:
            return any(text in record.getMessage() for record in self._caplog.records)

        with self._changed:
            for _ in range(100):
                if self._changed.wait_for(warned, 0.2):
                    return
        raise AssertionError(f"no warning of {text!r}")

    def wait_for_warnings(self, count: int) -> None:
        for _ in range(400):
            if len([record for record in self._caplog.records if record.levelno == logging.WARNING]) >= count:
                return
            time.sleep(0.05)
        raise AssertionError(f"expected {count} warnings, got {[each.getMessage() for each in self._caplog.records]}")


@pytest.fixture
def changes(caplog: pytest.LogCaptureFixture) -> Changes:
    caplog.set_level(logging.INFO, "edgeclip")
    return Changes(caplog)


def said_of(table: PromptTable) -> tuple[tuple[str, ...], dict[str, float]]:
    return table.background, dict(table.thresholds)


def test_background_rows_and_thresholds_are_kept(tmp_path: Path) -> None:
    plain = make_table(model_id="m")
    table = PromptTable(
        "t", plain.classes, plain.embeddings, plain.templates, "m", background=("cup",), thresholds={"cat": 0.25}
    )
    table.save(tmp_path / "t.safetensors")
    assert said_of(PromptTable.load(tmp_path / "t.safetensors")) == (("cup",), {"cat": 0.25})
    plain.save(tmp_path / "plain.safetensors")
    assert said_of(PromptTable.load(tmp_path / "plain.safetensors")) == ((), {})


def test_tables_without_either_keep_their_hash() -> None:
    classes = make_classes(["cat", "cup | mug"])
    was = "d0f9d0c3"  # of edgeclip 0.1.0 before tables had them
    assert content_hash(classes, ["{}"], "m")[:8] == was
    assert content_hash(classes, ["{}"], "m", background=["cat"]) != content_hash(classes, ["{}"], "m")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"background": ("dog",)}, "dog"),
        ({"thresholds": {"dog": 0.5}}, "dog"),
        ({"thresholds": {"cat": 0.0}}, "above 0"),
        ({"thresholds": {"cat": float("nan")}}, "above 0"),
        ({"background": ("cat", "rocket", "cup")}, "background rows only"),
    ],
)
def test_what_does_not_fit_the_classes_is_refused(said: dict[str, object], message: str) -> None:
    plain = make_table(model_id="m")
    with pytest.raises(TableError, match=message):
        PromptTable("t", plain.classes, plain.embeddings, plain.templates, "m", **said)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [3, 5000, 300_000])
def test_large_tables_score_as_the_book_says(tiny_bundle: Path, count: int) -> None:
    bundle = Bundle.open(tiny_bundle)
    table = table_of(bundle, "t", [f"class {i}" for i in range(count)])
    scorer = Scorer(table, bundle.manifest.encoder)
    embeddings = unit_rows(np.random.default_rng(2).standard_normal((4, WIDTH)).astype(np.float32))
    logits = bundle.manifest.encoder.logit_scale * (embeddings.astype(float) @ table.embeddings.T.astype(float))
    expected = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected /= expected.sum(axis=1, keepdims=True)
    together = scorer.scores(embeddings)
    # A large table's rows are read in 8 bits; those that hold a softmax's weight are computed from float32.
    near = {"rtol": 2e-4, "atol": 1e-9} if table.embeddings.size < scoring._LARGE else {"rtol": 2e-3, "atol": 5e-4}
    np.testing.assert_allclose(together, expected, **near)
    np.testing.assert_allclose(scorer.scores(embeddings[:1]), together[:1], **near)
    assert (together.argmax(axis=1) == expected.argmax(axis=1)).all()
    for row in together:
        best = np.argsort(-row, kind="stable")[:5]
        assert [scored.label for scored in scorer.top(row, 5)] == [scorer.labels[i] for i in best[:count]]


def test_the_best_are_found_wherever_they_lie(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    scorer = Scorer(table_of(bundle, "t", [f"{i}" for i in range(10_007)]), bundle.manifest.encoder)
    rng = np.random.default_rng(0)
    for _ in range(50):
        scores = rng.random(10_007, dtype=np.float32)
        scores[rng.integers(0, 10_007, 3)] += 1.0
        scores[10_000:] += rng.random() > 0.5
        expected = [str(i) for i in np.argsort(-scores, kind="stable")[:7]]
        assert [scored.label for scored in scorer.top(scores, 7)] == expected
    assert scorer.top(scores, 0) == []


def test_every_batch_sees_one_whole_table_while_tables_are_replaced(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    versions = {size: table_of(bundle, "t", [f"of {size}: {i}" for i in range(size)], size) for size in (2, 50, 3000)}
    tables = TableSet(bundle, [versions[2]])
    embeddings = unit_rows(np.random.default_rng(3).standard_normal((2, WIDTH)).astype(np.float32))
    expected = {size: Scorer(table, bundle.manifest.encoder).scores(embeddings) for size, table in versions.items()}
    done, seen, wrong = threading.Event(), set(), []

    def score() -> None:
        while not done.is_set():
            (scorer,) = tables.current()
            size = len(scorer.labels)
            scores = scorer.scores(embeddings)
            best = scorer.top(scores[0], 1)[0].label
            seen.add(size)
            if not np.array_equal(scores, expected[size]) or not best.startswith(f"of {size}:"):
                wrong.append((size, best))

    thread = threading.Thread(target=score)
    thread.start()
    for turn in range(300):
        tables.replace("t", versions[(2, 50, 3000)[turn % 3]])
    done.set()
    thread.join(WAIT_S)
    assert not thread.is_alive()
    assert wrong == []
    assert seen


def test_a_replaced_table_takes_the_name_that_it_stands_in_for(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    tables = TableSet(bundle, [bundle.table()])
    tables.replace("things", table_of(bundle, "another", ["x", "y"]))
    assert tables.current()[0].table.name == "things"
    with pytest.raises(TableError, match="out of things"):
        tables.replace("absent", bundle.table())


def test_a_changed_file_replaces_its_table(tiny_bundle: Path, tmp_path: Path, changes: Changes) -> None:
    bundle = Bundle.open(tiny_bundle)
    path = tmp_path / "own.safetensors"
    table_of(bundle, "own", ["x", "y"]).save(path)
    tables = TableSet(bundle, [bundle.table(), PromptTable.load(path)])
    with TableWatch(tables, {"own": path}, interval_s=0.05, on_change=changes):
        before = tables.current()
        table_of(bundle, "own", ["z", "y", "x"]).save(path)
        changes.wait(1)
        assert tables.current()[1].labels == ("z", "y", "x")
        assert tables.current()[0] is before[0]
        assert before[1].labels == ("x", "y"), "who holds the old tables keeps them"


def test_a_table_replaced_in_its_bundle_is_taken(tiny_bundle: Path, changes: Changes) -> None:
    bundle = Bundle.open(tiny_bundle)
    bundle = bundle.add_table(table_of(bundle, "second", ["s"]))
    tables = TableSet(bundle, [bundle.table("things"), bundle.table("second")])
    with TableWatch(tables, dict.fromkeys(tables.names, tiny_bundle), interval_s=0.05, on_change=changes):
        first = tables.current()[0]
        bundle.add_table(table_of(bundle, "second", ["new", "newer"]), overwrite=True)
        changes.wait(1)
        assert changes.names == ["second"]
        assert tables.current()[1].labels == ("new", "newer")
        assert tables.current()[0] is first


@pytest.mark.parametrize("bad", ["garbage", "half", "other model", "other width"])
def test_a_bad_table_is_refused_with_one_warning_and_the_old_one_stays(
    bad: str, tiny_bundle: Path, tmp_path: Path, changes: Changes, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = Bundle.open(tiny_bundle)
    path = tmp_path / "own.safetensors"
    table_of(bundle, "own", ["x", "y"]).save(path)
    tables = TableSet(bundle, [PromptTable.load(path)])
    with TableWatch(tables, {"own": path}, interval_s=0.05, on_change=changes):
        before = tables.current()
        if bad == "garbage":
            path.write_bytes(b"no table at all")
        elif bad == "half":
            path.write_bytes(path.read_bytes()[:-40])
        else:
            width, model = (WIDTH, "another") if bad == "other model" else (WIDTH * 2, bundle.manifest.model.id)
            make_table("own", model_id=model, width=width).save(path)
        changes.wait_for_warning("the old one stays")
        assert tables.current() is before
        table_of(bundle, "own", ["good"]).save(path)
        changes.wait(1)
    assert tables.current()[0].labels == ("good",)
    assert sum(record.levelno == logging.WARNING for record in caplog.records) == 1


def test_reload_reads_at_once_what_the_interval_would_leave(
    tiny_bundle: Path, tmp_path: Path, changes: Changes
) -> None:
    bundle = Bundle.open(tiny_bundle)
    path = tmp_path / "own.safetensors"
    table_of(bundle, "own", ["x"]).save(path)
    tables = TableSet(bundle, [PromptTable.load(path)])
    with TableWatch(tables, {"own": path}, interval_s=3600, on_change=changes) as watch:
        table_of(bundle, "own", ["z"]).save(path)
        watch.reload()
        changes.wait(1)
        assert tables.current()[0].labels == ("z",)


def test_a_file_that_is_being_written_is_waited_for(tiny_bundle: Path, tmp_path: Path, changes: Changes) -> None:
    bundle = Bundle.open(tiny_bundle)
    path, other = tmp_path / "own.safetensors", tmp_path / "other.safetensors"
    table_of(bundle, "own", ["x"]).save(path)
    table_of(bundle, "own", [f"class {i}" for i in range(500)]).save(other)
    content = other.read_bytes()
    tables = TableSet(bundle, [PromptTable.load(path)])
    watch = TableWatch(tables, {"own": path}, on_change=changes)
    look: Callable[[], None] = lambda: watch._look("own", path, forced=False)  # noqa: E731
    with path.open("wb") as out:
        for start in range(0, len(content), 8000):
            out.write(content[start : start + 8000])
            out.flush()
            os.fsync(out.fileno())
            look()
            assert tables.current()[0].labels == ("x",)
    look()
    look()
    assert len(tables.current()[0].labels) == 500


@pytest.mark.parametrize("labels", [[], ["cat", "dog", "cat"]])
def test_a_table_that_could_not_be_scored_is_refused_before_the_loop_sees_it(
    tiny_bundle: Path, labels: list[str]
) -> None:
    bundle = Bundle.open(tiny_bundle)
    tables = TableSet(bundle, [bundle.table()])
    before = tables.current()
    rows = unit_rows(np.ones((len(labels), WIDTH), np.float32))
    classes = tuple(PromptClass(label, (label,)) for label in labels)
    with pytest.raises(TableError, match=f"got {len(set(labels))} labels for {len(labels)} rows"):
        tables.replace("things", PromptTable("things", classes, rows, ("{}",), bundle.manifest.model.id))
    assert tables.current() is before


def test_an_origin_of_no_table_is_refused(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    with pytest.raises(TableError, match="expected origins of the tables things, got yard"):
        TableWatch(TableSet(bundle, [bundle.table()]), {"yard": tiny_bundle})


def test_a_file_that_changed_before_the_watch_began_is_taken(
    tiny_bundle: Path, tmp_path: Path, changes: Changes
) -> None:
    bundle = Bundle.open(tiny_bundle)
    path = tmp_path / "own.safetensors"
    table_of(bundle, "own", ["x"]).save(path)
    tables = TableSet(bundle, [PromptTable.load(path), bundle.table()])
    table_of(bundle, "own", ["y"]).save(path)
    where = {**dict.fromkeys(tables.names, tiny_bundle), "own": path}
    with TableWatch(tables, where, interval_s=0.05, on_change=changes):
        changes.wait(1)
    assert tables.current()[0].labels == ("y",)
    assert changes.names == ["own"]


def test_other_rows_of_the_same_prompts_are_taken(tiny_bundle: Path, tmp_path: Path, changes: Changes) -> None:
    bundle = Bundle.open(tiny_bundle)
    path = tmp_path / "own.safetensors"
    table_of(bundle, "own", ["x", "y"]).save(path)
    tables = TableSet(bundle, [PromptTable.load(path)])
    other = table_of(bundle, "own", ["x", "y"], seed=7)
    assert other.content_hash == tables.current()[0].table.content_hash
    with TableWatch(tables, {"own": path}, interval_s=0.05, on_change=changes):
        other.save(path)
        changes.wait(1)
    np.testing.assert_array_equal(tables.current()[0].table.embeddings, other.embeddings)


DEEP = "[" * 100_000


def spoiled(table: PromptTable, path: Path, how: str) -> None:
    """Write a table that cannot be used."""
    table.save(path)
    arrays, texts = load_file(path), {"classes": '[["y"]]', "format": TABLE_FORMAT, "name": "own", "model_id": "m"}
    changed: dict[str, dict[str, Any]] = {
        "no dimension": {"embeddings": np.array(1, np.float32)},
        "of bytes": {"embeddings": np.zeros((1, WIDTH), np.int8)},
        "nested deeply": {"classes": DEEP},
        "a label of nothing": {"classes": "[[null]]"},
        "decisions of nothing": {"decisions": "[null]"},
        "decisions nested deeply": {"decisions": '[{"x":' + DEEP},
        "half a cache": {"cache_keys": np.ones((1, WIDTH), np.float32)},
        "no table": {"format": "other"},
    }
    for name, value in changed[how].items():
        (texts if isinstance(value, str) else arrays)[name] = value
    save_file(arrays, path, metadata=texts)


SPOILED = (
    "no dimension",
    "of bytes",
    "nested deeply",
    "a label of nothing",
    "decisions of nothing",
    "decisions nested deeply",
    "half a cache",
    "no table",
)


def test_the_watch_goes_on_whatever_it_meets(tiny_bundle: Path, tmp_path: Path, changes: Changes) -> None:
    bundle = Bundle.open(tiny_bundle)
    path = tmp_path / "own.safetensors"
    table_of(bundle, "own", ["x"]).save(path)
    tables = TableSet(bundle, [PromptTable.load(path)])

    def on_change(name: str) -> None:
        changes(name)
        raise ZeroDivisionError("of whoever is told")

    watch = TableWatch(tables, {"own": path}, interval_s=60.0, on_change=on_change)
    before = tables.current()
    with watch:
        for seen, how in enumerate(SPOILED, start=1):
            spoiled(table_of(bundle, "own", ["y"]), path, how)
            watch.reload()
            changes.wait_for_warnings(seen)
            assert tables.current() is before
        for seen, label in enumerate(["y", "z"], start=1):
            table_of(bundle, "own", [label]).save(path)
            watch.reload()
            changes.wait(seen)
            assert tables.current()[0].labels == (label,)
        changes.wait_for_warning("ZeroDivisionError")


def test_a_watch_may_begin_over_a_table_that_cannot_be_read(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    path = tmp_path / "own.safetensors"
    own = table_of(bundle, "own", ["x"])
    for content in (b"", b"nonsense", b"\xff" * 100):
        path.write_bytes(content)
        TableWatch(TableSet(bundle, [own]), {"own": path}).close()
    TableWatch(TableSet(bundle, [own]), {"own": tmp_path}).close()
