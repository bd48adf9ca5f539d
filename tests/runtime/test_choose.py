"""Of what was shown to agree with FP32 on this machine the fastest is taken, or what a trade-off recommends."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from rich.console import Console

from edgeclip import Bundle
from edgeclip.errors import (
    BundleError,
    EngineError,
    InputError,
    IntegrityError,
    MissingExtraError,
    ParityError,
    VariantError,
)
from edgeclip.manifest import read_manifest, write_manifest
from edgeclip.runtime.proof.basis import FEWEST, Basis, basis_of
from edgeclip.runtime.proof.choose import (
    FILE,
    Choice,
    Recommendation,
    _best,
    add_recommendation,
    candidates,
    choose,
    lacking,
    recommendations,
    recommended_here,
    remedy,
    this_machine,
)
from edgeclip.runtime.proof.golden import FILE as GOLDEN
from edgeclip.runtime.proof.proof import Proof
from edgeclip.runtime.sinks.terminal import print_choice
from tests.conftest import CountingEngine, add_variant, edit_weight, without_golden
from tests.runtime.test_golden import flip, golden_set
from tests.runtime.test_kept_proofs import busy
from tests.runtime.test_parity import GOOD

pytestmark = pytest.mark.usefixtures("cache", "counting")
SHUFFLED = edit_weight("projection", lambda weight: weight[::-1])
NAN = edit_weight("projection", lambda weight: weight * np.nan)


# The gate on the device


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        ("shuffled", SHUFFLED),
        ("half", edit_weight("kernel", lambda weight: np.where(np.arange(8)[:, None, None, None] < 4, weight, 0))),
    ],
)
def test_the_device_passes_over_a_broken_variant_and_says_why(
    fp16_bundle: Path, counting: list[str], name: str, edit: Callable[[Any], None]
) -> None:
    bundle = add_variant(fp16_bundle, name, edit)
    choice = choose(bundle)
    assert choice.variant in {"fp32", "fp16"}
    assert {(proof.variant, proof.engine) for proof in choice.proofs} == {
        ("fp32", "onnxruntime"),
        ("fp32", "counting"),
        ("fp16", "counting"),
    }
    ((variant, engine, reason),) = choice.refused
    assert (variant, engine) == (name, "counting")
    assert re.search(r"a .*cosine of at least 0\.99.*, got -?0\.\d+", reason)
    with pytest.raises(ParityError, match=f"no variant is proved on this machine: {name} on onnxruntime: a "):
        choose(bundle, variant=name, engine="onnxruntime")


def test_the_device_passes_over_a_variant_that_is_not_a_number(fp16_bundle: Path, counting: list[str]) -> None:
    bundle = add_variant(fp16_bundle, "nan", NAN)
    choice = choose(bundle)
    assert choice.variant in {"fp32", "fp16"}
    assert [(variant, engine) for variant, engine, _ in choice.refused] == [("nan", "counting")]
    assert "not finite" in choice.refused[0][2]
    with pytest.raises(EngineError, match=r"no variant is proved .* nan on counting: .*not finite"):
        choose(bundle, variant="nan")


def test_when_all_variants_are_wrong_none_runs(fp16_bundle: Path, counting: list[str]) -> None:
    add_variant(fp16_bundle, "fp16", SHUFFLED)
    bundle = add_variant(fp16_bundle, "fp32", SHUFFLED, precision="fp32")
    assert [variant.name for variant in bundle.manifest.variants] == ["fp16", "fp32"]
    with pytest.raises(ParityError, match=r"fp32 on onnxruntime: .*fp16 on counting: .*fp32 on counting: "):
        choose(bundle)


def test_the_limits_are_those_of_the_variants_precision(fp16_bundle: Path, counting: list[str]) -> None:
    """Four bits of mantissa are too few for fp16 and enough for int8."""

    def coarse(weight: np.ndarray) -> np.ndarray:
        mantissa, exponent = np.frexp(weight)
        return np.ldexp(np.round(mantissa * 16) / 16, exponent).astype(np.float32)

    for name, precision in (("coarse-fp16", "fp16"), ("coarse-int8", "int8")):
        bundle = add_variant(fp16_bundle, name, edit_weight("projection", coarse), precision=precision)
    choice = choose(bundle, engine="counting")
    assert [variant for variant, _, _ in choice.refused] == ["coarse-fp16"]
    assert {proof.variant for proof in choice.proofs} == {"fp32", "fp16", "coarse-int8"}


def test_an_altered_variant_is_an_error_and_not_passed_over(fp16_bundle: Path, counting: list[str]) -> None:
    graph = fp16_bundle / "image_encoder" / "fp16.onnx"
    graph.write_bytes(flip(graph.read_bytes()))
    with pytest.raises(IntegrityError, match=r"fp16\.onnx was altered"):
        choose(Bundle.open(fp16_bundle))


# The choice


def proof(variant: str, latency_ms: float, precision: str | None = None, engine: str = "onnxruntime") -> Proof:
    return Proof(
        variant=variant,
        precision=precision or variant,
        engine=engine,
        ran_on=engine,
        parity=GOOD,
        latency_ms=latency_ms,
        machine={},
    )


@pytest.mark.parametrize(
    ("latencies", "expected"),
    [
        ({"fp32": 10.0}, "fp32"),
        ({"fp32": 10.0, "int8": 5.0}, "int8"),
        ({"fp32": 10.0, "int8": 9.4}, "int8"),
        ({"fp32": 10.0, "int8": 9.5}, "int8"),  # exactly 5 % less time
        ({"fp32": 10.0, "int8": 9.6}, "fp32"),
        ({"fp32": 9.0, "int8": 10.0}, "fp32"),
        ({"fp32": 10.0, "fp16": 9.7, "bf16": 9.6, "int8": 9.55}, "fp32"),
        ({"fp32": 10.0, "fp16": 6.0, "int8": 5.8}, "fp16"),
        ({"fp32": 10.0, "bf16": 6.0, "fp16": 6.1}, "fp16"),
        ({"fp32": 10.0, "bf16": 5.0, "fp16": 6.0}, "bf16"),
        ({"fp32": 9.8, "bf16": 9.4, "int8": 9.0}, "fp32"),  # int8 gains too little on bf16, and bf16 on fp32
    ],
)
def test_the_fastest_is_taken_unless_a_more_exact_one_takes_hardly_longer(
    latencies: dict[str, float], expected: str
) -> None:
    good = sorted((proof(name, ms) for name, ms in latencies.items()), key=lambda item: item.latency_ms)
    assert _best(good).variant == expected


def test_the_best_is_the_fastest_that_gains_5_percent_on_all_more_exact_ones() -> None:
    kinds = ("fp32", "fp16", "bf16", "int8")
    chooser = random.Random(0)
    for _ in range(2000):
        count = chooser.randint(1, 6)
        good = [proof(f"v{n}", chooser.uniform(8, 11), chooser.choice(kinds)) for n in range(count)]
        good.sort(key=lambda item: item.latency_ms)
        worth_it = [
            item
            for item in good
            if all(
                item.latency_ms <= 0.95 * other.latency_ms
                for other in good
                if kinds.index(other.precision) < kinds.index(item.precision)
            )
        ]
        assert _best(good) is worth_it[0]


def test_among_engines_for_one_variant_only_speed_counts() -> None:
    assert _best([proof("fp32", 9.9, engine="b"), proof("fp32", 10.0, engine="a")]).engine == "b"


def test_a_choice_names_the_fastest_of_the_proved(
    fp16_bundle: Path, counting: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    speed = {"onnxruntime": 10.0, "counting": 4.0}
    monkeypatch.setattr("edgeclip.runtime.proof.proof.timed", lambda engine, _: (speed[engine.name], None))
    said: list[str] = []
    choice = choose(Bundle.open(fp16_bundle), progress=said.append)
    assert (choice.variant, choice.engine) == ("fp32", "counting")  # as fast as fp16, and more exact
    assert said == ["proving fp32 on onnxruntime", "proving fp32 on counting", "proving fp16 on counting"]
    assert [proof.latency_ms for proof in choice.proofs] == [4.0, 4.0, 10.0]


@pytest.mark.parametrize(
    ("asked", "tried"),
    [
        ({}, [("fp32", "onnxruntime"), ("fp32", "counting"), ("fp16", "counting")]),
        ({"engine": "onnxruntime"}, [("fp32", "onnxruntime")]),
        ({"engine": "counting"}, [("fp32", "counting"), ("fp16", "counting")]),
        ({"variant": "fp16"}, [("fp16", "counting")]),
        ({"variant": "fp16", "engine": "onnxruntime"}, [("fp16", "onnxruntime")]),
    ],
)
def test_an_engine_that_is_not_meant_for_a_variant_is_tried_only_if_both_are_named(
    fp16_bundle: Path, counting: list[str], asked: dict[str, str], tried: list[tuple[str, str]]
) -> None:
    bundle = Bundle.open(fp16_bundle)
    assert list(candidates(bundle, **asked)) == tried
    choice = choose(bundle, **asked)
    assert (choice.variant, choice.engine) in tried
    assert {(proof.variant, proof.engine) for proof in choice.proofs} == set(tried)


def test_an_engine_that_is_not_here_is_tried_only_if_it_is_named(
    fp16_bundle: Path, counting: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CountingEngine, "available", classmethod(lambda _: False))
    bundle = Bundle.open(fp16_bundle)
    assert list(candidates(bundle)) == [("fp32", "onnxruntime")]
    assert list(candidates(bundle, engine="counting")) == [("fp32", "counting"), ("fp16", "counting")]
    with pytest.raises(EngineError, match="no engine installed here is meant for a variant of tiny"):
        choose(bundle, variant="fp16")


@pytest.mark.parametrize("golden", [True, False])
@pytest.mark.parametrize(
    ("asked", "kind", "message"),
    [
        ({"variant": "int4"}, VariantError, "no variant 'int4'"),
        ({"engine": "abacus"}, EngineError, "^expected an engine out of"),
        ({"variant": "fp32", "engine": "abacus"}, EngineError, "^expected an engine out of"),
    ],
)
def test_names_that_do_not_exist_are_refused_at_once(
    fp16_bundle: Path, tiny_bundle: Path, golden: bool, asked: dict[str, str], kind: type[Exception], message: str
) -> None:
    said: list[str] = []
    with pytest.raises(kind, match=message):
        choose(Bundle.open(fp16_bundle) if golden else without_golden(tiny_bundle), **asked, progress=said.append)
    assert not said


def test_threads_below_one_are_the_callers_mistake(fp16_bundle: Path, counting: list[str]) -> None:
    with pytest.raises(InputError, match=r"^expected threads of at least 1, got 0"):
        choose(Bundle.open(fp16_bundle), threads=0)


@pytest.mark.parametrize(
    ("asked", "taken"),
    [
        ({}, ("fp32", "onnxruntime")),
        ({"engine": "counting"}, ("fp32", "counting")),
        ({"variant": "again"}, ("again", "onnxruntime")),
    ],
)
def test_without_golden_images_nothing_runs_unless_it_is_asked_for_and_that_is_said(
    tiny_bundle: Path, counting: list[str], asked: dict[str, str], taken: tuple[str, str]
) -> None:
    add_variant(tiny_bundle, "again", lambda graph: None)
    bundle = without_golden(tiny_bundle)
    with pytest.raises(ParityError, match=r"expected golden images in tiny.*edgeclip prove .*tiny.edgeclip --images"):
        choose(bundle, **asked)
    choice = choose(bundle, **asked, unproved=True)
    assert (choice.variant, choice.engine) == taken
    assert choice.why.startswith("not proved: the bundle has no golden images; edgeclip prove ")
    assert (choice.proofs, choice.basis) == ((), None)
    assert not counting


def lacks(bundle: Bundle, variant: str) -> str:
    """What is said of a proof on stand-ins."""
    basis = basis_of(bundle, variant, golden_set(bundle))
    assert str(basis).startswith("provisional: on ")
    return f"{basis}: edgeclip prove {bundle.path} --images FOLDER"


def printed(choice: Choice) -> list[str]:
    console = Console(width=80, no_color=True)
    with console.capture() as capture:
        print_choice(choice, console)
    return capture.get().splitlines()


def test_the_choice_is_explained(fp16_bundle: Path, counting: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "edgeclip.runtime.proof.proof.timed", lambda engine, _: (4.0 if engine.path.stem == "fp16" else 10.0, None)
    )
    bundle = add_variant(fp16_bundle, "shuffled", SHUFFLED)
    first, *refused = printed(choose(bundle))
    assert first == (
        "fp16 on counting: 4.0 ms an image here, fp32's embeddings to a cosine of 1.0000 and 100% of the labels; "
        "the fastest (fp32 on onnxruntime 10.0 ms, fp32 on counting 10.0 ms); "
        f"{lacks(bundle, 'fp16')}"
    )
    assert len(refused) == 1
    assert refused[0].startswith("not shuffled on counting: a cosine of at least 0.9995, got ")
    (alone,) = printed(choose(bundle, variant="fp16"))
    assert alone.endswith(f"; the only one proved; {lacks(bundle, 'fp16')}")


def test_a_more_exact_choice_is_explained(
    fp16_bundle: Path, counting: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "edgeclip.runtime.proof.proof.timed", lambda engine, _: (9.8 if engine.path.stem == "fp16" else 10.0, None)
    )
    bundle = Bundle.open(fp16_bundle)
    (line,) = printed(choose(bundle, engine="counting"))
    assert line.startswith("fp32 on counting: 10.0 ms")
    assert line.endswith(f"; as fast as any and more exact (fp16 on counting 9.8 ms); {lacks(bundle, 'fp32')}")


def test_brackets_in_a_reason_are_printed() -> None:
    reason = "tensorrt is needed: pip install 'edgeclip[tensorrt]'"
    choice = Choice("fp32", "onnxruntime", "why [not]", refused=(("fp16", "tensorrt", reason),))
    assert printed(choice) == ["fp32 on onnxruntime: why [not]", f"not fp16 on tensorrt: {reason}"]


# What is recommended


def made(**changed: Any) -> Recommendation:
    """A recommendation for this machine."""
    given: dict[str, Any] = {
        "machine": this_machine(),
        "variant": "fp16",
        "engine": "onnxruntime",
        "why": "Ship it.",
        "data": "photos",
        "top1": 0.5,
        "n": 10,
        "latency_ms": 1.0,
        "stage": "engine",
        "limits": {},
    }
    return Recommendation(**{**given, **changed})


def test_advice_for_another_machine_does_not_count_and_stays(fp16_bundle: Path) -> None:
    elsewhere = made(machine={"board": "another"}, variant="fp32")
    bundle = add_recommendation(Bundle.open(fp16_bundle), elsewhere)
    assert recommended_here(bundle) is None
    bundle = add_recommendation(bundle, made(variant="fp32"))
    bundle = add_recommendation(bundle, made())
    assert [found.variant for found in recommendations(Bundle.open(fp16_bundle))] == ["fp32", "fp16"]
    choice = choose(bundle)
    assert (choice.variant, choice.engine) == ("fp16", "onnxruntime")
    assert choice.why.startswith("recommended: Ship it.; provisional: ")


@pytest.mark.parametrize("named", [{"variant": "gone"}, {"engine": "onnxruntime-cuda"}, {"engine": "no-such"}])
def test_advice_that_cannot_be_followed_is_passed_over(fp16_bundle: Path, named: dict[str, str]) -> None:
    bundle = add_recommendation(Bundle.open(fp16_bundle), made(**named))
    choice = choose(bundle)
    assert not choice.why.startswith("recommended")
    assert choice.proofs


def test_advice_to_run_what_disagrees_with_fp32_is_not_followed(fp16_bundle: Path) -> None:
    broken = add_variant(fp16_bundle, "fp16", edit_weight("projection", lambda weight: weight[::-1]))
    choice = choose(add_recommendation(broken, made()))
    assert choice.variant == "fp32"
    assert not choice.why.startswith("recommended")


def test_altered_or_strange_advice_is_refused(fp16_bundle: Path) -> None:
    bundle = add_recommendation(Bundle.open(fp16_bundle), made())
    (fp16_bundle / FILE).write_text("{}")
    with pytest.raises(IntegrityError, match="was altered"):
        choose(bundle)
    with pytest.raises(BundleError, match="edgeclip tradeoff again"):
        recommendations(bundle.add_file(FILE, msgspec.json.encode({"recommendations": [1]})))
    with pytest.raises(IntegrityError, match="inside the bundle"):
        bundle.add_file("../outside.json", b"{}")
    with pytest.raises(BundleError, match="read-only"):
        Bundle.open("starter").add_file(FILE, b"{}")


def test_what_is_recommended_is_tried_first_and_nothing_else_is(fp16_bundle: Path, counting: list[str]) -> None:
    bundle = add_recommendation(Bundle.open(fp16_bundle), made(engine="counting"))
    said: list[str] = []
    choice = choose(bundle, threads=1, progress=said.append)
    assert said == ["proving fp16 on counting, which is recommended"]
    assert (choice.variant, choice.engine, counting) == ("fp16", "counting", ["fp16"])
    (proof,) = choice.proofs
    assert (proof.variant, proof.engine) == ("fp16", "counting")
    assert proof.ran_on.endswith(", 1 thread")
    assert (choice.refused, choice.basis) == ((), basis_of(bundle, "fp16", golden_set(bundle)))
    for asked in ({"variant": "fp32"}, {"engine": "onnxruntime"}):
        assert not choose(bundle, **asked).why.startswith("recommended")


def test_the_callers_mistakes_are_told_also_where_something_is_recommended(
    fp16_bundle: Path, counting: list[str]
) -> None:
    bundle = add_recommendation(Bundle.open(fp16_bundle), made(engine="counting"))
    with pytest.raises(InputError, match="expected threads of at least 1"):
        choose(bundle, threads=0)
    graph = fp16_bundle / "image_encoder" / "fp16.onnx"
    graph.write_bytes(flip(graph.read_bytes()))
    said: list[str] = []
    with pytest.raises(IntegrityError, match=r"fp16\.onnx was altered"):
        choose(Bundle.open(fp16_bundle), progress=said.append)
    assert said == ["proving fp16 on counting, which is recommended"]


def test_threads_are_those_that_were_asked_for(fp16_bundle: Path, counting: list[str]) -> None:
    bundle = Bundle.open(fp16_bundle)
    for asked in ({}, {"variant": "fp16"}):
        assert {proof.ran_on.rpartition(", ")[2] for proof in choose(bundle, threads=1, **asked).proofs} == {"1 thread"}


def test_of_many_that_are_refused_three_are_told(fp16_bundle: Path, counting: list[str]) -> None:
    for name in ("nan1", "nan2", "nan3", "fp16"):
        add_variant(fp16_bundle, name, NAN)
    bundle = add_variant(fp16_bundle, "fp32", NAN, precision="fp32")
    with pytest.raises(EngineError) as none:
        choose(bundle, engine="counting")
    first, rest = str(none.value).split(": ", 1)
    assert first == "no variant is proved on this machine"
    assert [part.partition(": ")[0] for part in rest.split("; ")] == [f"nan{n} on counting" for n in (1, 2, 3)]
    bundle = add_variant(fp16_bundle, "alike", edit_weight("projection", np.ones_like))
    with pytest.raises(ParityError, match=r"^no variant is proved on this machine: nan1 on counting: "):
        choose(bundle, engine="counting")


def without_table(bundle: Path) -> Bundle:
    """Golden images without classes: nothing is decided between."""
    golden = golden_set(Bundle.open(bundle))
    replace(golden, classes=golden.classes[:0]).save(bundle / GOLDEN)
    write_manifest(bundle, read_manifest(bundle), scan=True)
    return Bundle.open(bundle)


UNCHECKED = (
    "could not be checked: top-1 agreement and top-1 agreement where FP32 decides clearly and mean margin loss and "
    "margin loss"
)


def test_what_could_not_be_checked_is_told_of_what_runs_and_of_what_does_not(
    fp16_bundle: Path, counting: list[str]
) -> None:
    add_variant(fp16_bundle, "shuffled", SHUFFLED)
    bundle = without_table(fp16_bundle)
    choice = choose(bundle, engine="counting")
    assert re.fullmatch(
        r"\d+\.\d ms an image here, fp32's embeddings to a cosine of 1\.0000; [^;(]+ \([^)]+\); "
        + re.escape(f"{UNCHECKED}; {lacks(bundle, choice.variant)}"),
        choice.why.partition("; timed")[0],
    )
    ((_, _, reason),) = choice.refused
    figures = [part.partition(" of at least")[0] for part in reason.split("; ")]
    assert figures == ["a cosine", "a mean-centred cosine", "a mean of the mean-centred cosine", UNCHECKED]


def test_the_fastest_of_three_is_explained_by_the_others(
    fp16_bundle: Path, counting: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    speed = iter([8.04, 12.0, 3.06])
    monkeypatch.setattr("edgeclip.runtime.proof.proof.timed", lambda *_: (next(speed), None))
    choice = choose(Bundle.open(fp16_bundle))
    assert choice.why.startswith("3.1 ms an image here, fp32's embeddings to a cosine of 1.0000 and 100% of the labels")
    assert "; the fastest (fp32 on onnxruntime 8.0 ms, fp32 on counting 12.0 ms); provisional: " in choice.why
    assert [proof.latency_ms for proof in choice.proofs] == [3.06, 8.04, 12.0]


HERE = "edgeclip prove {bundle} --images FOLDER"
NOTED = "export the variant again, which notes it"


@pytest.mark.parametrize(
    ("basis", "mends"),
    [
        (Basis(origin="site", photographs=FEWEST, calibrated_on=None), NOTED),
        (Basis(origin="site", photographs=FEWEST + 1, calibrated_on=None), NOTED),
        (Basis(origin="site", photographs=FEWEST - 1, calibrated_on=None), HERE),
        (Basis(origin="site", photographs=FEWEST, calibrated_on=3), HERE),
        (Basis(origin="images", photographs=FEWEST, calibrated_on=None), HERE),
        (Basis(origin="stand-ins", photographs=9), HERE),
    ],
)
def test_what_a_proof_lacks_is_told_with_what_mends_it(tiny_bundle: Path, basis: Basis, mends: str) -> None:
    bundle = Bundle.open(tiny_bundle)
    expected = mends.format(bundle=tiny_bundle)
    assert remedy(bundle, basis) == expected
    assert list(lacking(bundle, proof("fp32", 1.0), basis)) == [f"{basis}: {expected}"]


def test_a_whole_proof_lacks_nothing_and_one_without_a_table_says_what_was_not_checked(tiny_bundle: Path) -> None:
    bundle, basis = Bundle.open(tiny_bundle), Basis(origin="images", photographs=64)
    assert list(lacking(bundle, proof("fp32", 1.0), basis)) == []
    none = {"agreement": None, "decided_agreement": None, "mean_margin_loss": None, "p95_margin_loss": None}
    unchecked = msgspec.structs.replace(proof("fp32", 1.0), parity=msgspec.structs.replace(GOOD, **none))
    assert list(lacking(bundle, unchecked, basis)) == [UNCHECKED]


def test_the_shipped_bundle_is_proved_by_its_name() -> None:
    assert remedy(Bundle.open("starter"), Basis(origin="stand-ins", photographs=9)) == HERE.format(bundle="starter")


def test_unproved_or_not_a_graph_is_whole_and_within_its_bounds(
    tiny_bundle: Path, counting: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = without_golden(tiny_bundle)
    with monkeypatch.context() as patch:
        patch.setattr("edgeclip.runtime.engines.first_run._tried", lambda *_, **__: "is too much")
        patch.setenv("EDGECLIP_MAX_FIRST_RUN_S", "59")
        with pytest.raises(EngineError, match=r"fp32 of tiny\.edgeclip is too much"):
            choose(bundle, unproved=True)
    graph = tiny_bundle / "image_encoder" / "fp32.onnx"
    graph.write_bytes(flip(graph.read_bytes()))
    with pytest.raises(IntegrityError, match=r"fp32\.onnx was altered"):
        choose(Bundle.open(tiny_bundle), unproved=True)


def test_a_bundle_without_advice_has_none_and_nobody_asks_what_this_machine_is(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(tiny_bundle)
    with monkeypatch.context() as patch:
        patch.setattr("edgeclip.runtime.proof.choose.describe_machine", None)
        assert recommended_here(bundle) is None
    assert recommendations(bundle) == ()


def test_the_first_advice_for_this_machine_of_what_is_there_counts(fp16_bundle: Path) -> None:
    given = [
        made(machine=this_machine() | {"board": "another"}),
        made(variant="gone"),
        made(why="This."),
    ]
    stored = Bundle.open(fp16_bundle).add_file(FILE, msgspec.json.encode({"recommendations": given}))
    assert recommendations(stored) == tuple(given)
    assert recommended_here(stored) == given[2]
    changed = add_recommendation(stored, made(why="That."))
    assert recommendations(changed) == (given[0], made(why="That."))
    text = (fp16_bundle / FILE).read_text()
    assert msgspec.json.decode(text)["recommendations"][1]["why"] == "That."
    assert len(text.splitlines()) > 10  # for people, too


def test_advice_of_another_form_is_refused_with_what_to_do(fp16_bundle: Path) -> None:
    for content in (b"[]", b'{"recommendations": [], "more": 1}', b'{"recommendations": 5}'):
        bundle = Bundle.open(fp16_bundle).add_file(FILE, content)
        with pytest.raises(BundleError, match=r"^expected a recommendation, got: .*; run edgeclip tradeoff again"):
            choose(bundle)


def test_advice_is_for_machines_of_one_kind_whatever_their_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = {
        "architecture": "aarch64",
        "board": "Orin",
        "cpu": "A78",
        "cores_usable": 6,
        "l4t": "R36",
        "power_mode": "15W",
    }
    others = {"kernel": "5", "python": "3.10", "onnxruntime": "1.2", "memory_gib": 7.6, "nvidia_driver": "1"}
    monkeypatch.setattr("edgeclip.runtime.proof.choose.describe_machine", lambda: kind | others)
    for found, gpu in ((None, {}), (SimpleNamespace(name="Ampere"), {"gpu": "Ampere"})):
        monkeypatch.setattr("edgeclip.runtime.proof.choose.find_gpu", lambda found=found: found)
        assert this_machine() == kind | gpu

    def absent() -> None:
        raise MissingExtraError("cuda")

    monkeypatch.setattr("edgeclip.runtime.proof.choose.find_gpu", absent)
    assert this_machine() == kind


def test_what_runs_is_asked_what_it_is_and_proved_anew_if_it_names_itself_otherwise(
    fp16_bundle: Path, counting: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    named = ["1"]

    def versions(_: type[CountingEngine]) -> dict[str, str]:
        if not named:
            raise EngineError("the library does not load")
        return {"counting as loaded": named[-1]}

    monkeypatch.setattr(CountingEngine, "versions", classmethod(versions))
    took = {"counting": 1.0, "onnxruntime": 9.0}
    monkeypatch.setattr("edgeclip.runtime.proof.proof.timed", lambda engine, _: (took[engine.name], None))
    bundle = add_variant(fp16_bundle, "shuffled", SHUFFLED)
    first = choose(bundle, threads=1)
    assert first.golden is not None
    assert first.golden.sha256 == golden_set(bundle).sha256
    assert (first.engine, sorted(counting)) == ("counting", ["fp16", "fp32", "shuffled"])
    assert (choose(bundle, threads=1), len(counting)) == (first, 3)
    with pytest.raises(ParityError):
        choose(bundle, variant="shuffled", threads=1)
    assert len(counting) == 3
    named.append("2")  # under the package, which is the same
    with pytest.raises(ParityError):
        choose(bundle, variant="shuffled", threads=1)
    assert len(counting) == 4  # what is refused, too
    changed = choose(bundle, threads=1)
    assert len(counting) == 6
    assert {proof.versions["counting as loaded"] for proof in changed.proofs if proof.engine == "counting"} == {"2"}
    assert {proof.ran_on.rpartition(", ")[2] for proof in changed.proofs} == {"1 thread"}
    assert [name for name, _, _ in changed.refused] == ["shuffled"]
    named.clear()
    left = choose(bundle, threads=1)
    assert (left.variant, left.engine) == ("fp32", "onnxruntime")
    assert [(engine, reason) for _, engine, reason in left.refused] == [("counting", "the library does not load")] * 3


def test_what_slowed_a_latency_is_told_last_with_what_times_it_again(tiny_bundle: Path) -> None:
    bundle, basis = Bundle.open(tiny_bundle), Basis(origin="images", photographs=5)
    slowed = msgspec.structs.replace(proof("fp32", 1.0), conditions=busy(0.9, 0.2))
    assert list(lacking(bundle, slowed, basis)) == [
        f"{basis}: edgeclip prove {tiny_bundle} --images FOLDER",
        f"timed while other processes took 70% of the CPU: edgeclip prove {tiny_bundle} times it again",
    ]
