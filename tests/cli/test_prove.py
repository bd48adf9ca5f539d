"""``edgeclip prove`` prints every limit of every variant and engine; what a proof lacks is told wherever it counts."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from edgeclip import Bundle
from edgeclip.cli.common import console
from edgeclip.engine_list import EngineEntry
from edgeclip.runtime.images import write_image
from edgeclip.runtime.proof.basis import FEWEST
from tests.conftest import Run, add_variant, edit_weight, without_golden


@pytest.fixture(autouse=True)
def _quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine_list: dict[str, EngineEntry]) -> None:
    monkeypatch.setenv("EDGECLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(console, "width", 200)
    for name in ("_WARM_UP_S", "_MEASURE_S"):
        monkeypatch.setattr(f"edgeclip.runtime.proof.proof.{name}", 0.01)
    for name in set(engine_list) - {"onnxruntime"}:
        del engine_list[name]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Twenty pictures of coarse noise, no two alike, one of them twice, and a file that is none."""
    folder = tmp_path / "site"
    folder.mkdir()
    for number in range(20):
        small = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
        write_image(folder / f"{number:02}.png", small.repeat(8, axis=0).repeat(8, axis=1))
    (folder / "again.png").write_bytes((folder / "00.png").read_bytes())
    (folder / "[red]torn.jpg").write_bytes(b"hello")
    return folder


def test_a_site_proof_is_printed_limit_by_limit_and_counts_from_then_on(
    tiny_bundle: Path, site: Path, cli: Run
) -> None:
    assert (
        f"proofs of  fp32: provisional: on 4 stand-in photographs: edgeclip prove {tiny_bundle}"
        in (cli("inspect", tiny_bundle)[1])
    )
    code, out, _ = cli("prove", tiny_bundle, "--images", site)
    lines = [line.rstrip() for line in out.splitlines()]
    assert code == 0, out
    assert lines[0] == "20 of 22 images used, 1 cannot be decoded, 1 the same as another"
    assert lines[1].startswith("  [red]torn.jpg: ")
    assert re.fullmatch(
        r"fp32 on onnxruntime: agrees with fp32, \d+\.\d ms an image; onnxruntime .* threads?", lines[2]
    )
    limits = [line.strip() for line in lines[4:11]]
    assert [re.split(r" at (?:least|most) |  ", line)[0].strip() for line in limits] == [
        "cosine",
        "mean-centred cosine",
        "mean of the mean-centred cosine",
        "top-1 agreement",
        "top-1 agreement where FP32 decides clearly",
        "mean margin loss",
        "margin loss",
    ]
    assert all(line.endswith(" checked") for line in limits)
    assert lines[-1] == "  proved on 20 photographs of this site"
    assert "fp32: on 20 photographs of this site" in cli("inspect", tiny_bundle)[1]
    said = cli("label", tiny_bundle, site / "00.png")[2].splitlines()[0]
    assert said.startswith("fp32 on onnxruntime: ")
    assert "provisional" not in said


def test_what_disagrees_ends_with_1_and_says_which_limit(tiny_bundle: Path, site: Path, cli: Run) -> None:
    add_variant(tiny_bundle, "shuffled", edit_weight("projection", lambda weight: weight[::-1]))
    asked = ("prove", tiny_bundle, "--images", site, "--engine", "onnxruntime")
    code, out, _ = cli(*asked, "--variant", "shuffled", "--variant", "fp32")
    assert code == 1
    assert re.search(r"^ +cosine +at least 0\.9995 +-?0\.\d+ +failed", out, re.MULTILINE)
    assert "not proved: shuffled on onnxruntime disagrees with fp32: expected a cosine of" in out
    assert "fp32 on onnxruntime: agrees with fp32" in out
    assert cli(*asked, "--variant", "fp32")[0] == 0


def help_of(cli: Run, verb: str) -> str:
    return " ".join(cli(verb, "--help")[1].replace("│", " ").split())


def test_few_pictures_and_no_table_are_told_and_what_could_not_be_checked_with_why(
    tiny_bundle: Path, site: Path, cli: Run
) -> None:
    for name in [f"{number:02}.png" for number in range(1, 20)]:
        (site / name).unlink()
    code, out, _ = cli("prove", tiny_bundle, "--images", site)
    assert code == 0
    assert "It is 0 also where what agrees is provisional, which is told." in help_of(cli, "prove")
    assert "provisionally proved is told as that, and the exit code is 0; it is 2 where" in help_of(cli, "export")
    assert "got 1: this is provisional" in out
    assert re.search(r"could not be checked, as one image has no others to be held beside: mean-centred cosine", out)
    assert "  provisional: on 1 photograph of this site, fewer than" in out
    said = cli("label", tiny_bundle, site / "00.png")[2].splitlines()[0]
    assert "could not be checked: mean-centred cosine" in said
    assert f"fewer than {FEWEST}: edgeclip prove {tiny_bundle} --images FOLDER" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--images", "absent"), "got no such folder"),
        (("--images", "site", "--stored"), "got both"),
        (("--count", 0), "expected count of at least 1"),
        (("--variant", "int4"), "no variant 'int4'"),
        (("--engine", "abacus"), "expected an engine out of"),
    ],
)
def test_what_cannot_be_asked_for_is_one_sentence(
    tiny_bundle: Path, site: Path, cli: Run, monkeypatch: pytest.MonkeyPatch, words: tuple[object, ...], said: str
) -> None:
    monkeypatch.chdir(site.parent)
    code, out, err = cli("prove", tiny_bundle, *words)
    assert (code, out) == (2, "")
    assert said in err


def test_inspect_says_that_nothing_is_proved(tiny_bundle: Path, cli: Run) -> None:
    bundle: Bundle = without_golden(tiny_bundle)
    out = cli("inspect", bundle.path)[1]
    assert f"nothing: there are no golden images; edgeclip prove {bundle.path} --images FOLDER proves it" in out
