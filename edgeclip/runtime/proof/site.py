"""A folder of a site's own images in; a golden set of different ones, kept on this device, and what was left out, out.

A set that was kept stands for the bundle's own on this device: whatever proves here asks ``golden_here``. It lies in
the cache, as a bundle may be a ``.tar``, the shipped one, or another user's; where it is lost, the bundle's own counts
again, and what is said of the proof says so.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgeclip.bundle import Bundle
from edgeclip.errors import BundleError, InputError, IntegrityError, ParityError, SourceError
from edgeclip.files import cache_dir, cache_place, sha256_json
from edgeclip.printable import path_text
from edgeclip.prompts import FloatArray
from edgeclip.runtime.engines.base import load_engine
from edgeclip.runtime.engines.first_run import check_first_run
from edgeclip.runtime.images import images_below, read_image
from edgeclip.runtime.proof.basis import calibrated_on, how_to_prove
from edgeclip.runtime.proof.distinct import Different, Verdict, look_at
from edgeclip.runtime.proof.golden import GoldenImages, decoded_inputs, golden_files, golden_of
from edgeclip.runtime.proof.parity import LIMITS
from edgeclip.spec import PreprocessSpec

REFERENCE = ("fp32", "onnxruntime")
_log = logging.getLogger("edgeclip")

# Where a camera stands still, photographs differ by what moves. Its noise and another brightness left the cosine of
# their directions (``distinct.py``) at .9997 and above; something as large as a hundredth of the picture did not.
_STILL = 0.999
_UNDECODABLE, _CALIBRATED = "cannot be decoded", "calibrated on"
_WHY: dict[Verdict, str] = {
    "flat": "of one colour",
    "same": "the same as another",
    "near": "nearly the same as another",
}


@dataclass(frozen=True)
class SiteImages:
    """Different images of a folder.

    Attributes:
        names, files, digests: as in ``GoldenImages``.
        found: image files in the folder.
        left_out: how many were looked at and left out, by reason.
        undecodable: what could not be decoded, as "NAME: why".
    """

    names: tuple[str, ...]
    files: tuple[bytes, ...]
    digests: tuple[str, ...]
    found: int
    left_out: dict[str, int]
    undecodable: tuple[str, ...]

    def __str__(self) -> str:
        reasons = "".join(f", {count:,} {reason}" for reason, count in self.left_out.items())
        looked_at = len(self.names) + sum(self.left_out.values())
        rest = f", {self.found - looked_at:,} not needed" if looked_at < self.found else ""
        return f"{len(self.names):,} of {self.found:,} images used{reasons}{rest}"


def choose_images(
    folder: Path,
    spec: PreprocessSpec,
    *,
    count: int,
    calibrated: Collection[str] = (),
) -> SiteImages:
    """Different images below a folder, drawn all over it; of two that show the same, one.

    Args:
        spec: what the encoder takes.
        count: how many are enough; no more are looked at.
        calibrated: digests (``pixels_digest``) of images that ranges were measured on, which prove nothing.

    Raises:
        SourceError: no folder, or nothing in it is left to prove on.
    """
    if not (paths := images_below(folder)):
        got = "no such folder" if not folder.exists() else "none" if folder.is_dir() else "a file"
        raise SourceError(f"expected a folder with photographs of the site at {path_text(folder)}, got {got}")
    different = Different(_STILL)
    chosen: list[tuple[int, str, bytes, str]] = []
    left_out, undecodable = Counter[str](), list[str]()
    for index in np.random.default_rng(0).permutation(len(paths)):  # a film's frames lie beside each other by name
        if len(chosen) == count:
            break
        name = path_text(paths[index].relative_to(folder))
        try:
            image = read_image(paths[index])
        except SourceError as error:
            left_out[_UNDECODABLE] += 1
            undecodable.append(f"{name}: {error}")
            continue
        look = look_at(image)
        if look.digest in calibrated:
            left_out[_CALIBRATED] += 1
        elif (verdict := different.add(look)[0]) != "new":
            left_out[_WHY[verdict]] += 1
        else:
            (file,) = golden_files([image], spec)
            chosen.append((int(index), name, file, look.digest))
    if not chosen:
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in left_out.items())
        first = f" ({undecodable[0]})" if undecodable else ""
        raise SourceError(
            f"expected photographs of the site in {path_text(folder)}, got {len(paths):,} images, none of which can "
            f"prove anything: {reasons}{first}"
        )
    chosen.sort()
    _, names, files, own = zip(*chosen, strict=True)
    return SiteImages(names, files, own, len(paths), dict(left_out), tuple(undecodable))


def calibrated_digests(bundle: Bundle) -> frozenset[str]:
    """Digests of all images that ranges of any variant were measured on, as far as that is known."""
    known = (calibrated_on(bundle, variant.name) for variant in bundle.manifest.variants)
    return frozenset(digest for each in known if each is not None for digest in each.digests)


def encode_site(bundle: Bundle, images: SiteImages) -> GoldenImages:
    """Encode a site's images by FP32 on ONNX Runtime's CPU provider, which was held against the bundle's own before.

    Raises:
        VariantError: the bundle has no FP32 variant.
        ParityError: FP32 gives other embeddings here than where it was exported.
        EngineError: it does not run here.
    """
    variant, engine = REFERENCE
    described, encoder = bundle.variant(variant), bundle.manifest.encoder
    path = bundle.variant_path(variant)
    check_first_run(bundle, variant)
    with load_engine(engine, path, encoder, precision=described.precision) as loaded:
        if (own := golden_of(bundle)) is not None and len(own.files):
            report = own.compare(loaded, dynamic_batch=described.dynamic_batch)
            if failures := report.failures(LIMITS[described.precision]):
                raise ParityError(
                    f"{variant} on {engine} cannot be the reference here: expected {' and '.join(failures)} on the "
                    "bundle's own golden images: copy the bundle again, or prove on its `stored` embeddings"
                )
        inputs = decoded_inputs(images.files, encoder.preprocess)
        embeddings = np.concatenate([loaded.infer(image[None]) for image in inputs])
    return GoldenImages(images.names, images.files, embeddings, _classes(bundle), images.digests, "site")


def keep_site(bundle: Bundle, golden: GoldenImages) -> None:
    """Keep a site's golden set on this device: what is proved from now on is proved on it.

    What is decided between is no part of it: that is taken from the bundle whenever the set is read.

    Raises:
        InputError: the cache cannot be written to.
    """
    place = _place(bundle)
    assert place is not None  # FP32 encoded it
    if place.parent != cache_place() / "site":  # a folder that stands in for it, and goes with this process
        raise InputError(
            f"expected a cache that can be written to, to keep the site's images in, got {cache_place()}: set "
            "EDGECLIP_CACHE"
        )
    golden.save(place)


def forget_site(bundle: Bundle) -> None:
    """Go back to the bundle's own golden images."""
    if (place := _place(bundle)) is not None:
        place.unlink(missing_ok=True)


