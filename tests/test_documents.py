"""Documents from outside, whatever reads them: one that is too deep, too long or not of its form is refused in a
sentence of the reader's own type."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeclip import Bundle
from edgeclip.calibration.choice.chosen_set import RECORD, FootageSample, read_record, read_sample, write_sample
from edgeclip.devices.doctor.examine import RECORD as DOCTOR_RECORD
from edgeclip.devices.doctor.examine import examine
from edgeclip.devices.plan import cost
from edgeclip.documents import decode_json, decode_yaml, read_bytes, read_text, read_yaml
from edgeclip.errors import BundleError, EdgeclipError, InputError, ManifestError, SourceError
from edgeclip.evaluation.bench.records import load_result
from edgeclip.evaluation.decisions.data import open_reviewed
from edgeclip.evaluation.robustness.report import read_report
from edgeclip.evaluation.tradeoff.records import load_tradeoff
from edgeclip.export.int8.quantization import read_recipe
from edgeclip.files import keep_json, kept_json
from edgeclip.manifest import MANIFEST, read_manifest
from edgeclip.runtime.engines.tensorrt import parse_layers
from edgeclip.runtime.proof import choose
from edgeclip.runtime.proof.proof import Proof
from edgeclip.runtime.regions import load_regions

DEEP = 100_000


def named(name: str, read: Callable[[Path], object]) -> Callable[[Path], object]:
    """A reader of a folder's file of that name, to be called with the file."""

    def reader(path: Path) -> object:
        target = path.parent / name
        target.parent.mkdir(exist_ok=True)
        path.rename(target)
        return read(path.parent)

    return reader


def recommended(path: Path) -> object:
    bundle = Bundle.open(path.parent / "tiny.edgeclip")
    bundle.add_file(choose.FILE, path.read_bytes())
    return choose.recommendations(bundle)


READERS: dict[str, tuple[Callable[[Path], object], type[EdgeclipError]]] = {
    "manifest": (named(MANIFEST, read_manifest), ManifestError),
    "regions": (load_regions, InputError),
    "calibration set": (named(RECORD, read_record), SourceError),
    "recommendation": (recommended, BundleError),
    "cost": (named(cost.FILE, cost.load_cost), BundleError),
    "benchmark": (load_result, InputError),
    "tradeoff": (load_tradeoff, InputError),
    "robustness": (read_report, InputError),
    "reviewed lines": (open_reviewed, InputError),
    "quantization recipe": (read_recipe, InputError),
    "doctor's record": (named(DOCTOR_RECORD, examine), InputError),
}
SPOILED = {
    "arrays in arrays": b"[" * DEEP + b"]" * DEEP,
    "objects in objects": b'{"x":' * DEEP + b"1" + b"}" * DEEP,
    "depth in a field": b'{"manifest":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "half a letter": b'{"name": "\\ud800"}',
    "no UTF-8": b'{"name": "\xff\xfe"}',
    "a number beyond all": b'{"manifest": 1e999, "width": 1e999}',
    "5,000 digits": b"9" * 5000,
    "nothing": b"",
    "null": b"null",
    "a null byte": b"\0",
}


@pytest.mark.parametrize("content", SPOILED.values(), ids=SPOILED)
@pytest.mark.parametrize("reader", READERS)
def test_a_spoiled_document_is_refused_in_its_readers_words(tiny_bundle: Path, reader: str, content: bytes) -> None:
    path = tiny_bundle.parent / "document.json"
    path.write_bytes(content)
    read, error = READERS[reader]
    with pytest.raises(error) as refused:
        read(path)
    assert len(str(refused.value)) < 600


@pytest.mark.parametrize("content", SPOILED.values(), ids=SPOILED)
def test_what_was_kept_and_is_spoiled_is_as_if_it_were_not_there(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "kept.json").write_bytes(content)
    assert kept_json(tmp_path / "kept.json", Proof) is None
    assert kept_json(tmp_path, Proof) is None


