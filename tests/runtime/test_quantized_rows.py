"""A large table is scored by its rows in 8 bits: the best rows and their scores are those of float32."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from edgeclip import EncoderSpec, PreprocessSpec, PromptTable, make_classes
from edgeclip.prompts import FloatArray, unit_rows
from edgeclip.runtime import scoring
from edgeclip.runtime.scoring import EXACT, QuantizedRows, Scorer, largest

PREPROCESS = PreprocessSpec(height=8, width=8, resize_to=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def rows_of(count: int, width: int, seed: int = 0) -> FloatArray:
    return unit_rows(np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32))


@pytest.mark.parametrize(("count", "width"), [(5000, 512), (4097, 224), (3000, 130), (1, 128), (7, 3)])
@pytest.mark.parametrize("batch", [1, 8])
def test_the_largest_products_are_exact_and_the_others_near(count: int, width: int, batch: int) -> None:
    rows, embeddings = rows_of(count, width), rows_of(batch, width, seed=1)
    got, exact = QuantizedRows(rows)(embeddings), embeddings @ rows.T
    for own, expected in zip(got, exact, strict=True):
        best = np.argsort(-expected)[: min(10, count)]
        np.testing.assert_allclose(own[best], expected[best], atol=1e-6)
        assert list(np.argsort(-own)[: len(best)]) == list(best)
    np.testing.assert_allclose(got, exact, atol=0.005)


def test_rows_of_zeros_and_single_spikes_are_no_trouble() -> None:
    rows = np.concatenate([np.zeros((200, 256), np.float32), np.eye(256, dtype=np.float32)])
    got = QuantizedRows(rows)(rows[200:210])
    assert got.argmax(axis=1).tolist() == list(range(200, 210))


@pytest.mark.parametrize("count", [0, 1, 5, 31, 32, 640, 100_003])
@pytest.mark.parametrize("k", [1, 5, 128])
def test_the_largest_are_among_what_is_looked_at(count: int, k: int) -> None:
    scores = np.random.default_rng(count).standard_normal(count).astype(np.float32)
    found = largest(scores, k)
    assert set(np.argsort(-scores)[:k]) <= set(found.tolist())
    assert list(found) == sorted(found)


def test_few_are_looked_at_where_scores_differ_and_all_where_they_do_not() -> None:
    scores = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    assert 128 <= len(largest(scores, 128)) < 200
    assert len(largest(np.zeros(1000, np.float32), 5)) == 1000


def test_the_graph_is_what_onnx_reads() -> None:
    model = onnx.load_from_string(scoring._model((300, 130), (300, 2, 128)))
    (node,) = model.graph.node
    assert (node.op_type, node.domain) == ("MatMulNBits", "com.microsoft")
    assert {item.name: item.i for item in node.attribute} == {
        "K": 130, "N": 300, "bits": 8, "block_size": 128, "accuracy_level": 4,
    }  # fmt: skip


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_a_large_table_says_what_float32_says(monkeypatch: pytest.MonkeyPatch, score: str) -> None:
    table = PromptTable("large", make_classes([f"c{i}" for i in range(9000)]), rows_of(9000, 512), ("{}",), "0" * 16)
    encoder = EncoderSpec(preprocess=PREPROCESS, embedding_dim=512, logit_scale=100.0, logit_bias=-10.0, score=score)
    large = Scorer(table, encoder)
    monkeypatch.setattr(scoring, "_LARGE", 1 << 40)
    exact = Scorer(table, encoder)
    # As a camera's: near some rows, so that a few classes hold nearly all of the score.
    embeddings = unit_rows(table.embeddings[[5, 77, 4000]] + 0.8 * rows_of(3, 512, seed=2))
    got, expected = large.scores(embeddings), exact.scores(embeddings)
    assert not np.array_equal(got, expected)  # it was another way
    # Independent classes feel the error of their own product, up to 0.1 in the logit at this scale.
    np.testing.assert_allclose(got, expected, atol=2e-3 if score == "softmax" else 0.03)
    for own, other in zip(got, expected, strict=True):
        said, wanted = large.top(own, 5), exact.top(other, 5)
        assert [item.label for item in said] == [item.label for item in wanted]
        np.testing.assert_allclose([s.score for s in said], [w.score for w in wanted], rtol=0.02, atol=1e-7)


def test_where_the_product_in_8_bits_is_wrong_float32_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor whose sums overflow, say: here the scales are wrong."""
    quantize = scoring._quantize
    monkeypatch.setattr(scoring, "_quantize", lambda rows: (quantize(rows)[0], quantize(rows)[1] * 2))
    rows = rows_of(9000, 512)
    with pytest.raises(RuntimeError, match=r"within 0\.02, got"):
        QuantizedRows(rows)
    table = PromptTable("large", make_classes([f"c{i}" for i in range(9000)]), rows, ("{}",), "0" * 16)
    scorer = Scorer(table, EncoderSpec(preprocess=PREPROCESS, embedding_dim=512, logit_scale=1.0, logit_bias=0.0))
    scores = scorer.scores(rows[:2])
    expected = np.exp(rows[:2] @ rows.T)
    np.testing.assert_allclose(scores, expected / expected.sum(axis=1, keepdims=True), rtol=1e-4)


def test_exact_rows_are_more_than_any_list_of_labels() -> None:
    assert EXACT >= 100
