"""Pairs in every form become the same batches: shuffled, divided, resumed at the sample; what is damaged is told."""

from __future__ import annotations

import base64
import csv
import gzip
import io
import itertools
import json
import os
import signal
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image as PillowImage

from edgeclip import PreprocessSpec
from edgeclip.errors import EdgeclipError, SourceError, TrainingError
from edgeclip.runtime.images import decode_image, opencv
from edgeclip.runtime.preprocess.preprocess import Preprocessor
from edgeclip.training.data import streams as shard_streams
from edgeclip.training.data.labelled import LabelledSamples
from edgeclip.training.data.loader import PairBatch, PairLoader
from edgeclip.training.data.pairs import Damaged, ImageTextPair, PairSource, Share, open_pairs
from edgeclip.training.data.patterns import expand_braces
from edgeclip.training.data.shards import ShardPairs
from edgeclip.training.data.streams import Download
from edgeclip.training.recipe import Augment, Data
from tests.conftest import shared

SPEC = PreprocessSpec(height=24, width=24, resize_to=24, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
EVERYTHING = Augment(crop_scale=(0.4, 1.0), flip=0.5, colour=0.4, random_erase=0.5)
COUNT, SHARDS = 24, 4


def image_bytes(value: int, form: str = "JPEG", size: tuple[int, int] = (40, 30)) -> bytes:
    """Noise around a colour of its own, (width, height) pixels."""
    rng = np.random.default_rng(value)
    pixels = rng.integers(0, 256, 3) // 2 + rng.integers(0, 128, (size[1], size[0], 3))
    stream = io.BytesIO()
    PillowImage.fromarray(pixels.astype(np.uint8)).save(stream, form)
    return stream.getvalue()


def caption(item: int) -> str:
    return f"a thing with the number {item}, said plainly"


def tar_bytes(members: list[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def captioned(items: range) -> list[tuple[str, bytes]]:
    return [
        member
        for item in items
        for member in ((f"{item:04}.jpg", image_bytes(item)), (f"{item:04}.txt", caption(item).encode()))
    ]


def labelled(items: range, classes: int = 3) -> list[tuple[str, bytes]]:
    return [
        member
        for item in items
        for member in ((f"{item:04}.jpg", image_bytes(item)), (f"{item:04}.cls", str(item % classes).encode()))
    ]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same 24 images with captions as shards, CSV, TSV and JSON lines; with labels as shards and class folders."""
    folder = tmp_path_factory.mktemp("pairs")
    each = COUNT // SHARDS
    for shard in range(SHARDS):
        items = range(shard * each, (shard + 1) * each)
        (folder / f"train-{shard:03}.tar").write_bytes(tar_bytes(captioned(items)))
        (folder / f"labelled-{shard:03}.tar").write_bytes(tar_bytes(labelled(items)))
        (folder / f"zipped-{shard:03}.tar.gz").write_bytes(gzip.compress(tar_bytes(captioned(items))))
    (folder / "classes.json").write_text('[["goldfish", "carp"], "teapot", {"names": ["moon", "full moon"]}]')
    (folder / "templates.txt").write_text("a photo of a {}.\na drawing of a {}.\n")
    (folder / "images").mkdir()
    (folder / "empty").mkdir()
    for item in range(COUNT):
        (folder / "images" / f"{item:04}.jpg").write_bytes(image_bytes(item))
        of_class = folder / "folders" / ("gold_fish", "moon", "tea_pot")[item % 3]
        of_class.mkdir(parents=True, exist_ok=True)
        (of_class / f"{item:04}.jpg").write_bytes(image_bytes(item))
    for name, delimiter in (("table.csv", ","), ("table.tsv", "\t")):
        with (folder / name).open("w", newline="") as stream:
            writer = csv.writer(stream, delimiter=delimiter)
            writer.writerow(["id", "filepath", "caption"])
            writer.writerows([item, f"images/{item:04}.jpg", caption(item)] for item in range(COUNT))
    lines = [{"image": f"images/{item:04}.jpg", "captions": [caption(item)]} for item in range(COUNT)]
    (folder / "lines.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    return folder


def basic(account: str) -> str:
    return f"Basic {base64.b64encode(account.encode()).decode()}"


class Server:
    """A real HTTP server of a folder's files that can be told to misbehave.

    Attributes:
        drop_after: bytes after which it hangs up, for the next ``drops`` answers.
        ranges: whether it knows ranges.
        requests: paths asked for, with the range.
        busy: how many of the next answers are 503.
        password: ``user:password`` that it asks for.
    """

    def __init__(self, folder: Path) -> None:
        self.drop_after, self.drops, self.busy, self.ranges = 0, 0, 0, True
        self.password = ""
        self.requests: list[tuple[str, str | None]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                wanted = self.headers.get("Range")
                server.requests.append((self.path, wanted))
                path = folder / self.path.lstrip("/").partition("?")[0]
                if server.busy:
                    server.busy -= 1
                    self.send_error(503)
                    return
                if server.password and self.headers.get("Authorization") != basic(server.password):
                    self.send_error(401)
                    return
                if not path.is_file():
                    self.send_error(404)
                    return
                start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and server.ranges else 0
                data = path.read_bytes()[start:]
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if server.drops:
                    server.drops -= 1
                    data = data[: server.drop_after]
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(shard_streams, "_FIRST_WAIT_S", 0.01)
    server = Server(pairs)
    yield server
    server.close()


def data_of(pairs: str | Path | tuple[str, ...], **more: Any) -> Data:
    return Data(pairs=pairs if isinstance(pairs, tuple) else str(pairs), **{"shuffle_buffer": 7, "workers": 0, **more})


def loader_of(data: Data, **more: Any) -> PairLoader:
    return PairLoader(open_pairs(data), SPEC, data, **{"batch_size": 5, "seed": 3, **more})


def take(loader: PairLoader, count: int) -> list[PairBatch]:
    return list(itertools.islice(loader, count))


def same(one: list[PairBatch], other: list[PairBatch]) -> bool:
    """Whether batches are equal to the last bit."""
    return len(one) == len(other) and all(
        a.keys == b.keys and a.texts == b.texts and torch.equal(a.images, b.images) and torch.equal(a.groups, b.groups)
        for a, b in zip(one, other, strict=True)
    )


def keys_of(batches: list[PairBatch]) -> list[str]:
    return [key for batch in batches for key in batch.keys]


# Every form.


@pytest.mark.parametrize(
    "form",
    [
        "{folder}/train-*.tar",
        "{folder}/train-{{000..003}}.tar",
        "{folder}/zipped-00{{0,1,2,3}}.tar.gz",
        "pipe:cat {folder}/train-{{000..003}}.tar",
        "pipe:cat {folder}/train-000.tar {folder}/train-001.tar {folder}/train-002.tar {folder}/train-003.tar",
        "pipe:cat {folder}/zipped-{{000..003}}.tar.gz | gunzip",
        "{url}/train-{{000..003}}.tar",
        "{folder}/table.csv",
        "{folder}/table.tsv",
        "{folder}/lines.jsonl",
    ],
)
def test_every_form_gives_the_same_images_and_captions(form: str, pairs: Path, server: Server) -> None:
    source = open_pairs(data_of(form.format(folder=pairs, url=server.url)))
    found = list(source)
    assert len({pair.key for pair in found}) == COUNT
    for item, pair in enumerate(found):
        image = pair.image.read_bytes() if isinstance(pair.image, Path) else pair.image
        assert image == image_bytes(item)
        assert pair.captions == (caption(item),)


def test_several_names_are_read_one_after_the_other(pairs: Path, server: Server) -> None:
    names = (str(pairs / "train-003.tar"), f"{server.url}/train-000.tar", f"pipe:cat {pairs}/train-001.tar")
    found = [pair.captions[0] for pair in open_pairs(data_of(names))]
    assert found == [caption(item) for item in [*range(18, 24), *range(6), *range(6, 12)]]


def test_class_folders_have_their_names_or_those_of_a_file(pairs: Path, tmp_path: Path) -> None:
    source = open_pairs(data_of(pairs / "folders"))
    assert source.classes == (("gold fish",), ("moon",), ("tea pot",))
    assert Counter(pair.label for pair in source) == {0: 8, 1: 8, 2: 8}
    names = tmp_path / "names.json"
    names.write_text('{"tea_pot": ["teapot", "pot"], "gold_fish": "goldfish", "moon": "moon"}')
    source = open_pairs(data_of(pairs / "folders", classes=str(names)))
    assert source.classes == (("goldfish",), ("moon",), ("teapot", "pot"))
    names.write_text('["a", "b"]')
    with pytest.raises(TrainingError, match="3 class folders"):
        open_pairs(data_of(pairs / "folders", classes=str(names)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.tar", ["a.tar"]),
        ("a-{8..11}.tar", ["a-8.tar", "a-9.tar", "a-10.tar", "a-11.tar"]),
        ("a-{08..11}.tar", ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]),
        ("{x,y}-{1..2}", ["x-1", "x-2", "y-1", "y-2"]),
        ("a-{2..0}", ["a-2", "a-1", "a-0"]),
        ("a{b}c{}", ["a{b}c{}"]),
        ("a{b.tar", ["a{b.tar"]),
        ("{a,{b,c}}.tar", ["a.tar", "b.tar", "c.tar"]),
        ("pipe:f {0..1} | awk '{print $1,$2}'", [f"pipe:f {n} | awk '{{print $1,$2}}'" for n in (0, 1)]),
    ],
)
def test_braces_expand_as_in_a_shell(text: str, expected: list[str]) -> None:
    assert expand_braces(text) == expected


def test_a_sample_of_a_shard_may_hold_captions_in_json_and_other_files(tmp_path: Path) -> None:
    long = f"a/{'b' * 120}"  # longer than a tar header holds, so that it has one of its own
    members = [
        ("README", b"hello"),
        ("a/0.thumb.jpg", image_bytes(1)),
        ("a/0.jpg", image_bytes(0)),
        ("a/0.json", json.dumps({"caption": "one", "width": 40}).encode()),
        ("a/0.txt", b" one \n"),
        (f"{long}.png", image_bytes(2, "PNG")),
        (f"{long}.json", json.dumps({"captions": ["two", "three", "two"]}).encode()),
    ]
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        (tmp_path / "x.tar").write_bytes(tar_bytes(members, form))
        first, second = ShardPairs(str(tmp_path / "x.tar"))
        assert (first.key, first.image, first.captions) == ("x.tar:a/0", image_bytes(0), ("one",))
        assert (second.key, second.captions) == (f"x.tar:{long}", ("two", "three"))
    (tmp_path / "x.tar").write_bytes(tar_bytes([("0.jpg", image_bytes(0)), ("0.json", b'{"alt": "four"}')]))
    assert [pair.captions for pair in ShardPairs(str(tmp_path / "x.tar"), caption_key="alt")] == [("four",)]


def test_folders_and_links_in_a_shard_are_passed_over(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name, kind in (("a", tarfile.DIRTYPE), ("a/0.png", tarfile.SYMTYPE), ("a/0.webp", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "elsewhere.png"
            archive.addfile(info)
        for name, data in (("a/1.jpg", image_bytes(1)), ("a/1.txt", b"one")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    assert [(pair.key, pair.captions) for pair in ShardPairs(str(tmp_path / "x.tar"))] == [("x.tar:a/1", ("one",))]


# What a batch holds.


def test_without_augmentation_images_are_what_a_device_will_see(pairs: Path) -> None:
    preprocess = Preprocessor(SPEC)
    for batch in take(loader_of(data_of(pairs / "train-*.tar")), 3):
        for image, text in zip(batch.images, batch.texts, strict=True):
            item = int(text.split(",")[0].split()[-1])
            expected = preprocess(decode_image(image_bytes(item), name="x"))
            assert torch.equal(image, torch.from_numpy(expected))
        assert batch.images.dtype == torch.float32


def changed(image: bytes, augment: Augment, folder: Path, count: int = 1) -> list[torch.Tensor]:
    (folder / "one.tar").write_bytes(tar_bytes([("0.png", image), ("0.txt", b"it")]))
    loader = loader_of(data_of(folder / "one.tar"), batch_size=1, augment=augment)
    return [batch.images[0] for batch in take(loader, count)]


def test_each_change_does_what_it_says(tmp_path: Path) -> None:
    image = image_bytes(5, "PNG")
    (plain,) = changed(image, Augment(), tmp_path)
    (mirrored,) = changed(image, Augment(flip=1.0), tmp_path)
    assert torch.equal(mirrored, plain.flip(-1))

    for erased in changed(image, Augment(random_erase=1.0), tmp_path, 8):
        blank = (erased != plain).any(dim=0)
        assert 0.01 < blank.float().mean() < 0.4
        assert erased[:, blank].abs().max() < 0.02  # the mean colour, to the rounding of a byte

    coloured = torch.stack(changed(image, Augment(colour=0.5), tmp_path, 8))
    assert (coloured.mean(dim=(1, 2, 3)) - plain.mean()).abs().max() > 0.1
    # One wide gradient: how much of it a crop shows is how large the crop was.
    ramp = np.repeat(np.linspace(0, 255, 96)[None, :, None], 96, axis=0).repeat(3, axis=2).astype(np.uint8)
    stream = io.BytesIO()
    PillowImage.fromarray(ramp).save(stream, "PNG")
    spans = [
        (crop[0, 12, -1] - crop[0, 12, 0]).item() * SPEC.std[0]
        for crop in changed(stream.getvalue(), Augment(crop_scale=(0.25, 0.25)), tmp_path, 8)
    ]
    assert 0.38 < min(spans) <= max(spans) < 0.62  # a quarter of the area, 3:4 to 4:3


def test_every_name_in_every_template_is_said_in_time(pairs: Path) -> None:
    data = data_of(
        pairs / "labelled-*.tar", classes=str(pairs / "classes.json"), templates=str(pairs / "templates.txt")
    )
    batches = take(loader_of(data, batch_size=COUNT), 12)
    heard = {said for batch in batches for said in zip(batch.texts, batch.groups.tolist(), strict=True)}
    names = {"goldfish": 0, "carp": 0, "teapot": 1, "moon": 2, "full moon": 2}
    assert heard == {
        (template.format(name), label)
        for name, label in names.items()
        for template in ("a photo of a {}.", "a drawing of a {}.")
    }
    assert batches[0].texts != batches[1].texts  # said anew each time


def test_one_of_several_captions_is_said(pairs: Path, tmp_path: Path) -> None:
    said = ["one", "two", "three", "four", "five"]
    line = {"image": str(pairs / "images" / "0001.jpg"), "captions": said}
    (tmp_path / "x.jsonl").write_text(json.dumps(line))
    batches = take(loader_of(data_of(tmp_path / "x.jsonl"), batch_size=1), 60)
    counts = Counter(batch.texts[0] for batch in batches)
    assert sorted(counts) == sorted(said)
    assert min(counts.values()) >= 4


def test_groups_are_equal_exactly_where_texts_say_the_same(pairs: Path, tmp_path: Path) -> None:
    texts = ["a dog", "a cat", "a dog", "a bird"]
    lines = [{"image": str(pairs / "images" / "0001.jpg"), "caption": text} for text in texts]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (batch,) = take(loader_of(data_of(tmp_path / "x.jsonl"), batch_size=4), 1)
    for i, j in itertools.combinations(range(4), 2):
        assert (batch.groups[i] == batch.groups[j]).item() == (batch.texts[i] == batch.texts[j])
    other = loader_of(data_of(tmp_path / "x.jsonl"), batch_size=4, seed=8)  # another process, as it were
    (again,) = take(other, 1)
    assert dict(zip(batch.texts, batch.groups.tolist(), strict=True)) == dict(
        zip(again.texts, again.groups.tolist(), strict=True)
    )


def test_images_only_takes_samples_of_which_nothing_is_said(pairs: Path, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(tar_bytes([(f"{item}.jpg", image_bytes(item)) for item in range(6)]))
    (batch,) = take(loader_of(data_of(tmp_path / "x.tar"), images_only=True, batch_size=6), 1)
    assert batch.texts == ()
    assert len(set(batch.groups.tolist())) == 6
    with pytest.raises(TrainingError, match=r"could use none of 6 samples .*caption missing"):
        take(loader_of(data_of(tmp_path / "x.tar")), 1)
    (frames,) = take(loader_of(data_of(pairs / "images"), images_only=True, batch_size=COUNT), 1)
    assert sorted(frames.keys) == [f"{item:04}.jpg" for item in range(COUNT)]
    (classes,) = take(loader_of(data_of(pairs / "folders"), images_only=True, batch_size=COUNT), 1)
    assert (classes.texts, len(set(classes.groups.tolist()))) == ((), COUNT)


# Order: shuffled, divided, the same again.


@pytest.mark.parametrize("form", ["train-*.tar", "table.csv", "folders"])
@pytest.mark.parametrize("parts", [1, 2, 3, 4, 6, 8])
def test_the_shares_of_all_readers_are_each_sample_once(form: str, parts: int, pairs: Path) -> None:
    source = open_pairs(data_of(pairs / form))
    for epoch in range(2):
        shares = [[item.key for item in source.read(Share(part, parts, 5, epoch))] for part in range(parts)]
        assert sorted(key for share in shares for key in share) == sorted(pair.key for pair in source)
        assert all(shares)


@pytest.mark.parametrize("form", ["train-*.tar", "lines.jsonl"])
def test_each_epoch_of_a_loader_is_each_sample_once_in_another_order(form: str, pairs: Path) -> None:
    keys = keys_of(take(loader_of(data_of(pairs / form), batch_size=COUNT), 3))
    epochs = [keys[start : start + COUNT] for start in range(0, 3 * COUNT, COUNT)]
    assert all(len(set(epoch)) == COUNT for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert epochs[0] != sorted(epochs[0])
    other = keys_of(take(loader_of(data_of(pairs / form), batch_size=COUNT, seed=4), 1))
    assert other != epochs[0]


def test_the_buffer_mixes_shards(pairs: Path) -> None:
    """With a buffer of half the data the first batch comes from several shards; with one of a sample, from one."""
    for size, least, most in ((COUNT // 2, 2, 4), (1, 1, 1)):
        (batch,) = take(loader_of(data_of(pairs / "train-*.tar", shuffle_buffer=size), batch_size=6), 1)
        assert least <= len({key.partition(":")[0] for key in batch.keys}) <= most


@pytest.mark.parametrize("workers", [0, 2])
def test_processes_share_an_epoch(workers: int, pairs: Path) -> None:
    data = data_of(pairs / "train-*.tar", workers=workers)
    loaders = [loader_of(data, batch_size=6, rank=rank, world=2) for rank in range(2)]
    keys = [key for loader in loaders for key in keys_of(take(loader, 2))]
    assert len(set(keys)) == COUNT
    assert all(loader.epoch == 0 for loader in loaders)


def test_worker_processes_give_what_one_would(pairs: Path) -> None:
    """One worker process and none give the same batches; and making them leaves the trainer's own generator alone."""
    torch.manual_seed(11)
    untouched = torch.get_rng_state()
    data = data_of(pairs / "train-*.tar")
    here = take(loader_of(data, augment=EVERYTHING), 7)
    there = take(loader_of(msgspec.structs.replace(data, workers=1), augment=EVERYTHING), 7)
    assert same(here, there)
    assert torch.equal(torch.get_rng_state(), untouched)


def test_workers_start_after_opencv_has_started_threads_here(pairs: Path) -> None:
    """As after a validation in the trainer's own process; a fork that asked the pool to end would hang."""
    cv2 = opencv()
    cv2.setNumThreads(4)
    cv2.resize(np.zeros((2000, 2000, 3), np.uint8), (1500, 1500), interpolation=cv2.INTER_CUBIC)
    assert len(take(loader_of(data_of(pairs / "train-*.tar", workers=2)), 4)) == 4
    assert cv2.getNumThreads() == 4


# Resuming.


@pytest.fixture
def damaged(pairs: Path, tmp_path: Path) -> Path:
    """The captioned shards, with a few samples that cannot be used."""
    for shard in range(3):
        members = captioned(range(shard * 8, shard * 8 + 8))
        members[5] = (members[5][0], b"")  # an empty caption
        members[8] = (members[8][0], members[8][1][:200])  # a cut image
        (tmp_path / f"train-{shard}.tar").write_bytes(tar_bytes(members))
    return tmp_path


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_after_a_saved_state_the_same_batches_follow(workers: int, damaged: Path) -> None:
    """Images to the last bit, texts and counts; over the ends of epochs, wherever the interruption fell."""
    data = data_of(damaged / "train-*.tar", workers=workers)
    whole = loader_of(data, augment=EVERYTHING)
    batches, states = [], []
    for batch in itertools.islice(whole, 14):
        batches.append(batch)
        states.append(json.dumps(whole.state_dict()))
    assert whole.epoch >= 2
    for after in (0, 3, 4, 10):
        resumed = loader_of(data, augment=EVERYTHING)
        resumed.load_state_dict(json.loads(states[after]))
        assert same(take(resumed, 3), batches[after + 1 : after + 4])
        assert json.dumps(resumed.state_dict()) == states[after + 3]
    assert whole.skipped > 6


@pytest.mark.parametrize("form", ["table.csv", "lines.jsonl", "folders", "pipe:cat {}/train-{{000..003}}.tar"])
def test_every_form_resumes(form: str, pairs: Path) -> None:
    data = data_of(form.format(pairs) if "{" in form else pairs / form, workers=2)
    whole = loader_of(data, augment=EVERYTHING)
    before = take(whole, 3)
    state = whole.state_dict()
    after = take(whole, 5)  # goes on where it stopped, though the workers had fetched ahead
    assert not set(keys_of(before)[:10]) & set(keys_of(after)[:5])
    resumed = loader_of(data, augment=EVERYTHING)
    resumed.load_state_dict(state)
    assert same(take(resumed, 5), after)


@pytest.mark.parametrize(
    ("change", "more"),
    [
        ({}, {"seed": 4}),
        ({}, {"batch_size": 6}),
        ({}, {"world": 2}),
        ({}, {"augment": EVERYTHING}),
        ({"workers": 2}, {}),
        ({"shuffle_buffer": 8}, {}),
        ({"templates": "templates.txt"}, {}),
        ({"pairs": "train-00[01].tar"}, {}),
    ],
)
def test_a_state_of_other_settings_is_refused(change: dict[str, Any], more: dict[str, Any], pairs: Path) -> None:
    loader = loader_of(data_of(pairs / "train-*.tar"))
    take(loader, 1)
    change = {key: str(pairs / value) if isinstance(value, str) else value for key, value in change.items()}
    other = loader_of(msgspec.structs.replace(data_of(pairs / "train-*.tar"), **change), **more)
    with pytest.raises(TrainingError, match="other data or settings"):
        other.load_state_dict(loader.state_dict())


def test_shards_may_move_and_their_addresses_be_signed_anew(pairs: Path, tmp_path: Path, server: Server) -> None:
    """Neither the folder nor a signature is part of what a sample is called, of its crop, or of a saved state."""
    (tmp_path / "train-000.tar").write_bytes((pairs / "train-000.tar").read_bytes())
    for one, other in (
        (pairs / "train-000.tar", tmp_path / "train-000.tar"),
        (f"{server.url}/train-000.tar?signature=1", f"{server.url}/train-000.tar?signature=2"),
    ):
        loader, moved = (loader_of(data_of(name), augment=EVERYTHING) for name in (one, other))
        take(loader, 1)
        moved.load_state_dict(loader.state_dict())
        assert same(take(moved, 2), take(loader, 2))
    both = list(ShardPairs([str(pairs / "train-000.tar"), str(tmp_path / "train-000.tar")]))
    assert len({pair.key for pair in both}) == 12  # where file names alone are not enough


def test_names_of_files_need_not_be_text(tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    for name in (b"caf\xe9.jpg", "café.jpg".encode()):
        (tmp_path / "frames" / os.fsdecode(name)).write_bytes(image_bytes(1))
    (batch,) = take(loader_of(data_of(tmp_path / "frames"), batch_size=2, images_only=True), 1)
    assert sorted(batch.keys) == ["caf\\xe9.jpg", "café.jpg"]
    data = tar_bytes([("caf\udce9.jpg", image_bytes(1)), ("caf\udce9.txt", b"coffee")], tarfile.USTAR_FORMAT)
    (tmp_path / "x.tar").write_bytes(data)
    (batch,) = take(loader_of(data_of(tmp_path / "x.tar"), batch_size=1), 1)
    assert batch.keys == ("x.tar:caf\\xe9",)


# What is damaged.


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_samples_are_skipped_counted_and_named(workers: int, damaged: Path) -> None:
    loader = loader_of(data_of(damaged / "train-*.tar", workers=workers), batch_size=6)
    found = keys_of(take(loader, 3))
    assert len(set(found)) == 18
    state = loader.state_dict()
    take(loader, 1)  # into the next epoch, so that the last of the first are passed
    assert 6 <= loader.skipped <= 12
    assert len(loader.first_skipped) == 5
    for told in loader.first_skipped:
        key, _, reason = told.partition(" ")
        assert key.partition(":")[2] in {f"{item:04}" for item in (2, 4, 10, 12, 18, 20)}
        assert "caption missing" in reason or "truncated" in reason
    assert state["skipped"] <= loader.skipped


def test_bad_rows_of_tables_are_skipped_and_named(pairs: Path, tmp_path: Path) -> None:
    image = str(pairs / "images" / "0001.jpg")
    lines = [json.dumps({"image": image, "captions": ["one"]}), "{", json.dumps({"image": image}), "[]"]
    lines += [json.dumps({"image": "gone.jpg", "caption": "x"}), json.dumps({"caption": "x"})]
    lines += [json.dumps({"image": image, "captions": []}), json.dumps({"image": image, "captions": [3]})]
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    source = open_pairs(data_of(tmp_path / "x.jsonl"))
    assert sum(isinstance(item, Damaged) for item in source.read(Share())) == 5
    loader = loader_of(data_of(tmp_path / "x.jsonl"), batch_size=1)
    take(loader, 2)
    assert 7 <= loader.skipped <= 14
    (tmp_path / "x.csv").write_text(f"image,caption\n{image},one\n{image}\ngone.jpg,two\n\n{image},\n")
    loader = loader_of(data_of(tmp_path / "x.csv"), batch_size=1)
    take(loader, 2)
    assert 3 <= loader.skipped <= 6


@pytest.mark.parametrize("workers", [0, 2])
def test_a_label_without_a_name_stops_with_its_key(workers: int, pairs: Path, tmp_path: Path) -> None:
    """As it is said here, without the traceback of a worker."""
    (tmp_path / "classes.json").write_text('["goldfish", "teapot"]')
    data = data_of(pairs / "labelled-*.tar", classes=str(tmp_path / "classes.json"), workers=workers)
    with pytest.raises(TrainingError, match=r"^expected labels from 0 to 1, .* got 2 in labelled-00\d.tar:00") as info:
        take(loader_of(data), 8)
    assert "Traceback" not in str(info.value)


def test_labels_without_class_names_are_explained(pairs: Path) -> None:
    with pytest.raises(TrainingError, match=r"label without data\.classes"):
        take(loader_of(data_of(pairs / "labelled-*.tar")), 1)


def cuts() -> list[int]:
    """Places to cut a shard: in a header, in an image, in what fills its block, at a border, in the mark at the end."""
    whole = tar_bytes(captioned(range(4)))
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        members = archive.getmembers()
    border = members[4].offset
    last = members[-1].offset_data + 512
    return [0, 100, members[2].offset_data + 50, border - 1, border, border + 200, last]


@pytest.mark.parametrize("at", cuts())
@pytest.mark.parametrize("zipped", [False, True])
def test_a_cut_shard_is_told_wherever_it_was_cut(at: int, zipped: bool, tmp_path: Path) -> None:
    whole = tar_bytes(captioned(range(4)))
    (tmp_path / "x.tar").write_bytes(gzip.compress(whole[:at]) if zipped else whole[:at])
    with pytest.raises(TrainingError, match=r"x.tar is not a readable tar \(it (is empty|ends)"):
        list(ShardPairs(str(tmp_path / "x.tar")))


def test_damage_in_mid_archive_is_not_taken_for_its_end(tmp_path: Path) -> None:
    whole = bytearray(tar_bytes(captioned(range(4))))
    with tarfile.open(fileobj=io.BytesIO(bytes(whole))) as archive:
        header = archive.getmembers()[4].offset
    whole[header : header + 100] = b"\xff" * 100
    (tmp_path / "x.tar").write_bytes(whole)
    with tarfile.open(tmp_path / "x.tar") as archive:
        assert len(archive.getmembers()) == 4  # what the standard library makes of it
    found = []
    with pytest.raises(TrainingError, match="not a readable tar"):
        found.extend(pair.key for pair in ShardPairs(str(tmp_path / "x.tar")))
    zipped = gzip.compress(bytes(whole))
    (tmp_path / "x.tar.gz").write_bytes(zipped[: len(zipped) // 2])
    with pytest.raises(TrainingError, match="not a readable tar"):
        list(ShardPairs(str(tmp_path / "x.tar.gz")))


@pytest.mark.parametrize("content", [b"not a tar" * 300, b"\x1f\x8bnot gzip" * 300, image_bytes(1)])
def test_what_is_no_tar_is_told(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(TrainingError, match="not a readable tar"):
        list(ShardPairs(str(tmp_path / "x.tar")))


@pytest.mark.parametrize("members", [[], [("README", b"hello")], [("x.bin", b"hello")]])
def test_a_shard_without_samples_is_told_even_beside_good_ones(
    members: list[tuple[str, bytes]], pairs: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty.tar").write_bytes(tar_bytes(members))
    with pytest.raises(TrainingError, match=r"no sample in .*empty\.tar"):
        list(ShardPairs([str(pairs / "train-000.tar"), str(tmp_path / "empty.tar")]))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("echo no such bucket >&2; exit 7", "exit status 7: no such bucket"),
        ("false", "exit status 1: it printed no error"),
        ("no-such-program-anywhere", "exit status 127"),
        ("head -c 3000 {}/train-000.tar; exit 5", "exit status 5"),  # and not only that the archive is cut
        ("cat {}/train-000.tar; exit 6", "exit status 6"),  # whole, but the command is not content
        ("cat {}/absent.tar | cat", "exit status 1: .*absent.tar"),
    ],
)
def test_a_command_that_fails_is_told(command: str, message: str, pairs: Path) -> None:
    with pytest.raises(SourceError, match=message):
        list(ShardPairs(f"pipe:{command.format(pairs)}"))


@pytest.mark.parametrize("command", ["head -c 3000 {}/train-000.tar", "yes", "yes | cat"])
def test_a_command_that_gives_no_tar_is_told(command: str, pairs: Path) -> None:
    with pytest.raises(TrainingError, match="not a readable tar"):
        list(ShardPairs(f"pipe:{command.format(pairs)}"))


def test_a_command_is_ended_with_its_reader(pairs: Path, tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    command = f"pipe:echo $BASHPID > {mark}; cat {pairs}/train-000.tar; sleep 600"
    reader = iter(ShardPairs(command))
    next(reader)
    pid = int(mark.read_text())
    os.kill(pid, 0)
    reader.close()  # type: ignore[attr-defined]
    del reader
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_lost_connection_is_taken_up_again(ranges: bool, server: Server, pairs: Path) -> None:
    server.ranges, server.drop_after, server.drops, server.busy = ranges, 5000, 2, 1
    found = list(ShardPairs(f"{server.url}/train-000.tar"))
    assert [pair.image for pair in found] == [image_bytes(item) for item in range(6)]
    assert [wanted for _, wanted in server.requests[:3]] == [None, None, "bytes=5000-"]


def test_a_server_that_does_not_come_back_is_told(server: Server) -> None:
    server.drop_after, server.drops = 0, 99
    with pytest.raises(SourceError, match=r"train-000\.tar, got: the body ended after .* \(tried 4 times\)"):
        list(ShardPairs(f"{server.url}/train-000.tar"))
    with pytest.raises(SourceError, match=r"got: 404 Not Found \(tried 1 times\)"):
        list(ShardPairs(f"{server.url}/absent.tar"))
    server.close()
    with pytest.raises(SourceError, match="refused") as info:
        Download(f"{server.url.replace('//', '//user:secret@')}/train-000.tar")
    assert "secret" not in str(info.value)


def test_user_and_password_of_an_address_are_sent_and_not_told(server: Server) -> None:
    server.password = "user:p@ss"
    address = f"{server.url.replace('//', '//user:p%40ss@')}/train-000.tar"
    found = list(ShardPairs(address))
    assert len(found) == 6
    assert "ss" not in found[0].key + ShardPairs(address).name.replace("user", "")
    with pytest.raises(SourceError, match="401"):
        list(ShardPairs(f"{server.url}/train-000.tar"))


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_table_of_images_alone_is_read_for_distillation(pairs: Path, form: str) -> None:
    files = sorted((pairs / "images").iterdir())
    lines = {"csv": ["image", *(f"images/{file.name}" for file in files)]}
    lines["jsonl"] = [json.dumps({"image": f"images/{file.name}"}) for file in files]
    table = pairs / f"frames.{form}"
    table.write_text("\n".join(lines[form]))
    alone = data_of(table, caption_key="-")
    (batch,) = take(loader_of(alone, images_only=True, batch_size=len(files)), 1)
    assert sorted(key.rpartition("/")[2] for key in batch.keys) == [file.name for file in files]
    with pytest.raises(TrainingError, match="caption"):
        take(loader_of(alone, batch_size=2), 1)


@pytest.mark.parametrize(
    ("header", "more", "message"),
    [
        ("id,url,text", {}, "expected a column image or .* got id, url, text: set data.image_key"),
        ("image,label", {}, "expected a column captions or .*: set data.caption_key"),
        ("picture,caption", {"image_key": "pictures"}, "did you mean 'picture'"),
        ("", {}, "an empty file"),
    ],
)
def test_a_table_without_its_column_is_refused(header: str, more: dict[str, str], message: str, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(f"{header}\na,b,c\n")
    with pytest.raises(SourceError, match=message):
        open_pairs(data_of(tmp_path / "x.csv", **more))


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (("{}/absent.tar",), TrainingError, "got none"),
        (("{}/absent",), SourceError, "no such file or folder"),
        (("{}/templates.txt",), SourceError, "none of them"),
        (("{}/train-*.tar", "{}/table.csv"), SourceError, "in one form"),
        (("{}/folders", "{}/folders"), SourceError, "one folder"),
        (("{}/empty",), SourceError, "images or one folder of images a class"),
        (("pipe: ",), SourceError, "a command behind pipe:"),
        ((), SourceError, "got nothing"),
        (("",), SourceError, "got nothing"),
    ],
)
def test_names_that_lead_nowhere_are_refused(
    names: tuple[str, ...], error: type[EdgeclipError], message: str, pairs: Path
) -> None:
    with pytest.raises(error, match=message):
        open_pairs(data_of(tuple(name.format(pairs) for name in names)))


@pytest.mark.parametrize(("name", "content"), [("x.csv", "image,caption\n"), ("x.jsonl", "\n"), ("x.jsonl", "{}\n[]")])
def test_tables_without_a_usable_row_are_refused(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(TrainingError, match="expected rows with an image and a caption"):
        open_pairs(data_of(tmp_path / name))


def test_more_readers_than_samples_are_refused(pairs: Path, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(tar_bytes(captioned(range(3))))
    with pytest.raises(TrainingError, match=r"lower data\.workers"):
        take(loader_of(data_of(tmp_path / "x.tar", workers=4)), 4)


class Deadly(ShardPairs):
    """Kills the first worker that gets to its fourth sample, as the kernel would if memory ran out."""

    def read(self, share: Share) -> Iterator[ImageTextPair | Damaged]:
        for number, item in enumerate(super().read(share)):
            if number == 3 and share.part == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            yield item


def test_a_worker_that_dies_is_told(pairs: Path) -> None:
    data = data_of(pairs / "train-*.tar", workers=2)
    loader = PairLoader(Deadly(data.pairs), SPEC, data, batch_size=2, seed=0)
    with pytest.raises(TrainingError, match=r"worker died .* lower data\.workers"):
        take(loader, 50)


# Real data.


def test_real_sets_are_read_whole() -> None:
    coco = open_pairs(data_of(shared("coco-captions", "captions.jsonl")))
    found = list(coco)
    assert len(found) == 258
    assert sum(len(pair.captions) for pair in found) == 1290
    (batch,) = take(PairLoader(coco, SPEC, data_of("coco"), batch_size=64, seed=0), 1)
    assert batch.images.shape == (64, 3, 24, 24)
    assert len(set(batch.texts)) == 64
    caltech = open_pairs(data_of(shared("caltech101")))
    assert (len(caltech.classes), len(list(caltech))) == (101, 1414)


def test_real_shards_are_read_whole_and_in_order() -> None:
    classes = shared("tiny-imagenet", "classes.json")
    source = open_pairs(data_of(classes.with_name("val-*.tar"), classes=str(classes)))
    labels = Counter(pair.label for pair in source)
    assert labels == dict.fromkeys(range(200), 25)
    first = next(iter(LabelledSamples(source)))
    assert (first.key, first.image.shape) == ("val-000.tar:000000", (64, 64, 3))


def test_every_source_can_be_sent_to_a_worker(pairs: Path) -> None:
    """Also where workers are not forked: pickled, it gives the same."""
    import pickle

    for form in ("train-*.tar", "table.csv", "lines.jsonl", "folders"):
        source = open_pairs(data_of(pairs / form))
        copy: PairSource = pickle.loads(pickle.dumps(source))
        assert list(copy) == list(source)
        assert copy.identity() == source.identity()
        assert all(isinstance(item, ImageTextPair) for item in copy)
