"""A folder of anybody's images in; out: different ones to prove on, to calibrate on and, with labels, to evaluate on.

No photograph is in two of the three. Which goes where follows from its pixels and a seed, not from its name. What is
there twice counts once, and so does what is nearly the same, as frames of a film are; a frame of one colour shows
nothing. What was left out is counted and told.
"""

from __future__ import annotations

import hashlib
import logging
import random
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from edgeclip.bundle import Bundle
from edgeclip.calibration.choice.chosen_set import is_chosen_set
from edgeclip.calibration.images import crops, find_images
from edgeclip.calibration.lazy import Lazy
from edgeclip.documents import read_json
from edgeclip.errors import InputError, IntegrityError, SourceError
from edgeclip.export.photographs import Photograph
from edgeclip.printable import path_text
from edgeclip.prompts import FloatArray
from edgeclip.runtime.images import Image, as_image, read_image
from edgeclip.runtime.preprocess.preprocess import Preprocessor
from edgeclip.runtime.proof.basis import CalibratedOn, Origin
from edgeclip.runtime.proof.distinct import Different, Look, Verdict, look_at, pixels_digest
from edgeclip.runtime.proof.golden import COUNT, GoldenImages, decoded_images
from edgeclip.spec import EncoderSpec

_log = logging.getLogger("edgeclip")

CALIBRATION_IMAGES = 128
REPORT = "reports/images.json"
_MOST = 10_000  # files: each is decoded
_LEAST_GOLDEN = 2  # one image has no mean to be compared beside
_READERS = 4  # frames in memory at once
_NAMED = 3


class _Picture(NamedTuple):
    """A picture of the folder, or of the arrays given."""

    name: str
    source: Path | Image
    look: Look

    def pixels(self) -> Image:
        """Decode it: (H, W, 3) uint8 RGB.

        Raises:
            SourceError: it cannot be read, or is another one by now.
        """
        if not isinstance(self.source, Path):
            return self.source
        pixels = read_image(self.source)
        if pixels_digest(pixels) != self.look.digest:
            raise SourceError(f"{path_text(self.source)} was changed while it was read: run this again")
        return pixels

    def read(self) -> Photograph:
        """It, with its name."""
        return self.name, self.pixels()


class ImageSet(Lazy[Photograph]):
    """Different photographs as (name, (H, W, 3) uint8 RGB); one of a file is decoded when it is asked for.

    Attributes:
        digests: of each, hex sha256 of its pixels.
    """

    def __init__(self, pictures: Sequence[_Picture]) -> None:
        super().__init__([picture.read for picture in pictures])
        self._pictures = tuple(pictures)
        self.digests = tuple(picture.look.digest for picture in pictures)

    def pixels(self) -> Sequence[Image]:
        """The images without their names, as lazily."""
        return Lazy([picture.pixels for picture in self._pictures])


@dataclass(frozen=True)
class ImageSplit:
    """What became of the images.

    Attributes:
        golden: to prove on.
        calibration: to measure ranges on; empty if none was asked for.
        evaluation: (file, name of its class folder) of the others; empty where the folder is not one folder a class.
        told: what was left out and why, and what there was too little of, in sentences.
    """

    golden: ImageSet
    calibration: ImageSet
    evaluation: tuple[tuple[Path, str], ...]
    told: tuple[str, ...]


class ImageReport(msgspec.Struct, frozen=True, kw_only=True):
    """What ``reports/images.json`` holds: how many photographs a bundle was made with, and what was left out.

    Attributes:
        golden, calibration, evaluation: how many.
        classes: of the last.
        told: as in ``ImageSplit``.
    """

    golden: int
    calibration: int
    evaluation: int
    classes: int
    told: tuple[str, ...]

    def line(self) -> str:
        """It, for people."""
        parts = [f"{self.golden} to prove on"]
        parts += [f"{self.calibration} to calibrate on"] if self.calibration else []
        parts += [f"{self.evaluation} of {self.classes} classes to evaluate on"] if self.evaluation else []
        return f"images: {', '.join(parts)}, no photograph in two of them" if parts[1:] else f"images: {parts[0]}"


def report_of(split: ImageSplit) -> ImageReport:
    """What a bundle keeps of a split."""
    return ImageReport(
        golden=len(split.golden),
        calibration=len(split.calibration),
        evaluation=len(split.evaluation),
        classes=len({label for _, label in split.evaluation}),
        told=split.told,
    )


def image_report(bundle: Bundle) -> ImageReport | None:
    """The report of a bundle that was made with images of its own; None if it was not."""
    if REPORT not in bundle.manifest.files:
        return None
    return read_json(bundle.file(REPORT), ImageReport, error=IntegrityError)


