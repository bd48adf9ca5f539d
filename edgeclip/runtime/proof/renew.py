"""A bundle and a folder of a site's images in; every variant and engine of this device held against FP32 there, out.

``edgeclip prove`` prints it. The images stay on the device (``site.py``), and ``choose`` and streams prove on them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeclip.bundle import Bundle, open_bundle
from edgeclip.errors import EdgeclipError, EngineError, InputError, IntegrityError, ParityError
from edgeclip.printable import counted
from edgeclip.runtime.engines.base import check_threads, engine_class
from edgeclip.runtime.proof.basis import FEWEST, Basis, basis_of
from edgeclip.runtime.proof.choose import candidates
from edgeclip.runtime.proof.golden import COUNT, GoldenImages, golden_of
from edgeclip.runtime.proof.proof import Proof
from edgeclip.runtime.proof.proof import prove as prove_one
from edgeclip.runtime.proof.site import (
    REFERENCE,
    SiteImages,
    calibrated_digests,
    choose_images,
    encode_site,
    forget_site,
    golden_here,
    keep_site,
)

Names = str | Sequence[str] | None


@dataclass(frozen=True)
class Held:
    """One variant on one engine, held against FP32.

    Attributes:
        proof: None where it could not run.
        refused: why it could not; else empty.
        basis: what it was held against.
    """

    variant: str
    engine: str
    basis: Basis
    proof: Proof | None = None
    refused: str = ""

    @property
    def passed(self) -> bool:
        """Whether it ran, and every limit that could be checked was kept."""
        return self.proof is not None and not self.proof.failures

    @property
    def why_unchecked(self) -> str:
        """What is missing where a limit could not be checked."""
        one = self.proof is not None and self.proof.parity.images < 2
        return (
            "one image has no others to be held beside"
            if one
            else "there is no prompt table that tells two classes apart"
        )


@dataclass(frozen=True)
class Renewal:
    """What came of ``prove``.

    Attributes:
        held: every variant and engine that was tried, in order.
        images: what was taken of the site's images; None on stored embeddings.
        told: what could not be done as asked, or says less than it seems to, in sentences.
        failed: why not all that was asked for is proved; empty if it is.
    """

    held: tuple[Held, ...]
    images: SiteImages | None
    told: tuple[str, ...]
    failed: tuple[str, ...]


def prove(
    bundle: Bundle | str | os.PathLike[str],
    images: str | os.PathLike[str] | None = None,
    *,
    variant: Names = None,
    engine: Names = None,
    stored: bool = False,
    count: int = COUNT,
    threads: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> Renewal:
    """Hold the variants of a bundle against FP32 on this device, on images of the place where it will work.

    FP32 runs on ONNX Runtime's CPU provider, once it was held against the bundle's golden images. From then on the
    device proves on the site's images whatever it runs.

    Args:
        bundle: an opened bundle, or the path of one.
        images: a folder with photographs of the site, searched with its folders. None to renew the proofs on the
            images that were given before, or else on the bundle's own.
        variant, engine: names to restrict it to, one or several; by default all that fit each other and are here.
        stored: go back to the bundle's own golden images and the embeddings stored with them, as where FP32 cannot run.
        count: how many different photographs are enough.
        threads: CPU threads an inference; None for all.
        progress: called with a short sentence at each step.

    Raises:
        InputError: arguments that exclude each other or are out of range.
        SourceError: no photograph is left to prove on.
        VariantError, EngineError: no such variant or engine, or none fits the other.
        ParityError: FP32 itself is not here what it was at the export, or there is nothing to prove on.
        IntegrityError: a file of the bundle was altered.
    """
    say = progress or (lambda _: None)
    opened = open_bundle(bundle)
    variants, engines = _several(variant), _several(engine)
    for name in variants:
        opened.variant(name)
    for name in engines:
        engine_class(name)
    check_threads(threads)
    if not isinstance(count, int) or count < 1:
        raise InputError(f"expected count of at least 1, a whole number, got {count!r}")
    if stored and images is not None:
        raise InputError("expected `images` or `stored`, got both: what is stored is of the bundle's own images")
    pairs = list(_pairs(opened, variants, engines))
    if not pairs:
        raise EngineError(f"no engine that is installed here is meant for what was asked of {opened.path.name}")
    taken, golden, told = None, None, list[str]()
    if images is not None and not any(each.name == REFERENCE[0] for each in opened.manifest.variants):
        told.append(
            f"the images could not be used: the bundle has no {REFERENCE[0]} to encode them; held against its own "
            "golden images and the embeddings stored with them"
        )
    elif images is not None:
        say("looking at the images of the site")
        spec = opened.manifest.encoder.preprocess
        taken = choose_images(Path(images), spec, count=count, calibrated=calibrated_digests(opened))
        say(f"encoding {counted(len(taken.names), 'image')} with {' on '.join(REFERENCE)}")
        try:
            golden = encode_site(opened, taken)
        except EngineError as error:
            raise EngineError(f"{error}; where FP32 cannot run, prove on the `stored` embeddings") from error
        if len(taken.names) < FEWEST:
            told.append(
                f"expected at least {FEWEST} different photographs for a proof, got {len(taken.names)}: this is "
                "provisional"
            )
    elif stored:
        forget_site(opened)
    if golden is None:
        golden = golden_of(opened) if stored else golden_here(opened)
    if golden is None or not len(golden.files):
        raise ParityError(
            f"expected golden images in {opened.path.name} to prove its variants on, got none: give photographs of the "
            "site as `images`"
        )
    held = []
    for name, runner in pairs:
        say(f"proving {name} on {runner}")
        held.append(_held(opened, name, runner, golden, threads))
    if taken is not None and golden.origin == "site" and any(each.proof is not None for each in held):
        keep_site(opened, golden)  # not before: where nothing ran, an earlier set stays
    return Renewal(tuple(held), taken, tuple(told), tuple(_failed(held, variants, engines)))


def _held(bundle: Bundle, variant: str, engine: str, golden: GoldenImages, threads: int | None) -> Held:
    basis = basis_of(bundle, variant, golden)
    try:
        proof = prove_one(bundle, variant, engine, golden, threads=threads, renew=True)
    except (InputError, IntegrityError):
        raise  # no fault of the variant or engine
    except EdgeclipError as error:
        return Held(variant, engine, basis, refused=str(error))
    return Held(variant, engine, basis, proof)


def _pairs(bundle: Bundle, variants: Sequence[str], engines: Sequence[str]) -> Iterator[tuple[str, str]]:
    for name in variants or (None,):
        for runner in engines or (None,):
            yield from candidates(bundle, variant=name, engine=runner)


def _failed(held: Sequence[Held], variants: Sequence[str], engines: Sequence[str]) -> Iterator[str]:
    """What disagrees with FP32; and what was asked for by name, or else anything at all, and did not run."""
    for each in held:
        if each.proof is not None and each.proof.failures:
            yield f"{each.variant} on {each.engine} disagrees with fp32: expected {' and '.join(each.proof.failures)}"
    for what, asked in (("variant", variants), ("engine", engines)):
        for name in asked:
            own = [each for each in held if getattr(each, what) == name]
            if all(each.proof is None for each in own):
                why = own[0].refused if own else "nothing here is meant for it"
                yield f"{name} could not run: {why}"
    if not variants and not engines and all(each.proof is None for each in held):
        yield f"nothing could run: {held[0].refused}"


def _several(names: Names) -> tuple[str, ...]:
    return () if names is None else (names,) if isinstance(names, str) else tuple(dict.fromkeys(names))
