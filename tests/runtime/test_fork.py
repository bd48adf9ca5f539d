"""A process that was forked off after the parent used what holds threads is refused it or has its own, and ends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgeclip.runtime.engines.base import engine_class

# Arguments: engine, bundle, video, folder. Each child tries one thing.
PROGRAM = """
import json, os, sys, time, warnings
from pathlib import Path
import numpy as np
import edgeclip
from edgeclip.errors import EdgeclipError
from edgeclip.runtime.encoder import ImageEncoder
from edgeclip.runtime.page.sink import WebSink
from edgeclip.runtime.sinks.files import JsonlSink
from edgeclip.runtime.sinks.prometheus import PrometheusSink
from edgeclip.runtime.sources.open import open_source

warnings.simplefilter("ignore")  # Python's own, of a fork where there are threads
engine, bundle, video, folder = sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4])
image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
labeller = edgeclip.open(bundle, engine=engine, threads=4)
label = labeller.classify(image).label
encoder = ImageEncoder(labeller.bundle, engine=engine)
embedding = encoder.encode([image])
pending = encoder.start(np.zeros((1, 32, 32, 3), np.uint8))
sinks = [JsonlSink(folder / "labels.jsonl"), PrometheusSink("0"), WebSink("127.0.0.1", 0)]
stream = labeller.stream(video, sinks=sinks)
frames = iter(stream)
seen = [next(frames).frame for _ in range(2)]
unused = labeller.stream(video)
camera = open_source(video, realtime=True)
camera.ready()

def leave_a_block():
    with camera, encoder, unused, labeller:
        pass

def label_a_video():
    return [labelled.frame for labelled in labeller.stream(video)] == list(range(40))

tries = {
    "nothing": lambda: None,
    "a labeller": lambda: labeller.classify(image).label == label,
    "its streams": label_a_video,
    "an encoder": lambda: encoder.encode([image]),
    "a batch under way": pending.result,
    "an encoder of its own": lambda: bool(np.allclose(
        ImageEncoder(labeller.bundle, engine=engine).encode([image]), embedding, atol=1e-5)),
    "a stream under way": lambda: next(frames),
    "a stream": lambda: unused.run(),
    "closing": lambda: [stream.stop(), stream.close(), unused.close(), labeller.close(), encoder.close()] and None,
    "the end of a block": leave_a_block,
    "a camera": lambda: next(iter(camera)),
    "a camera's stream": lambda: labeller.stream(camera),
}
said = {}
for name, attempt in tries.items():
    read, write = os.pipe()
    if not (child := os.fork()):
        try:
            answer = attempt()
        except EdgeclipError as error:
            answer = str(error)
        os.write(write, json.dumps(answer).encode())
        sys.exit(7)  # all that Python and the libraries do at an end
    os.close(write)
    until = time.monotonic() + 20
    ended = 0
    while not ended and time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.01)
    if not ended:
        os.kill(child, 9)
        os.waitpid(child, 0)
    answer = os.read(read, 10_000).decode() or "null"
    said[name] = [json.loads(answer), os.waitstatus_to_exitcode(status) if ended else "it hangs"]
seen += [labelled.frame for labelled in frames]
pending.result()
camera.close(), unused.close(), encoder.close(), labeller.close()
print(json.dumps([said, seen]))
"""


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_forked_process_uses_its_own_or_is_refused_and_ends(
    engine: str, tiny_bundle: Path, video: Path, tmp_path: Path
) -> None:
    if not engine_class(engine).available():
        pytest.skip(f"needs {engine}, which is not installed")
    pytest.importorskip("uvicorn")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, engine, str(tiny_bundle), str(video), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    said, seen = json.loads(done.stdout)
    assert {name: code for name, (_, code) in said.items() if code != 7} == {}
    answers = {name: answer for name, (answer, _) in said.items()}
    assert {name for name, answer in answers.items() if answer is True} == {
        "a labeller",
        "its streams",
        "an encoder of its own",
    }
    assert {name for name, answer in answers.items() if answer is None} == {"nothing", "closing", "the end of a block"}
    assert {name for name, answer in answers.items() if "before" in str(answer)} == {
        "an encoder",
        "a batch under way",
        "a stream under way",
        "a stream",
        "a camera",
        "a camera's stream",
    }
    # What the parent was doing it does to its end.
    assert seen == list(range(40))
    assert len((tmp_path / "labels.jsonl").read_text().splitlines()) == 40
