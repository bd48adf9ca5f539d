"""Accuracy is counted as its definition says, and the machine it was measured on is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import top_k_accuracy_score

from edgeclip import Bundle, load_templates
from edgeclip.calibration.images import crops, sample_images
from edgeclip.devices.machine.probe import describe_machine, summary
from edgeclip.errors import InputError, SourceError
from edgeclip.evaluation.accuracy.zeroshot import evaluate_folder
from edgeclip.evaluation.data.class_sets import class_prompts
from edgeclip.evaluation.statistics.metrics import true_class_ranks, wilson_interval
from edgeclip.runtime.images import read_image
from tests.conftest import shared


def test_ranks_give_scikit_learns_top_k() -> None:
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((300, 12)).astype(np.float32)
    truth = rng.integers(0, 12, 300)
    ranks = true_class_ranks(scores, truth)
    for k in (1, 5):
        assert (ranks < k).mean() == pytest.approx(top_k_accuracy_score(truth, scores, k=k, labels=range(12)))


def test_a_tie_is_no_hit() -> None:
    assert true_class_ranks(np.ones((1, 3), np.float32), np.array([0])).tolist() == [2]


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [(8, 10, 0.490, 0.943), (0, 10, 0.0, 0.278), (10, 10, 0.722, 1.0), (500, 1000, 0.469, 0.531)],
)
def test_the_interval_is_wilsons(hits: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(hits, n) == pytest.approx((low, high), abs=1e-3)


def test_class_names_come_from_folders_or_a_file(tmp_path: Path) -> None:
    assert [item.names for item in class_prompts(["wild_cat", "cup"], None)] == [("wild cat",), ("cup",)]
    names = tmp_path / "names.json"
    names.write_text(json.dumps({"wild_cat": ["wild cat", "lynx"], "cup": "mug"}))
    assert [(item.label, item.names) for item in class_prompts(["wild_cat", "cup"], names)] == [
        ("wild_cat", ("wild cat", "lynx")),
        ("cup", ("mug",)),
    ]
    with pytest.raises(InputError, match="names no class for the folders dog"):
        class_prompts(["dog"], names)


@pytest.fixture
def labelled(photographs_dir: Path, tmp_path: Path) -> Path:
    """Three classes of one photograph each, one of them damaged beside a good one."""
    root = tmp_path / "labelled"
    for name, photograph in (("cat", "chelsea.jpg"), ("motorcycle", "motorcycle.png"), ("space_rocket", "rocket.jpg")):
        (root / name).mkdir(parents=True)
        shutil.copy(photographs_dir / photograph, root / name)
    (root / "cat" / "damaged.jpg").write_bytes(b"hello")
    return root


@pytest.mark.parametrize("variant", ["fp32", "int8-cpu"])
def test_the_starter_knows_a_cat_from_a_motorcycle(labelled: Path, variant: str) -> None:
    result = evaluate_folder(Bundle.open("starter"), labelled, templates=load_templates("simple"), variant=variant)
    assert (result.top1, result.top5, result.n, result.failed, result.classes) == (1.0, 1.0, 3, 1, 3)
    assert result.machine["cores_usable"] >= 1
    (failure,) = result.failures
    assert failure.startswith(f"expected an image, got {labelled / 'cat' / 'damaged.jpg'}")


def test_the_starter_beats_the_stand_in() -> None:
    """The figures to beat stand in ../shared/data/README.md, for EfficientNet-Lite0: .461 and .369."""
    bundle, templates = Bundle.open("starter"), load_templates("simple")
    caltech = evaluate_folder(bundle, shared("caltech101"), templates=templates)
    cifar = evaluate_folder(bundle, shared("cifar10-test"), templates=templates)
    assert caltech.n == 1414
    assert caltech.top1 > 0.461
    assert cifar.top1 > 0.369


def test_int8_of_the_starter_loses_next_to_nothing() -> None:
    bundle, templates = Bundle.open("starter"), load_templates("simple")
    caltech = evaluate_folder(bundle, shared("caltech101"), templates=templates, against="int8-cpu")
    assert caltech.difference is not None
    assert caltech.difference.n == caltech.n
    assert caltech.difference.points <= 0.3


def test_two_variants_are_compared_on_the_same_images(labelled: Path) -> None:
    bundle, templates = Bundle.open("starter"), load_templates("simple")
    seen: list[tuple[int, int]] = []
    result = evaluate_folder(
        bundle,
        labelled,
        templates=templates,
        variant="int8-cpu",
        against="fp32",
        progress=lambda done, total: seen.append((done, total)),
    )
    assert (result.variant, result.against) == ("int8-cpu", "fp32")
    assert result.difference is not None
    assert (result.difference.points, result.difference.n) == (0, 3)
    assert seen[-1] == (8, 8)


def test_unusable_folders_are_refused(labelled: Path, tmp_path: Path) -> None:
    bundle, templates = Bundle.open("starter"), ("{}",)
    (labelled / "empty").mkdir()
    with pytest.raises(SourceError, match="expected images in"):
        evaluate_folder(bundle, labelled, templates=templates)
    with pytest.raises(SourceError, match="no such file or folder"):
        evaluate_folder(bundle, tmp_path / "absent", templates=templates)


def test_calibration_images_are_a_seeded_sample(photographs_dir: Path, tmp_path: Path) -> None:
    first, again = sample_images(photographs_dir, 3), sample_images(photographs_dir, 3)
    assert len(first) == 3
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(sample_images(photographs_dir, 99)) == 5
    with pytest.raises(SourceError, match="got none"):
        sample_images(tmp_path, 3)


def test_crops_lie_inside_their_image(photographs_dir: Path) -> None:
    image = read_image(photographs_dir / "coffee.jpg")
    for view in crops([image, image[:1, :1]], 20, seed=3):
        assert 1 <= view.shape[0] <= image.shape[0]
        assert 1 <= view.shape[1] <= image.shape[1]


def test_a_recorded_jetson_is_described(tmp_path: Path) -> None:
    """Files as L4T 36.4 writes them on an Orin Nano."""
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "etc").mkdir()
    (tmp_path / "proc/device-tree/model").write_text(
        "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0"
    )
    (tmp_path / "etc/nv_tegra_release").write_text("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic\n")
    (tmp_path / "proc/meminfo").write_text("MemTotal:        7802160 kB\nMemFree: 1 kB\n")
    described = describe_machine(tmp_path)
    assert described["board"] == "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
    assert described["l4t"] == "R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic"
    assert described["memory_gib"] == 7.4
    assert "cpu" not in described
    assert summary(described).startswith("NVIDIA Jetson Orin Nano")


def test_a_machine_with_a_gpu_is_described_by_its_card_and_driver(tmp_path: Path) -> None:
    """Files as driver 580 writes them; another card or driver is another machine to whoever reads a timing."""
    card = tmp_path / "proc/driver/nvidia/gpus/0000:01:00.0"
    card.mkdir(parents=True)
    (card / "information").write_text("Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 24\n")
    (tmp_path / "proc/driver/nvidia/version").write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build\n"
    )
    described = describe_machine(tmp_path)
    assert (described["gpu"], described["nvidia_driver"]) == ("NVIDIA H100 80GB HBM3", "580.159.04")
    assert "NVIDIA H100 80GB HBM3, driver 580.159.04" in summary(described)


def test_versions_include_those_of_the_gpus_build_of_onnx_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeclip.devices.machine.probe._installed_version", {"onnxruntime-gpu": "1.31.1"}.get)
    described = describe_machine()
    assert described["onnxruntime-gpu"] == "1.31.1"
    assert summary(described).endswith("onnxruntime-gpu 1.31.1")


def test_this_machine_is_described() -> None:
    described = describe_machine()
    assert json.loads(json.dumps(described)) == described
    assert float(described["memory_gib"]) > 0.5
    assert str(described["onnxruntime"]) in summary(described)
