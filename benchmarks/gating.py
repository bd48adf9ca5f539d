"""Frames that scene gating lets through, and how often the labels agree with those of encoding every frame.

    python benchmarks/gating.py VIDEO … [--bundle starter] [--table NAME] [--variant int8-cpu] [--thresholds 4,8,16]

Every frame is encoded once; each threshold then goes over the same embeddings. A bundle without a table is scored with
random rows. Also prints how long the gate takes a frame, and the machine.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import av
import numpy as np

from edgeclip import Bundle, PromptTable, make_classes
from edgeclip.devices.machine.probe import describe_machine, summary
from edgeclip.prompts import unit_rows
from edgeclip.runtime.encoder import ImageEncoder
from edgeclip.runtime.gate import SceneGate
from edgeclip.runtime.scoring import Scorer
from edgeclip.spec import PreprocessSpec

BATCH = 16


class CellsOnly(SceneGate):
    """Computes cells once, so that several thresholds can be tried on them."""

    def cells_of(self, frame: av.VideoFrame) -> np.ndarray:
        """The averages that the gate compares."""
        return self._cells(frame)[1]


def read(path: Path, encoder: ImageEncoder, spec: PreprocessSpec) -> tuple[np.ndarray, np.ndarray, float]:
    """(embeddings (N, D), cells (N, h, w), gate time in ms a frame) of a video."""
    gate, embeddings, cells, took, batch = CellsOnly(spec=spec), [], [], [], []
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for frame in container.decode(video=0):
            start = time.perf_counter()
            gate.changed(frame)
            took.append(time.perf_counter() - start)
            cells.append(gate.cells_of(frame))
            batch.append(frame)
            if len(batch) == BATCH:
                embeddings.append(encoder.encode(batch))
                batch.clear()
    if batch:
        embeddings.append(encoder.encode(batch))
    return np.concatenate(embeddings), np.stack(cells), float(np.median(took)) * 1e3


def gated(cells: np.ndarray, labels: np.ndarray, threshold: float) -> tuple[int, float]:
    """(frames encoded, share of frames whose label is that of encoding every frame)."""
    from edgeclip.runtime.gate import difference

    last, encoded, agreed = 0, 1, 1
    for index in range(1, len(cells)):
        if difference(cells[index], cells[last]) > threshold:
            last, encoded = index, encoded + 1
        agreed += bool(labels[index] == labels[last])
    return encoded, agreed / len(cells)


def random_table(bundle: Bundle, classes: int = 1000) -> PromptTable:
    """A table of random rows."""
    rows = np.random.default_rng(0).standard_normal((classes, bundle.manifest.encoder.embedding_dim))
    names = make_classes([f"class {i}" for i in range(classes)])
    return PromptTable("random", names, unit_rows(rows.astype(np.float32)), ("{}",), bundle.manifest.model.id)


def main() -> None:
    """Print one table a video."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("videos", nargs="+", type=Path)
    parser.add_argument("--bundle", default="starter")
    parser.add_argument("--table")
    parser.add_argument("--variant", default="int8-cpu")
    parser.add_argument("--thresholds", default="1,2,4,6,8,10,12,14,16,18,20,24,32")
    given = parser.parse_args()
    bundle = Bundle.open(given.bundle)
    table = bundle.table(given.table) if bundle.manifest.tables else random_table(bundle)
    scorer = Scorer(table, bundle.manifest.encoder)
    with ImageEncoder(bundle, given.variant) as encoder:
        for path in given.videos:
            embeddings, cells, gate_ms = read(path, encoder, bundle.manifest.encoder.preprocess)
            labels = scorer.scores(embeddings).argmax(axis=1)
            changes = int((labels[1:] != labels[:-1]).sum())
            print(f"{path.name}: {len(labels)} frames, {changes} changes of label, gate {gate_ms:.3f} ms a frame")
            print(f"{'threshold':>12}{'encoded':>10}{'fewer':>8}{'agreement':>12}")
            for threshold in map(float, given.thresholds.split(",")):
                encoded, agreement = gated(cells, labels, threshold)
                print(f"{threshold:12g}{encoded:10}{len(labels) / encoded:7.2f}x{agreement:12.2%}")
    print(f"{given.bundle} {given.variant}, table {table.name}, on {summary(describe_machine())}")


if __name__ == "__main__":
    main()