def test_what_was_kept_and_altered_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    place = tmp_path / "kept.json"
    keep_json(place, {"share": 0.25, "of": "ä"})
    assert kept_json(place, dict) == {"share": 0.25, "of": "ä"}
    assert kept_json(place, list) is None  # another version's
    place.write_bytes(place.read_bytes().replace(b"0.25", b"0.75"))
    assert kept_json(place, dict) is None


def test_layers_that_are_nested_deeply_are_none() -> None:
    from edgeclip.errors import EngineError

    with pytest.raises(EngineError, match="no list of layers"):
        parse_layers('{"Layers": ' + "[" * DEEP + "]" * DEEP + "}")


def test_a_document_has_a_largest_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "regions.json"
    path.write_text(json.dumps([{"name": "door", "box": [0.1, 0.2, 0.5, 0.9]}]))
    assert load_regions(path)[0].name == "door"
    monkeypatch.setenv("EDGECLIP_MAX_DOCUMENT_BYTES", "40")
    with pytest.raises(InputError, match="EDGECLIP_MAX_DOCUMENT_BYTES"):
        load_regions(path)


def test_a_byte_order_mark_is_no_part_of_a_document(tmp_path: Path) -> None:
    path = tmp_path / "regions.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps([{"name": "door", "box": [0.1, 0.2, 0.5, 0.9]}]).encode())
    assert load_regions(path)[0].name == "door"


def laughs(form: str) -> str:
    """YAML of nine lines whose value has more than 9^8 parts."""
    return "l0: &l0 {x: [lol]}\n" + "".join(
        f"l{n}: &l{n} {form.format(', '.join([f'*l{n - 1}'] * 9))}\n" for n in range(1, 9)
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (laughs("[{}]"), "EDGECLIP_MAX_YAML_VALUES"),
        (laughs("{{<<: [{}]}}"), "EDGECLIP_MAX_YAML_VALUES"),
        ("&a [b, *a]", "an alias that stands for what it is in"),
        ("a: &a {b: [*a]}", "an alias that stands for what it is in"),
        ("- &l0 x\n" + "".join(f"- &l{n} [*l{n - 1}]\n" for n in range(1, 200)), "nested too deeply"),
        ("a: 1\nb: 2\na: 3", "got 'a' again in line 3"),
        ("x: {1: a, 0x1: b}", "got '0x1' again"),
        ("a: !!int ''", "not valid YAML"),
        ("a: !!bool maybe", "not valid YAML"),
    ],
)
def test_yaml_that_would_be_large_endless_or_poorer_is_refused(text: str, message: str) -> None:
    pytest.importorskip("yaml")
    with pytest.raises(InputError, match=message) as refused:
        decode_yaml(text, where="it")
    assert len(str(refused.value)) < 300


def test_yaml_that_says_a_thing_once_and_means_it_twice_is_read() -> None:
    pytest.importorskip("yaml")
    text = "base: &base {lr: 1, steps: [1, 2]}\nlong: {<<: *base, lr: 2}\nagain: [*base, *base]"
    base = {"lr": 1, "steps": [1, 2]}
    assert decode_yaml(text, where="it") == {"base": base, "long": base | {"lr": 2}, "again": [base, base]}
    assert decode_yaml("# nothing", where="it") is None


@pytest.mark.parametrize("text", ["- " * 20_000, "a: 2026-13-01", "\0", "a: &a [*a, *b]"])
def test_yaml_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    pytest.importorskip("yaml")
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(InputError):
        read_yaml(tmp_path / "a.yaml")


def test_what_is_read_from_text_may_hold_half_a_letter() -> None:
    with pytest.raises(InputError):
        decode_json('"\ud800"', str, where="it")


def test_text_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("caf\u00e9".encode("latin-1"))
    with pytest.raises(InputError, match="UTF-8"):
        read_text(tmp_path / "a.txt")


