"""Numbers that no option means, and addresses that are none, are refused in a sentence before anything is done."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from edgeclip.cli import main
from edgeclip.errors import InputError
from edgeclip.evaluation.bench.bench import BenchOptions
from edgeclip.runtime.engines.base import check_threads, usable_cores
from edgeclip.runtime.images import write_image
from edgeclip.runtime.sinks.files import JsonlSink
from edgeclip.runtime.stream import StreamOptions

LABEL = ("label", "BUNDLE", "PICTURE")
BENCH = ("bench", "BUNDLE")
HUGE = "9" * 40


@pytest.mark.parametrize(
    "words",
    [
        (*LABEL, "--threads", "100000"),
        (*LABEL, "--threads", HUGE),
        (*LABEL, "--jsonl", "FOLDER/a.jsonl", "--jsonl-rotate-mb", "inf"),
        (*LABEL, "--jsonl", "FOLDER/a.jsonl", "--jsonl-rotate-mb", "nan"),
        (*LABEL, "--jsonl", "FOLDER/a.jsonl", "--jsonl-rotate-mb", "1e300"),
        (*LABEL, "--jsonl", "FOLDER/a.jsonl", "--jsonl-rotate-mb", "1e-300"),
        (*LABEL, "--limit", HUGE),
        (*LABEL, "--top", "-" + HUGE),
        (*LABEL, "--loop", HUGE),
        (*LABEL, "--dwell", "nan"),
        (*LABEL, "--smooth", "inf"),
        (*LABEL, "--gate", "1e300"),
        (*LABEL, "--gate", "5", "--gate-refresh", "inf"),
        (*LABEL, "--enter", "nan"),
        (*LABEL, "--unknown-below", "nan"),
        (*LABEL, "--tiles", f"{HUGE}x1"),
        (*LABEL, "--webhook", "http://[::1"),
        (*LABEL, "--webhook", f"http://host:{HUGE}/"),
        (*LABEL, "--mqtt", "mqtt://[::1"),
        (*LABEL, "--mqtt", "mqtt://host:99999999/x"),
        (*LABEL, "--prometheus", "[::1:" + HUGE),
        (*LABEL, "--prometheus", "[::1"),
        (*LABEL, "--prometheus", "::1]:80"),
        (*LABEL, "--prometheus", "[localhost]:80"),
        (*LABEL, "--prometheus", "a host:80"),
        (*LABEL, "--web", "--web-address", "http://[::1:" + HUGE),
        (*LABEL, "--web", "--web-address", "[::1"),
        (*LABEL, "--web", "--web-address", "[::1:80"),
        (*LABEL, "--web", "--web-address", "1:2:3:80"),
        (*LABEL, "--web", "--web-address", "host:70000"),
        (*BENCH, "--frame", "99999x99999"),
        (*BENCH, "--frame", "²x²"),
        (*BENCH, "--frame", f"{HUGE}x1"),
        (*BENCH, "--batches", "99999999999"),
        (*BENCH, "--batches", "9" * 5000),
        (*BENCH, "--threads", "100000"),
        (*BENCH, "--threads", "0"),
        (*BENCH, "--seconds", "inf"),
        (*BENCH, "--seconds", "nan"),
        (*BENCH, "--rounds", "99999999"),
        (*BENCH, "--seed", "-1"),
        ("calibrate", "images", "BUNDLE", "PICTURE", "-o", "FOLDER/c", "--every", "nan"),
        ("calibrate", "images", "BUNDLE", "PICTURE", "-o", "FOLDER/c", "--seed", "-1"),
        ("calibrate", "images", "BUNDLE", "PICTURE", "-o", "FOLDER/c", "--count", HUGE),
    ],
    ids=lambda words: " ".join(word[:12] for word in words[1:]),
)
def test_a_number_that_cannot_be_meant_is_refused_at_once(
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
) -> None:
    write_image(tmp_path / "a.png", np.zeros((32, 32, 3), np.uint8))
    there = {"BUNDLE": str(tiny_bundle), "PICTURE": str(tmp_path / "a.png")}
    folder = tmp_path / "out"
    folder.mkdir()
    words = tuple(there.get(word, word).replace("FOLDER", str(folder)) for word in words)
    monkeypatch.setattr(sys, "argv", ["edgeclip", *words])
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        main()
    signal.signal(signal.SIGTERM, before)
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert said.startswith("error: expected ")
    assert len(said) < 500
    assert not list(folder.iterdir())


def test_threads_are_bounded_by_the_cores() -> None:
    check_threads(None)
    check_threads(4 * usable_cores())
    with pytest.raises(InputError, match="cores"):
        check_threads(1000 * usable_cores())


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), 1e-9, 1e300])
def test_a_size_to_rotate_at_is_a_size(tmp_path: Path, value: float) -> None:
    with pytest.raises(InputError, match="rotate"):
        JsonlSink(tmp_path / "a.jsonl", rotate_mb=value)


@pytest.mark.parametrize(
    "option",
    [{"batch": 10**9}, {"parallel": 10**6}, {"wait_ms": float("inf")}, {"wait_ms": float("nan")}, {"top_k": 0}],
)
def test_a_streams_options_are_bounded(option: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(option))):
        StreamOptions(**option)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "option",
    [
        {"frame": (10**6, 10**6)},
        {"batches": (10**9,)},
        {"rounds": 10**9},
        {"seconds": float("inf")},
        {"warm_up_s": float("inf")},
        {"threads": (10**6,)},
    ],
)
def test_a_benchmarks_options_are_bounded(option: dict[str, object]) -> None:
    with pytest.raises(InputError):
        BenchOptions(**option)  # type: ignore[arg-type]
