"""A bundle in; the variant and engine to run on this machine, and what became of the others, out.

That is what a measured trade-off recommends for the machine if it is proved here, and otherwise the fastest that is.
``edgeclip tradeoff --apply`` writes the recommendation into the bundle. It is advice: what it names is proved on the
machine before it runs, as anything else is, and on another machine it does not count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import msgspec

from edgeclip.bundle import Bundle
from edgeclip.devices.machine.cuda import find_gpu
from edgeclip.devices.machine.probe import Description, describe_machine
from edgeclip.documents import read_json
from edgeclip.engine_list import ENGINES
from edgeclip.errors import (
    BundleError,
    EdgeclipError,
    EngineError,
    InputError,
    IntegrityError,
    MissingExtraError,
    ParityError,
)
from edgeclip.runtime.engines.base import engine_class
from edgeclip.runtime.engines.first_run import check_first_run
from edgeclip.runtime.proof.basis import FEWEST, Basis, basis_of, how_to_prove
from edgeclip.runtime.proof.golden import GoldenImages
from edgeclip.runtime.proof.proof import Proof, prove
from edgeclip.runtime.proof.site import REFERENCE, bundle_name, require_golden

FILE = "reports/recommendation.json"
# What makes two machines the same to a recommendation. Versions of libraries do not: the proof looks after these.
_SAME = ("architecture", "board", "cpu", "cores_usable", "l4t", "power_mode")
_MORE_EXACT = ("fp32", "fp16", "bf16", "int8")
_WORTH_IT = 0.95  # what is less exact has to take at most this share of the time: less is within timing's noise


@dataclass(frozen=True)
class Choice:
    """What to run, and why.

    Attributes:
        variant, engine: names.
        why: one sentence, with what its proof lacks.
        basis: what its proof is worth; None if it was not proved.
        golden: what it was proved on; None if it was not.
        proofs: of all candidates that ran, the fastest first.
        refused: the others, as (variant, engine, reason).
    """

    variant: str
    engine: str
    why: str
    basis: Basis | None = None
    golden: GoldenImages | None = field(default=None, repr=False, compare=False)
    proofs: tuple[Proof, ...] = ()
    refused: tuple[tuple[str, str, str], ...] = ()


def choose(
    bundle: Bundle,
    *,
    variant: str | None = None,
    engine: str | None = None,
    threads: int | None = None,
    unproved: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Choice:
    """Prove every candidate on this machine and take the fastest that agrees with FP32.

    Where nothing is asked for and the bundle holds a recommendation for this machine, that is tried first. The first
    time takes seconds a candidate; afterwards the proofs come from the cache.

    Args:
        variant, engine: restrict the choice to this variant or engine.
        threads: CPU threads an inference; None for all.
        unproved: let a bundle without golden images run, by default FP32 on ONNX Runtime.
        progress: called with a short sentence before each candidate.

    Raises:
        VariantError: no such variant.
        InputError: ``threads`` is below 1.
        IntegrityError: a file of the bundle was altered.
        ParityError: every candidate that runs disagrees with FP32, or there are no images to prove one on.
        EngineError: no such engine, or no candidate runs here.
    """
    say = progress or (lambda _: None)
    if variant is not None:
        bundle.variant(variant)
    if engine is not None:
        engine_class(engine)
    golden = require_golden(bundle, unproved=unproved)
    if golden is None:
        taken = (variant or REFERENCE[0], engine or REFERENCE[1])
        bundle.variant_path(taken[0])
        check_first_run(bundle, taken[0])
        return Choice(*taken, why=f"not proved: the bundle has no golden images; {_how(bundle)} proves it")
    if variant is None and engine is None and (wanted := recommended_here(bundle)) is not None:
        say(f"proving {wanted.variant} on {wanted.engine}, which is recommended")
        try:
            proof = prove(bundle, wanted.variant, wanted.engine, golden, threads=threads)
        except (InputError, IntegrityError):
            raise
        except EdgeclipError:
            pass  # it is met again below, and why is said there
        else:
            if not proof.failures:
                return _choice(bundle, golden, proof, f"recommended: {wanted.why}", (proof,))
    pairs = list(candidates(bundle, variant=variant, engine=engine))
    proofs, refused = _prove_each(bundle, golden, pairs, threads, say, remembered=True)
    good = _good(proofs)
    if not all(map(_still_there, [_best(good)] if good else proofs)):  # a library was changed under its package
        proofs, refused = _prove_each(bundle, golden, pairs, threads, say, remembered=False)
        good = _good(proofs)
    refused += [
        (proof.variant, proof.engine, "; ".join([*proof.failures, *_unchecked(proof)]))
        for proof in proofs
        if proof.failures
    ]
    if not good:
        _raise_none(bundle, refused, disagreed=bool(proofs))
    best = _best(good)
    return _choice(bundle, golden, best, _why(best, good), tuple(good), tuple(refused))


def _prove_each(
    bundle: Bundle,
    golden: GoldenImages,
    pairs: Sequence[tuple[str, str]],
    threads: int | None,
    say: Callable[[str], None],
    *,
    remembered: bool,
) -> tuple[list[Proof], list[tuple[str, str, str]]]:
    """The proofs of the candidates that run, and the others as (variant, engine, reason)."""
    proofs: list[Proof] = []
    refused: list[tuple[str, str, str]] = []
    for name, runner in pairs:
        say(f"proving {name} on {runner}")
        try:
            proofs.append(prove(bundle, name, runner, golden, threads=threads, remembered=remembered))
        except (InputError, IntegrityError):
            raise  # no fault of the candidate: the caller's, or a bundle that cannot be trusted
        except EdgeclipError as error:
            refused.append((name, runner, str(error)))
    return proofs, refused


def _good(proofs: Sequence[Proof]) -> list[Proof]:
    """Those that agree with FP32, the fastest first."""
    return sorted((proof for proof in proofs if not proof.failures), key=lambda proof: proof.latency_ms)


def _still_there(proof: Proof) -> bool:
    """Whether the engine, whose library is loaded now, names itself as it did for the proof."""
    try:
        return engine_class(proof.engine).versions() == proof.versions
    except EdgeclipError:
        return False


def _choice(
    bundle: Bundle,
    golden: GoldenImages,
    best: Proof,
    why: str,
    proofs: tuple[Proof, ...],
    refused: tuple[tuple[str, str, str], ...] = (),
) -> Choice:
    basis = basis_of(bundle, best.variant, golden)
    reasons = "; ".join([why, *lacking(bundle, best, basis)])
    return Choice(best.variant, best.engine, reasons, basis, golden, proofs, refused)


def lacking(bundle: Bundle, proof: Proof, basis: Basis) -> Iterator[str]:
    """What keeps a proof from being whole, in a clause each, and the command that mends it."""
    yield from _unchecked(proof)
    if basis.provisional:
        yield f"{basis}: {remedy(bundle, basis)}"
    if proof.slowed_by:
        yield f"{proof.slowed_by}: edgeclip prove {bundle_name(bundle)} times it again"


def remedy(bundle: Bundle, basis: Basis) -> str:
    """What makes a provisional proof a whole one."""
    if basis.origin == "site" and basis.photographs >= FEWEST and basis.calibrated_on is None:
        return "export the variant again, which notes it"  # not to be had on the device
    return _how(bundle)


def _unchecked(proof: Proof) -> Iterator[str]:
    if proof.unchecked:
        yield f"could not be checked: {' and '.join(proof.unchecked)}"


def _how(bundle: Bundle) -> str:
    return how_to_prove(bundle_name(bundle))


def candidates(bundle: Bundle, *, variant: str | None = None, engine: str | None = None) -> Iterator[tuple[str, str]]:
    """Pairs (variant, engine) worth trying here; an explicit pair is tried whatever the engine is meant for."""
    if variant is not None and engine is not None:
        yield variant, engine
        return
    for runner in ENGINES if engine is None else (engine,):
        found = engine_class(runner)
        if engine is None and not found.available():
            continue
        for described in bundle.manifest.variants:
            if variant in {None, described.name} and found.suits(described):
                yield described.name, runner


def _best(good: list[Proof]) -> Proof:
    """The fastest, unless a more exact one takes hardly longer."""
    best = good[0]
    for proof in good[1:]:
        more_exact = _MORE_EXACT.index(proof.precision) < _MORE_EXACT.index(best.precision)
        if more_exact and best.latency_ms > _WORTH_IT * proof.latency_ms:
            best = proof
    return best


def _why(best: Proof, good: Sequence[Proof]) -> str:
    agreement = "" if best.parity.agreement is None else f" and {best.parity.agreement:.0%} of the labels"
    same = f"fp32's embeddings to a cosine of {best.parity.min_cosine:.4f}{agreement}"
    proved = f"{best.latency_ms:.1f} ms an image here, {same}"
    others = ", ".join(f"{p.variant} on {p.engine} {p.latency_ms:.1f} ms" for p in good if p is not best)
    if not others:
        return f"{proved}; the only one proved"
    return f"{proved}; {'the fastest' if best is good[0] else 'as fast as any and more exact'} ({others})"


def _raise_none(bundle: Bundle, refused: list[tuple[str, str, str]], *, disagreed: bool) -> None:
    if not refused:
        raise EngineError(f"no engine installed here is meant for a variant of {bundle.path.name}: give `engine`")
    reasons = "; ".join(f"{variant} on {engine}: {reason}" for variant, engine, reason in refused[:3])
    raise (ParityError if disagreed else EngineError)(f"no variant is proved on this machine: {reasons}")


class Recommendation(msgspec.Struct, frozen=True, kw_only=True):
    """What to run on one kind of machine, and why.

    Attributes:
        machine: what of the machine it depends on, see ``this_machine``.
        variant, engine: names.
        why: one sentence, with figures.
        data: the labelled set that accuracies were measured on.
        top1: share of its images labelled right, and the images it was measured on.
        latency_ms: median of ``stage``, milliseconds.
        stage: as ``edgeclip bench`` calls it.
        limits: that were asked for, by the names of their options.
    """

    machine: Description
    variant: str
    engine: str
    why: str
    data: str
    top1: float
    n: int
    latency_ms: float
    stage: str
    limits: dict[str, float]


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    recommendations: tuple[Recommendation, ...]


def recommendations(bundle: Bundle) -> tuple[Recommendation, ...]:
    """All that a bundle holds, for whatever machines.

    Raises:
        IntegrityError: the file was altered.
        BundleError: it is not what ``edgeclip tradeoff`` writes.
    """
    if FILE not in bundle.manifest.files:
        return ()
    try:
        return read_json(bundle.file(FILE), _File, error=BundleError).recommendations
    except IntegrityError:
        raise
    except BundleError as error:
        raise BundleError(f"expected a recommendation, got: {error}; run edgeclip tradeoff again") from error


def recommended_here(bundle: Bundle) -> Recommendation | None:
    """The bundle's recommendation for this machine, if it has one and what it names is still there."""
    if FILE not in bundle.manifest.files:
        return None  # without asking what this machine is
    here, names = this_machine(), {variant.name for variant in bundle.manifest.variants}
    for found in recommendations(bundle):
        if found.machine == here and found.variant in names:
            return found
    return None


def add_recommendation(bundle: Bundle, recommendation: Recommendation) -> Bundle:
    """Write a recommendation into a bundle, in place of an earlier one for the same machine.

    Raises:
        BundleError: the bundle cannot be written to.
    """

    def content() -> bytes:
        others = tuple(found for found in recommendations(bundle) if found.machine != recommendation.machine)
        return msgspec.json.format(msgspec.json.encode(_File((*others, recommendation))))

    return bundle.add_file(FILE, content)


def this_machine() -> Description:
    """What of this machine a recommendation depends on: board or CPU, cores, power mode, GPU."""
    here = {key: value for key, value in describe_machine().items() if key in _SAME}
    with suppress(MissingExtraError):
        if (gpu := find_gpu()) is not None:
            here["gpu"] = gpu.name
    return here
