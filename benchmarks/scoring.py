"""Time to score embeddings against large prompt tables, as a share of encoding a frame; stall of a table's hot swap.

    python benchmarks/scoring.py [--bundle FILE --variant fp32 --engine onnxruntime] [--rows 1000,10000,100000]

Tables have random rows of the bundle's width (512 for ViT-B-32). ``a frame`` is scoring and top-5 of one embedding,
``share`` that against one encoded frame, measured in the same run. The stall is how much longer the steps of a loop
that scores every 2 ms take while another thread loads and swaps a table twenty times a second. Prints the machine.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from edgeclip import Bundle, PromptTable, make_classes
from edgeclip.devices.machine.probe import describe_machine, summary
from edgeclip.prompts import unit_rows
from edgeclip.runtime.encoder import ImageEncoder
from edgeclip.runtime.scoring import Scorer
from edgeclip.runtime.tables import TableSet

BATCHES = (1, 8, 16)
REPEATS = 15
_PERIOD_S, _PAUSE_S, _PHASE_S = 0.002, 0.05, 5.0


def timed_ms(function: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median wall time of a call, milliseconds, after one that is not counted."""
    function()
    took = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        took.append(time.perf_counter() - start)
    return float(np.median(took)) * 1e3


def random_table(bundle: Bundle, count: int, seed: int = 0) -> PromptTable:
    """A table of random rows that fits a bundle."""
    rows = np.random.default_rng(seed).standard_normal((count, bundle.manifest.encoder.embedding_dim), np.float32)
    names = make_classes([f"class {i}" for i in range(count)])
    return PromptTable("random", names, unit_rows(rows), ("{}",), bundle.manifest.model.id)


def print_scoring(bundle: Bundle, encode: Callable[[], object], counts: list[int]) -> None:
    """One line a table size and batch, each beside an encode timed just then."""
    rng = np.random.default_rng(1)
    print(f"{'rows':>10}{'batch':>7}{'scores ms':>12}{'top-5 ms':>10}{'a frame ms':>12}{'encode ms':>11}{'share':>9}")
    for count in counts:
        scorer = Scorer(random_table(bundle, count), bundle.manifest.encoder)
        for batch in BATCHES:
            embeddings = unit_rows(rng.standard_normal((batch, bundle.manifest.encoder.embedding_dim), np.float32))
            encode_ms = timed_ms(encode)
            scores_ms = timed_ms(lambda s=scorer, e=embeddings: s.scores(e))
            row = scorer.scores(embeddings)[0]
            top_ms = timed_ms(lambda s=scorer, r=row: s.top(r, 5))
            frame_ms = scores_ms / batch + top_ms
            times = f"{scores_ms:12.3f}{top_ms:10.3f}{frame_ms:12.3f}{encode_ms:11.1f}"
            print(f"{count:10,}{batch:7}{times}{frame_ms / encode_ms:9.1%}")


def print_stall(bundle: Bundle, count: int) -> None:
    """How long a loop is held up by swaps of a table of so many rows."""
    table = random_table(bundle, count)
    tables = TableSet(bundle, [table])
    embedding = unit_rows(np.ones((1, bundle.manifest.encoder.embedding_dim), np.float32))
    done = threading.Event()
    took: dict[str, list[float]] = {"quiet": [], "swapping": []}
    now = "quiet"

    def loop() -> None:
        with threadpool_limits(limits=1, user_api="blas"):  # as a stream has it
            while not done.wait(_PERIOD_S):
                phase, start = now, time.perf_counter()
                (scorer,) = tables.current()
                scorer.scores(embedding)
                took[phase].append((time.perf_counter() - start) * 1e3)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.safetensors"
        table.save(path)
        gc.collect()
        gc.freeze()  # as `edgeclip label` does
        thread = threading.Thread(target=loop)
        thread.start()
        time.sleep(_PHASE_S)
        now, swaps, until = "swapping", 0, time.perf_counter() + _PHASE_S
        while time.perf_counter() < until:
            time.sleep(_PAUSE_S)
            tables.replace("random", PromptTable.load(path))
            swaps += 1
        done.set()
        thread.join()
    figures = "; ".join(
        f"{phase} p50 {np.median(ms):.3f}, p99 {np.percentile(ms, 99):.3f}, most {max(ms):.3f} ({len(ms)} steps)"
        for phase, ms in took.items()
    )
    print(f"{count:,} rows, swapped {swaps} times, ms a step of the loop: {figures}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bundle", default="starter")
    parser.add_argument("--variant", default="fp32")
    parser.add_argument("--engine", default="onnxruntime")
    parser.add_argument("--rows", default="1000,10000,100000")
    given = parser.parse_args()
    bundle = Bundle.open(given.bundle)
    spec = bundle.manifest.encoder
    image = np.zeros((1, 3, spec.preprocess.height, spec.preprocess.width), np.float32)
    print(f"{bundle.manifest.model.name} {given.variant} on {given.engine}")
    counts = [int(rows) for rows in given.rows.split(",")]
    with ImageEncoder(bundle, given.variant, engine=given.engine) as encoder:
        print_scoring(bundle, lambda: encoder.encode_preprocessed(image), counts)
    for rows in counts:
        print_stall(bundle, rows)
    print(f"on {summary(describe_machine())}")


if __name__ == "__main__":
    main()
