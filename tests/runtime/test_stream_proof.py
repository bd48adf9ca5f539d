"""What a stream runs is held against the golden images as it runs there: a racing engine labels no frame wrongly."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

import edgeclip
from edgeclip import Bundle
from edgeclip.engine_list import ENGINES, EngineEntry
from edgeclip.errors import ParityError
from edgeclip.runtime.encoder import ImageEncoder
from edgeclip.runtime.engines.base import FloatArray
from edgeclip.runtime.engines.onnxruntime import OrtEngine
from edgeclip.runtime.proof.golden import GoldenImages
from edgeclip.runtime.proof.in_the_loop import prove_in_the_loop
from edgeclip.runtime.proof.site import golden_here
from edgeclip.runtime.sources.open import open_source
from edgeclip.runtime.stream import Stream, StreamOptions
from tests.conftest import without_golden

pytestmark = pytest.mark.usefixtures("all_cores")  # threads run beside each other here


class RacingEngine(OrtEngine):
    """Right one at a time, as a proof runs it; wrong where several are under way."""

    name = "racing"

    def _infer(self, images: FloatArray) -> FloatArray:
        embeddings = super()._infer(images)
        return embeddings if self.parallel == 1 else np.roll(embeddings, 1, axis=1)


class BatchingEngine(OrtEngine):
    """Right one frame at a time; wrong for several in a batch."""

    name = "batching"

    def _infer(self, images: FloatArray) -> FloatArray:
        embeddings = super()._infer(images)
        return embeddings if len(images) == 1 else np.roll(embeddings, 1, axis=1)


@pytest.fixture(autouse=True)
def _engines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for engine in (RacingEngine, BatchingEngine):
        entry = EngineEntry(
            engine.name, f"{__name__}:{engine.__name__}", module="onnxruntime", packages=("onnxruntime",)
        )
        monkeypatch.setitem(ENGINES, engine.name, entry)
    monkeypatch.setenv("EDGECLIP_CACHE", str(tmp_path / "cache"))


def labels(bundle: Path, video: Path, *, engine: str = "onnxruntime", **options: object) -> list[tuple[str, float]]:
    opened = Bundle.open(bundle)
    stream = Stream(opened, [open_source(str(video))], [opened.table()], StreamOptions(**options), engine=engine)
    return [(record.label, round(record.score, 3)) for record in stream]


def test_the_golden_set_is_opened_once_for_the_choice_and_every_stream(
    golden_bundle: Path, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, load = list[Path](), GoldenImages.load
    monkeypatch.setattr(GoldenImages, "load", lambda path: opened.append(path) or load(path))
    options = StreamOptions(limit=1, preprocess="exact")
    with edgeclip.open(golden_bundle, variant="fp32") as labeller:
        for _ in range(2):
            assert labeller.stream(video, options=options).run().labelled == 1
    assert len(opened) == 1


def test_what_goes_wrong_several_at_once_runs_one_at_a_time(
    golden_bundle: Path, video: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = labels(golden_bundle, video)
    with caplog.at_level(logging.WARNING, "edgeclip"):
        for _ in range(2):  # with all golden images, and then with those that were kept
            assert labels(golden_bundle, video, engine="racing", parallel=2) == expected
    assert [record.message for record in caplog.records if "2 batches of 8 at once" in record.message]


def test_what_is_wrong_in_batches_is_refused_and_says_what_to_do(golden_bundle: Path, video: Path) -> None:
    for _ in range(2):
        with pytest.raises(ParityError, match=r"in batches of 8: expected .* got .*: use another `engine`"):
            labels(golden_bundle, video, engine="batching")
    assert labels(golden_bundle, video, engine="batching", batch=1, parallel=1) == labels(golden_bundle, video)


def test_every_start_looks_again(golden_bundle: Path) -> None:
    """A race goes wrong at one start and not at another, so the success of an earlier one is not enough."""
    bundle = Bundle.open(golden_bundle)
    golden = golden_here(bundle)
    with ImageEncoder(bundle) as encoder:
        prove_in_the_loop(encoder, golden=golden, rows=2, parallel=1)
        healthy = encoder.engine._infer
        encoder.engine._infer = lambda images: -healthy(images)  # type: ignore[method-assign]
        with pytest.raises(ParityError, match=r"got -1\.0000"):
            prove_in_the_loop(encoder, golden=golden, rows=2, parallel=1)


def test_a_bundle_without_golden_images_is_refused_unless_it_may_run_unproved(tiny_bundle: Path, video: Path) -> None:
    bundle = without_golden(tiny_bundle)
    with pytest.raises(ParityError, match="to prove its variants on, got none"):
        labels(bundle.path, video)
    with edgeclip.open(bundle, unproved=True) as labeller:
        assert len(list(labeller.stream(video))) == 40
    with pytest.raises(ParityError, match="to prove its variants on, got none"):
        edgeclip.open(bundle)


def test_the_starter_in_fp32_on_openvino_says_what_it_says_alone(photographs_dir: Path) -> None:
    """With several streams OpenVINO 2026.4 makes something else of it each time that it is loaded."""
    pytest.importorskip("openvino")
    bundle = Bundle.open("starter")
    said = {}
    for engine, parallel in (("onnxruntime", 1), ("openvino", 2), ("openvino", None)):
        options = StreamOptions(parallel=parallel, preprocess="exact")
        stream = Stream(bundle, [open_source(str(photographs_dir))], [bundle.table()], options, engine=engine)
        said[engine, parallel] = [record.label for record in stream]
    assert len({tuple(each) for each in said.values()}) == 1, said
