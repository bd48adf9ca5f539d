"""What a loop runs is held against the golden images in the loop's own way: in batches, several at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import msgspec
import numpy as np
import pytest

from edgeclip import Bundle
from edgeclip.engine_list import EngineEntry
from edgeclip.errors import ParityError
from edgeclip.files import kept_json
from edgeclip.manifest import read_manifest, write_manifest
from edgeclip.prompts import unit_rows
from edgeclip.runtime.encoder import ImageEncoder, PendingEmbeddings
from edgeclip.runtime.engines.base import ByteArray, FloatArray
from edgeclip.runtime.engines.onnxruntime import OrtEngine
from edgeclip.runtime.proof.golden import FILE, GoldenImages, decoded_images
from edgeclip.runtime.proof.in_the_loop import prove_in_the_loop
from edgeclip.runtime.proof.parity import LIMITS
from edgeclip.runtime.proof.site import golden_here, keep_site
from tests.runtime.test_golden import golden_set

pytestmark = pytest.mark.usefixtures("cache")


class SpoiltEngine(OrtEngine):
    """ONNX Runtime, and what ``spoil`` makes of its embeddings."""

    name = "spoilt"
    spoil: ClassVar[Callable[[FloatArray], FloatArray]] = staticmethod(lambda rows: rows)

    def _infer(self, images: FloatArray) -> FloatArray:
        return type(self).spoil(super()._infer(images))


@pytest.fixture(autouse=True)
def _engine(engine_list: dict[str, EngineEntry], monkeypatch: pytest.MonkeyPatch) -> None:
    where = f"{__name__}:SpoiltEngine"
    engine_list["spoilt"] = EngineEntry("spoilt", where, module="onnxruntime", packages=("onnxruntime",))
    monkeypatch.setattr(SpoiltEngine, "spoil", SpoiltEngine.spoil)


class Watched(ImageEncoder):
    """An encoder that notes each batch that is begun: how many frames, and how many were under way with it."""

    def __init__(self, bundle: Bundle, *, parallel: int, threads: int | None = None) -> None:
        super().__init__(bundle, engine="spoilt", parallel=parallel, threads=threads)
        self.begun: list[tuple[int, int]] = []
        self.frames: list[ByteArray] = []
        self._under_way = 0

    def start(self, frames: ByteArray) -> PendingEmbeddings:
        self._under_way += 1
        self.begun.append((len(frames), self._under_way))
        self.frames.append(frames)
        pending = super().start(frames)
        outer = self

        class Noted(PendingEmbeddings):
            def result(self) -> tuple[FloatArray, float]:
                outer._under_way -= 1
                return super().result()

        return Noted(pending.parts)


def proved(bundle: Path, *, rows: int, parallel: int, threads: int | None = None) -> Watched:
    with Watched(Bundle.open(bundle), parallel=parallel, threads=threads) as encoder:
        prove_in_the_loop(encoder, golden=golden_here(encoder.bundle), rows=rows, parallel=parallel)
    return encoder


@pytest.mark.parametrize(
    ("rows", "parallel", "first", "later"),
    [
        (8, 1, [(4, 1)], [(2, 1)]),
        (3, 1, [(3, 1), (1, 1)], [(2, 1)]),
        (1, 1, [(1, 1)] * 4, [(1, 1)] * 2),
        (1, 2, [(1, 1)] + [(1, 2)] * 3, [(1, 1)] + [(1, 2)] * 3),
        (2, 2, [(2, 1), (2, 2)], [(2, 1), (2, 2)]),
        (8, 3, [(4, 1)], [(2, 1), (2, 2), (2, 3)]),
    ],
)
def test_all_golden_images_once_and_two_of_them_at_every_later_start_are_encoded_as_the_loop_does(
    tiny_bundle: Path, rows: int, parallel: int, first: list[tuple[int, int]], later: list[tuple[int, int]]
) -> None:
    bundle = Bundle.open(tiny_bundle)
    images = decoded_images(golden_set(bundle).files, bundle.manifest.encoder.preprocess)
    encoder = proved(tiny_bundle, rows=rows, parallel=parallel)
    assert encoder.begun == first
    np.testing.assert_array_equal(np.concatenate(encoder.frames), images)
    for _ in range(2):
        encoder = proved(tiny_bundle, rows=rows, parallel=parallel)
        assert encoder.begun == later
        np.testing.assert_array_equal(np.concatenate(encoder.frames), np.concatenate([images[:2]] * parallel))


@pytest.mark.parametrize("position", range(4))
@pytest.mark.parametrize("rows", [1, 3, 4])
def test_each_image_is_held_against_its_own_embedding(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, position: int, rows: int
) -> None:
    seen = 0

    def spoil(embeddings: FloatArray) -> FloatArray:
        nonlocal seen
        numbers = np.arange(seen, seen + len(embeddings))
        seen += len(embeddings)
        return np.where((numbers == position)[:, None], -embeddings, embeddings)

    monkeypatch.setattr(SpoiltEngine, "spoil", staticmethod(spoil))
    with pytest.raises(ParityError, match=rf"^fp32 on spoilt in batches of {rows}: .* of at least 0\.9999 .*got -1\.0"):
        proved(tiny_bundle, rows=rows, parallel=1)


def test_what_is_refused_is_not_kept(tiny_bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SpoiltEngine, "spoil", staticmethod(lambda rows: np.roll(rows, 1, axis=1)))
    for _ in range(2):
        with pytest.raises(
            ParityError, match="fp32 on spoilt in 2 batches of 3 at once: expected embeddings with a co"
        ):
            proved(tiny_bundle, rows=3, parallel=2)
    assert not list((cache / "streams").iterdir())


@pytest.mark.parametrize(("angle", "refused"), [(0.02, True), (0.01, False)])
def test_the_limit_is_the_worst_cosine_of_the_variants_precision(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, angle: float, refused: bool
) -> None:
    """cos .02 = .9998, and cos .01 = .99995."""

    def spoil(rows: FloatArray) -> FloatArray:
        across = rows[:, ::-1] - rows * (rows[:, ::-1] * rows).sum(axis=1, keepdims=True) / (rows**2).sum(1)[:, None]
        return unit_rows(rows) * np.float32(np.cos(angle)) + unit_rows(across) * np.float32(np.sin(angle))

    monkeypatch.setattr(SpoiltEngine, "spoil", staticmethod(spoil))
    if not refused:
        proved(tiny_bundle, rows=4, parallel=1)
        return
    with pytest.raises(ParityError, match=r"at least 0\.9999 to FP32's, got 0\.9998"):
        proved(tiny_bundle, rows=4, parallel=1)
    monkeypatch.setitem(LIMITS, "fp32", msgspec.structs.replace(LIMITS["fp32"], min_cosine=0.9))
    proved(tiny_bundle, rows=4, parallel=1)


def test_a_cosine_that_is_the_limit_is_enough(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Watched(Bundle.open(tiny_bundle), parallel=1) as encoder:
        golden = golden_set(encoder.bundle)
        images = decoded_images(golden.files, encoder.bundle.manifest.encoder.preprocess)
        got = ImageEncoder.start(encoder, images).result()[0]
        cosine = float((got * unit_rows(golden.embeddings)).sum(axis=1).min())
        for least, enough in ((cosine, True), (float(np.nextafter(cosine, 2)), False)):
            monkeypatch.setitem(LIMITS, "fp32", msgspec.structs.replace(LIMITS["fp32"], min_cosine=least))
            if enough:
                prove_in_the_loop(encoder, golden=golden_here(encoder.bundle), rows=4, parallel=1)
                continue
            with pytest.raises(ParityError):
                prove_in_the_loop(encoder, golden=golden_here(encoder.bundle), rows=4, parallel=1)


def change_golden(bundle: Path) -> None:
    golden = GoldenImages.load(bundle / FILE)
    replace(golden, names=("another", *golden.names[1:])).save(bundle / FILE)
    write_manifest(bundle, read_manifest(bundle), scan=True)


def test_what_the_loop_proved_is_kept_until_anything_changes(
    tiny_bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proved(tiny_bundle, rows=4, parallel=1)
    for expected, change in enumerate(
        [
            lambda: proved(tiny_bundle, rows=4, parallel=1),
            lambda: proved(tiny_bundle, rows=3, parallel=1),
            lambda: proved(tiny_bundle, rows=4, parallel=2),
            lambda: proved(tiny_bundle, rows=4, parallel=1, threads=1),
            lambda: (change_golden(tiny_bundle), proved(tiny_bundle, rows=4, parallel=1)),
            lambda: (
                monkeypatch.setitem(LIMITS, "fp32", msgspec.structs.replace(LIMITS["fp32"], min_cosine=0.9)),
                proved(tiny_bundle, rows=4, parallel=1),
            ),
            lambda: (monkeypatch.setenv("OMP_NUM_THREADS", "1"), proved(tiny_bundle, rows=4, parallel=1)),
        ],
        start=1,
    ):
        change()
        assert len(list((cache / "streams").glob("*.json"))) == expected
    with ImageEncoder(Bundle.open(tiny_bundle), engine="onnxruntime") as encoder:
        prove_in_the_loop(encoder, golden=golden_here(encoder.bundle), rows=4, parallel=1)
    assert len(list((cache / "streams").iterdir())) == 8


@pytest.mark.parametrize("spoil", [lambda whole: whole[:-3], lambda whole: whole.replace(b"9", b"8"), lambda _: b""])
def test_what_was_kept_and_altered_is_as_if_it_were_not_there(
    tiny_bundle: Path, cache: Path, spoil: Callable[[bytes], bytes]
) -> None:
    proved(tiny_bundle, rows=4, parallel=1)
    (kept,) = (cache / "streams").iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(spoil(whole))
    assert proved(tiny_bundle, rows=4, parallel=1).begun == [(4, 1)]
    assert kept.read_bytes() == whole


def test_what_is_kept_is_the_least_cosine(tiny_bundle: Path, cache: Path) -> None:
    proved(tiny_bundle, rows=4, parallel=1)
    (kept,) = (cache / "streams").iterdir()
    assert kept_json(kept, float) == pytest.approx(1, abs=1e-6)


def test_where_there_are_images_of_the_site_they_are_what_counts(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    golden = golden_set(bundle)
    first = {"names": golden.names[:1], "files": golden.files[:1], "digests": golden.digests[:1], "origin": "site"}
    keep_site(bundle, replace(golden, embeddings=golden.embeddings[:1], **first))
    here = golden_here(bundle)
    assert here is not None
    assert here.origin == "site"
    assert proved(tiny_bundle, rows=4, parallel=1).begun == [(1, 1)]
    assert proved(tiny_bundle, rows=4, parallel=2).begun == [(1, 1)]
    assert proved(tiny_bundle, rows=4, parallel=2).begun == [(1, 1), (1, 2)]