def rewritten(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a bundle's manifest as whoever spoils it on purpose would: its digest is right."""
    import hashlib

    envelope = json.loads((bundle / MANIFEST).read_text())
    change(envelope["manifest"])
    canonical = json.dumps(envelope["manifest"], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    envelope["sha256"] = hashlib.sha256(canonical.encode()).hexdigest()
    (bundle / MANIFEST).write_text(json.dumps(envelope))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("logit_scale", 1e300),
        ("logit_scale", 1e39),
        ("logit_scale", 1e-300),
        ("logit_scale", 0),
        ("logit_scale", -100),
        ("logit_scale", None),
        ("logit_bias", 1e300),
        ("logit_bias", -1e39),
        ("embedding_dim", 1 << 62),
        ("embedding_dim", 10**30),
        ("preprocess.mean", [1e300, 0, 0]),
        ("preprocess.mean", [0, 0]),
        ("preprocess.std", [1e-300, 1, 1]),
        ("preprocess.std", [1, 1e300, 1]),
        ("preprocess.std", [1, 1, -1]),
        ("preprocess.width", 1 << 40),
        ("preprocess.resize_to", 10**10),
    ],
)
def test_figures_that_no_score_comes_of_are_refused_when_a_bundle_is_opened(
    tiny_bundle: Path, name: str, value: object
) -> None:
    *above, last = name.split(".")

    def change(manifest: dict[str, Any]) -> None:
        place = manifest["encoder"]
        for part in above:
            place = place[part]
        place[last] = value

    rewritten(tiny_bundle, change)
    with pytest.raises(ManifestError, match=r"not a valid manifest"):
        Bundle.open(tiny_bundle)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("rows", lambda rows: rows * 1e30),
        ("rows", lambda rows: rows[0]),
        ("rows", lambda rows: rows.astype(np.float64)),
        ("rows", lambda rows: rows * np.nan),
        ("exposures", lambda exposures: exposures[:-1]),
        ("exposures", lambda exposures: exposures[:, 0]),
    ],
)
def test_a_sample_of_footage_that_is_none_is_refused(
    tmp_path: Path, name: str, change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]
) -> None:
    rows, exposures = np.eye(5, 16, dtype=np.float32), np.ones((5, 3), np.float32)
    write_sample(tmp_path, FootageSample(rows, exposures))
    np.testing.assert_array_equal(read_sample(tmp_path).rows, rows)
    spoiled = {"rows": rows, "exposures": exposures}
    spoiled[name] = change(spoiled[name])
    write_sample(tmp_path, FootageSample(**spoiled))
    with pytest.raises(SourceError, match="choose the images again"):
        read_sample(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"clean": []},
        {"corrupted": []},
        {"variants": []},
        {"clean": [{"top1": 1.5, "ci95": [0, 1]}]},
        {"clean": [{"top1": -1, "ci95": [0, 1]}]},
        {"clean": [{"top1": None, "ci95": [0, 1]}]},
    ],
)
def test_a_robustness_report_whose_accuracies_are_none_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    accuracy = {"top1": 0.5, "ci95": [0.4, 0.6]}
    report: dict[str, Any] = {
        **dict.fromkeys(("model_id", "data", "images_id"), "x"),
        **dict.fromkeys(("n", "unreadable", "classes", "seed", "suite"), 1),
        **{name: [] for name in ("severities", "clean_difference", "extra", "shifts", "templates")},
        "variants": ["fp32"],
        "clean": [accuracy],
        "corrupted": [accuracy],
        "corruptions": [{"name": "noise", "by_severity": [[accuracy]], "mean": [accuracy], "extra": []}],
        "machine": {},
    }
    path = tmp_path / "robustness.json"
    path.write_text(json.dumps(report))
    assert read_report(path).variants == ["fp32"]
    path.write_text(json.dumps(report | change))
    with pytest.raises(InputError, match="robustness run"):
        read_report(path)


def test_what_has_no_size_is_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGECLIP_MAX_DOCUMENT_BYTES", "1000")
    with pytest.raises(InputError, match="at most 1,000 bytes in a JSON, YAML or text file, got 1,001 in /dev/zero"):
        read_bytes(Path("/dev/zero"))
