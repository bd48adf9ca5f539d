"""Frames go through a real encoder and table; what is written is whole, and agrees with what is computed by hand."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest

from edgeclip import Bundle, EncoderSpec, PromptTable, make_classes
from edgeclip.errors import EngineError, InputError
from edgeclip.prompts import unit_rows
from edgeclip.runtime.account import Account
from edgeclip.runtime.encoder import ImageEncoder
from edgeclip.runtime.engines.base import Engine, FloatArray, load_engine
from edgeclip.runtime.records import Scored
from edgeclip.runtime.scoring import Scorer
from edgeclip.runtime.sinks.make import SinkOptions, make_sinks
from edgeclip.runtime.sinks.overlay import draw_labels
from edgeclip.runtime.sources.open import Source, open_source
from edgeclip.runtime.stream import Stream, StreamOptions
from tests.conftest import SIZE, WIDTH, make_table


def encoder_spec(tiny_bundle: Path, **changes: object) -> EncoderSpec:
    import msgspec

    return msgspec.structs.replace(Bundle.open(tiny_bundle).manifest.encoder, **changes)


def test_softmax_and_sigmoid_scores_follow_the_definition(tiny_bundle: Path) -> None:
    rng = np.random.default_rng(0)
    table = make_table(model_id="m")
    embeddings = unit_rows(rng.standard_normal((4, WIDTH)).astype(np.float32))
    cosines = embeddings @ table.embeddings.T
    softmax = Scorer(table, encoder_spec(tiny_bundle, logit_scale=20.0)).scores(embeddings)
    expected = np.exp(20 * cosines) / np.exp(20 * cosines).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(softmax, expected, atol=1e-6)
    sigmoid = Scorer(table, encoder_spec(tiny_bundle, logit_scale=10.0, logit_bias=-3.0, score="sigmoid"))
    np.testing.assert_allclose(sigmoid.scores(embeddings), 1 / (1 + np.exp(3 - 10 * cosines)), atol=1e-6)


def test_scores_do_not_overflow(tiny_bundle: Path) -> None:
    table = make_table(model_id="m")
    for score in ("softmax", "sigmoid"):
        with np.errstate(all="raise", under="ignore"):
            values = Scorer(table, encoder_spec(tiny_bundle, logit_scale=1e4, score=score)).scores(table.embeddings)
        assert np.isfinite(values).all()


@pytest.mark.parametrize("k", [1, 2, 3, 100])
def test_top_is_the_sorted_head_of_the_scores(tiny_bundle: Path, k: int) -> None:
    table = make_table(model_id="m")
    scorer = Scorer(table, encoder_spec(tiny_bundle))
    embedding = table.embeddings[1]
    scores = scorer.scores(embedding[None])[0]
    order = np.argsort(-scores)[:k]
    top = scorer.top(scores, k)
    assert [item.label for item in top] == [table.labels[i] for i in order]
    assert top[0].label == "rocket"


def test_the_encoder_normalises_and_a_batch_is_its_frames(tiny_bundle: Path, photographs_dir: Path) -> None:
    with open_source(str(photographs_dir)) as source:
        images = [frame.rgb() for frame in source]
    with ImageEncoder(Bundle.open(tiny_bundle)) as encoder:
        together = encoder.encode(images)
        alone = np.concatenate([encoder.encode([image]) for image in images])
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(together, alone, atol=1e-5)


def run(tiny_bundle: Path, source: Source, *, top_k: int = 5, **outputs: Path) -> Account:
    """Label a source into files."""
    bundle = Bundle.open(tiny_bundle)
    sinks = make_sinks(SinkOptions(**outputs))
    return Stream(bundle, [source], [bundle.table()], StreamOptions(top_k=top_k), sinks).run()


def test_every_frame_of_a_video_gets_a_line(tiny_bundle: Path, video: Path, tmp_path: Path) -> None:
    jsonl = tmp_path / "out" / "labels.jsonl"
    account = run(tiny_bundle, open_source(str(video)), jsonl=jsonl, top_k=2)
    lines = [json.loads(line) for line in jsonl.read_text().splitlines()]
    assert account.encoded == len(lines) == 40
    assert [line["frame"] for line in lines] == list(range(40))
    for line in lines:
        assert list(line)[:7] == ["frame", "time_s", "label", "score", "top", "encode_ms", "latency_ms"]
        assert line["label"] == line["top"][0][0]
        assert line["score"] == line["top"][0][1]
        assert len(line["top"]) == 2
        assert line["encode_ms"] > 0
    assert sum(account.labels.values()) == 40


def test_a_folder_names_its_files(tiny_bundle: Path, photographs_dir: Path, tmp_path: Path) -> None:
    jsonl = tmp_path / "labels.jsonl"
    run(tiny_bundle, open_source(str(photographs_dir)), jsonl=jsonl)
    files = [json.loads(line)["file"] for line in jsonl.read_text().splitlines()]
    assert files == sorted(path.name for path in photographs_dir.iterdir())


def test_the_overlay_is_a_video_of_the_same_frames(tiny_bundle: Path, video: Path, tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.mp4"
    run(tiny_bundle, open_source(str(video)), overlay=overlay)
    with av.open(str(overlay)) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, stream.average_rate) == (320, 240, 20)
        drawn = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with open_source(str(video)) as source:
        original = [frame.rgb() for frame in source]
    assert len(drawn) == 40
    corner, rest = np.s_[:60, :120], np.s_[160:, 200:]
    changed = np.abs(drawn[5][corner].astype(int) - original[5][corner]).mean()
    kept = np.abs(drawn[5][rest].astype(int) - original[5][rest]).mean()
    assert changed > 20 > 8 > kept


def test_an_overlay_of_images_of_different_and_odd_sizes(
    tiny_bundle: Path, photographs_dir: Path, tmp_path: Path
) -> None:
    overlay = tmp_path / "overlay.mkv"
    account = run(tiny_bundle, open_source(str(photographs_dir)), overlay=overlay)
    with av.open(str(overlay)) as container:
        assert sum(1 for _ in container.decode(video=0)) == account.encoded == 5


def test_nothing_is_left_when_a_run_fails(tiny_bundle: Path, photographs_dir: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    (folder / "broken.jpg").write_bytes(b"hello")
    with pytest.raises(InputError):
        run(tiny_bundle, open_source(str(folder)), jsonl=out / "labels.jsonl", overlay=out / "overlay.mp4")
    assert list(out.rglob("*")) == []


def test_an_earlier_result_survives_a_failed_run(tiny_bundle: Path, tmp_path: Path) -> None:
    jsonl = tmp_path / "labels.jsonl"
    jsonl.write_text("precious\n")
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "broken.jpg").write_bytes(b"hello")
    with pytest.raises(InputError):
        run(tiny_bundle, open_source(str(folder)), jsonl=jsonl)
    assert jsonl.read_text() == "precious\n"


def test_the_engine_refuses_wrong_input(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    with ImageEncoder(bundle) as encoder:
        for bad in (np.zeros((1, 3, SIZE, SIZE + 1), np.float32), np.zeros((1, 3, SIZE, SIZE), np.float64)):
            with pytest.raises(EngineError, match="expected float32"):
                encoder.engine.infer(bad)


def test_the_engine_refuses_results_that_are_not_finite(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    with ImageEncoder(bundle) as encoder, pytest.raises(EngineError, match="not finite"):
        encoder.engine.infer(np.full((1, 3, SIZE, SIZE), np.nan, np.float32))


def test_graphs_that_do_not_load_or_fit_are_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a graph")
    with pytest.raises(EngineError, match="cannot load"):
        load_engine("onnxruntime", path, bundle.manifest.encoder)
    with pytest.raises(EngineError, match="expected an engine out of"):
        load_engine("abacus", path, bundle.manifest.encoder)
    narrow = encoder_spec(tiny_bundle, embedding_dim=WIDTH - 1)
    engine = load_engine("onnxruntime", bundle.variant_path("fp32"), narrow)
    with engine, pytest.raises(EngineError, match="returned"):
        engine.infer(np.zeros((1, 3, SIZE, SIZE), np.float32))


def test_an_engine_is_one_class(tiny_bundle: Path) -> None:
    """The promise of runtime/engines/base.py: a subclass that fills _infer has every check."""

    class Constant(Engine):
        name = "constant"

        def _infer(self, images: FloatArray) -> FloatArray:
            return np.ones((len(images), self.encoder.embedding_dim), np.float32)

    with Constant(Path("none"), encoder_spec(tiny_bundle)) as engine:
        assert engine.infer(np.zeros((2, 3, SIZE, SIZE), np.float32)).shape == (2, WIDTH)


@pytest.mark.parametrize("shape", [(1, 1), (20, 30), (480, 640), (2160, 3840)])
def test_labels_are_drawn_on_any_size(shape: tuple[int, int]) -> None:
    image = np.full((*shape, 3), 200, np.uint8)
    before = image.copy()
    drawn = draw_labels(image, [Scored("Straße", 0.9), Scored("x" * 200, 0.1)], caption="12.3 ms")
    assert drawn.shape == image.shape
    np.testing.assert_array_equal(image, before)


def test_one_class_gets_every_frame(tiny_bundle: Path, video: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    rows = make_table(model_id=bundle.manifest.model.id).embeddings[:1]
    table = PromptTable("one", make_classes(["thing"]), rows, ("{}",), bundle.manifest.model.id)
    account = Stream(bundle, [open_source(str(video))], [table], StreamOptions(limit=3)).run()
    assert account.labels == {"thing": 3}