def golden_here(bundle: Bundle) -> GoldenImages | None:
    """What a bundle is proved on on this device: the site's images where there are some, else its own; or None.

    Raises:
        IntegrityError: its own were altered.
    """
    if (site := _site_of(bundle)) is not None:
        return site
    golden = golden_of(bundle)
    return golden if golden is not None and len(golden.files) else None


def require_golden(bundle: Bundle, *, unproved: bool) -> GoldenImages | None:
    """The same; None only where it is asked that the bundle run ``unproved``.

    Raises:
        ParityError: there are no images to prove anything on.
    """
    golden = golden_here(bundle)
    if golden is None and not unproved:
        raise ParityError(
            f"expected golden images in {bundle.path.name} to prove its variants on, got none: run "
            f"{how_to_prove(bundle_name(bundle))}, export the bundle again, or let it run `unproved`"
        )
    return golden


def bundle_name(bundle: Bundle) -> str:
    """What to type for a bundle."""
    return "starter" if bundle.is_starter else str(bundle.path)


def _site_of(bundle: Bundle) -> GoldenImages | None:
    place = _place(bundle)
    if place is None or not place.is_file():
        return None
    try:
        golden = GoldenImages.load(place)
    except IntegrityError as error:
        _log.warning("the images of this site are lost, the bundle's own count again (%s)", error)
        return None
    if not len(golden.files) or golden.embeddings.shape[1] != bundle.manifest.encoder.embedding_dim:
        return None
    return replace(golden, classes=_classes(bundle))


def _place(bundle: Bundle) -> Path | None:
    """Where a site's set is kept: FP32's graph decides its embeddings, and the encoder its images."""
    manifest = bundle.manifest
    if not any(variant.name == REFERENCE[0] for variant in manifest.variants):
        return None
    key = (manifest.encoder, bundle.graph_digests(REFERENCE[0]))
    return cache_dir("site") / f"{sha256_json(key)}.safetensors"


def _classes(bundle: Bundle) -> FloatArray:
    """Rows (C, D) of what the site decides between: the bundle's own table, or else those of its golden images."""
    for entry in bundle.manifest.tables:
        try:
            table = bundle.table(entry.name)
        except IntegrityError:
            raise
        except BundleError as error:
            _log.warning("decisions of the table %s are not held against FP32's: %s", entry.name, error)
            continue
        if len(table.classes) > 1:
            return table.embeddings
    own = golden_of(bundle)
    return own.classes if own is not None else np.zeros((0, bundle.manifest.encoder.embedding_dim), np.float32)