def split_images(
    images: Path | Sequence[Image],
    *,
    golden: int = COUNT,
    calibration: int = CALIBRATION_IMAGES,
    seed: int = 0,
    calibrated: Iterable[Image] = (),
) -> ImageSplit:
    """Split images by what is in them: the same content is in one part, whatever its files are called.

    Of the different photographs two in three are to prove on and the third to calibrate on, until there are enough of
    either. Of labelled ones at least half is left to evaluate on. All that is told is logged as a warning, too.

    Args:
        images: a folder, searched recursively; labelled if each image lies in a folder of its class. Or arrays.
        golden: at most so many to prove on.
        calibration: at most so many to measure ranges on; 0 for none.
        seed: another one splits otherwise.
        calibrated: images that ranges are measured on already: what is also among them is left out.

    Raises:
        InputError: a number below 0.
        SourceError: too few different images that can be decoded.
    """
    if golden < 0 or calibration < 0:
        raise InputError(f"expected golden and calibration of 0 or more images, got {golden} and {calibration}")
    pictures, told = _looked_at(images, seed)
    labels = _labels(images, pictures, told) if isinstance(images, Path) else {}

    different = Different()
    for image in calibrated:
        different.add(look_at(image))
    theirs = len(different)
    pictures.sort(key=lambda picture: hashlib.sha256(f"{seed} {picture.look.digest}".encode()).digest())
    found = [(picture, *different.add(picture.look)) for picture in pictures]

    ours = [picture for picture, verdict, _ in found if verdict == "new"]
    enough = (len(ours) + 1) // 2 if labels else len(ours)
    for_golden = min(golden, enough - enough // 3 if calibration else enough)
    for_calibration = min(calibration, enough - for_golden)
    for_golden = min(golden, enough - for_calibration)
    rest = theirs + for_golden + for_calibration  # the number of the first that is left to evaluate on
    evaluation = _evaluation([(picture, number) for picture, _, number in found], labels, rest, told) if labels else ()

    told += _left_out(found, theirs, rest if labels else len(different))
    least_golden, least_calibration = min(golden, _LEAST_GOLDEN), min(calibration, 1)
    if for_golden < least_golden or for_calibration < least_calibration:
        least = least_golden + least_calibration
        raise SourceError(
            f"expected at least {2 * least - 1 if labels else least} different photographs, better "
            f"{golden + calibration}{' and others to evaluate on' if labels else ''}, got {len(ours)}"
            f"{''.join(f'; {each}' for each in told)}: give more"
        )
    for got, asked, what in ((for_golden, golden, "prove"), (for_calibration, calibration, "calibrate")):
        if got < asked:
            told.append(f"photographs to {what} on: {got} of {asked} asked for")
    _tell(told)
    calibration_part = ImageSet(ours[for_golden : for_golden + for_calibration])
    return ImageSplit(ImageSet(ours[:for_golden]), calibration_part, evaluation, tuple(told))


def _looked_at(images: Path | Sequence[Image], seed: int) -> tuple[list[_Picture], list[str]]:
    """Every picture that can be decoded, by its place; and what cannot."""
    told = []
    sources: list[tuple[str, Path | Image]]
    if isinstance(images, Path):
        paths = find_images(images)
        if len(paths) > _MOST:
            told.append(f"a sample of {_MOST:,} of {len(paths):,} images is looked at")
            paths = sorted(random.Random(seed).sample(paths, _MOST))
        sources = [(path_text(path.relative_to(images)), path) for path in paths]
    else:
        sources = [(f"image {number}", as_image(image)) for number, image in enumerate(images, start=1)]

    def look(named: tuple[str, Path | Image]) -> _Picture | str:
        name, source = named
        try:
            return _Picture(name, source, look_at(read_image(source) if isinstance(source, Path) else source))
        except SourceError as error:
            _log.warning("passed over: %s", error)
            return name

    with ThreadPoolExecutor(_READERS) as readers:
        found = list(readers.map(look, sources))
    if refused := [each for each in found if isinstance(each, str)]:
        names = ", ".join(refused[:_NAMED]) + (", …" if len(refused) > _NAMED else "")
        told.append(f"{len(refused)} of {len(found)} cannot be read ({names})")
    return [each for each in found if not isinstance(each, str)], told


def _labels(folder: Path, pictures: Sequence[_Picture], told: list[str]) -> dict[str, str]:
    """The class of each picture by its name, spelled as ``list_labelled`` does; none where that tells nothing."""
    if is_chosen_set(folder):
        return {}
    labels = {
        picture.name: unicodedata.normalize("NFC", path_text(picture.source.parent.name))
        for picture in pictures
        if isinstance(picture.source, Path) and picture.source.parent.parent == folder
    }
    if labels and (outside := len(pictures) - len(labels)):
        told.append(f"{outside} of {len(pictures)} lie in no class folder: all are taken as not labelled")
        return {}
    if len(classes := set(labels.values())) == 1:
        told.append(f"all are of one class, {classes.pop()}: they are taken as not labelled")
        return {}
    return labels


def _evaluation(
    found: Sequence[tuple[_Picture, int]], labels: dict[str, str], first: int, told: list[str]
) -> tuple[tuple[Path, str], ...]:
    """What is like none of the photographs before number ``first``: each content once, and of one class only."""
    copies: dict[str, list[tuple[Path, str]]] = defaultdict(list)
    numbers: dict[str, int] = {}
    for picture, number in found:
        if number >= first and isinstance(picture.source, Path):
            copies[picture.look.digest].append((picture.source, labels[picture.name]))
            numbers[picture.look.digest] = number
    once = {digest: min(each) for digest, each in copies.items() if len({label for _, label in each}) == 1}
    if twice := len(copies) - len(once):
        told.append(f"{twice} are in folders of several classes: not evaluated on")
    if near := len(once) - len({numbers[digest] for digest in once}):
        told.append(
            f"{near} of {len(once)} to evaluate on {'is' if near == 1 else 'are'} nearly the same as another, as "
            "frames of a film are: each counts once where a loss is bounded"
        )
    return tuple(sorted(once.values()))


def _left_out(found: Sequence[tuple[_Picture, Verdict, int]], theirs: int, rest: int) -> list[str]:
    """What is used for nothing, in sentences.

    Args:
        theirs: how many different calibration images were there before.
        rest: number of the first that is left to evaluate on, where what is nearly the same counts as well.
    """
    why = Counter(
        "of one colour"
        if verdict == "flat"
        else "among the calibration images, or nearly the same as one"
        if number < theirs
        else "the same as another"
        if verdict == "same"
        else "nearly the same as another, as frames of a film are"
        for _, verdict, number in found
        if verdict in ("flat", "same") or (verdict == "near" and number < rest)
    )
    return [
        f"{count} of {len(found)} {'is' if count == 1 else 'are'} {what}: left out"
        for what, count in sorted(why.items())
    ]


def _tell(told: Sequence[str]) -> None:
    for sentence in told:
        _log.warning("images: %s", sentence)


class CalibrationInputs(NamedTuple):
    """What ranges are measured on.

    Attributes:
        inputs: preprocessed, (N, 3, H, W) float32.
        of: which images they are.
    """

    inputs: FloatArray
    of: CalibratedOn


def to_calibrate_on(images: Sequence[Image], encoder: EncoderSpec, *, golden: GoldenImages | None) -> CalibrationInputs:
    """Somebody's images, without those that a proof is taken on; what is left out is told.

    Args:
        images: each (H, W, 3) uint8 RGB; a lazy sequence is decoded one at a time.
        golden: the images of the proof; None if there are none yet.

    Raises:
        SourceError: none is left.
    """
    preprocessor = Preprocessor(encoder.preprocess)
    different = Different()
    known = golden.digests if golden else ()
    if golden:
        for view in decoded_images(golden.files, encoder.preprocess):
            different.add(look_at(view))
    theirs = len(different)
    inputs: list[FloatArray] = []
    digests: list[str] = []
    proved_on = flat = again = 0
    for image in images:
        small = preprocessor.resize(image)  # as the encoder sees it, and as golden images are kept
        digest = pixels_digest(image)
        verdict, number = different.add(look_at(small))
        if digest in known or (verdict in ("same", "near") and number < theirs):
            proved_on += 1
        elif verdict == "flat":
            flat += 1
        elif digest in digests:
            again += 1
        else:
            inputs.append(preprocessor.normalise(small))
            digests.append(digest)
    told = [
        f"{count} of {len(images)} calibration images {'is' if count == 1 else 'are'} {why}: left out"
        for count, why in ((proved_on, "golden images, or nearly"), (flat, "of one colour"), (again, "there twice"))
        if count
    ]
    if not inputs:
        raise SourceError(
            f"expected images to calibrate on, got none that is left of {len(images)} ({'; '.join(told)}): give others"
        )
    _tell(told)
    of = CalibratedOn(origin="images", photographs=len(digests), digests=tuple(digests))
    return CalibrationInputs(np.stack(inputs), of)


def crops_to_calibrate_on(
    photos: Sequence[Photograph], encoder: EncoderSpec, *, origin: Origin, count: int = CALIBRATION_IMAGES
) -> CalibrationInputs:
    """``count`` random crops of photographs, where there is nothing better."""
    pixels = [image for _, image in photos]
    preprocessor = Preprocessor(encoder.preprocess)
    digests = tuple(dict.fromkeys(map(pixels_digest, pixels[:count])))
    inputs = np.stack([preprocessor(view) for view in crops(pixels, count)])
    return CalibrationInputs(inputs, CalibratedOn(origin=origin, photographs=len(digests), digests=digests))
