"""Sources in, a folder of calibration images with its page out; or two sources in, whether they differ out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from edgeclip.bundle import Bundle
from edgeclip.calibration.choice.choose import ChooseOptions, choose_images
from edgeclip.calibration.choice.chosen_set import RECORD, CalibrationSet, ChosenImages
from edgeclip.calibration.choice.drift import LEVEL, PARTS, Drift, measure_drift, sample_footage
from edgeclip.evaluation.html_page import picture_uri, render_page
from edgeclip.extras import require
from edgeclip.files import atomic_folder, write_json, write_text
from edgeclip.runtime.images import Image
from edgeclip.runtime.sources.address import short_name, without_password

PAGE = "calibration.html"
_SIDE = 96  # pixels of a picture in the page


def calibrate_images(
    bundle: Bundle,
    sources: Sequence[str],
    output: Path,
    options: ChooseOptions,
    *,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> CalibrationSet:
    """Choose, write and report; what fails or is stopped leaves nothing, and what was there before as it was.

    Raises:
        InputError: ``output`` is there already, or cannot be written.
        SourceError, VariantError, IntegrityError, EngineError: as for ``choose_images``.
        MissingExtraError: Jinja2 is not installed.
    """
    require("jinja2", purpose="write the page of a calibration set", extra="eval")
    with atomic_folder(output, overwrite=overwrite, holds=(RECORD,)) as folder:
        record = choose_images(bundle, sources, folder, options, progress=progress)
        write_text(folder / PAGE, images_page(record, ChosenImages(folder)))
    return record


def compare_footage(
    bundle: Bundle,
    a: str,
    b: str,
    options: ChooseOptions,
    *,
    output: Path | None = None,
    json_file: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> Drift:
    """Hold B's footage against A's, and write a page and the figures where asked for.

    Args:
        a, b: a folder that ``edgeclip calibrate images`` wrote, or any source.

    Raises:
        InputError: too few frames, or a set that was chosen with another model.
        SourceError, EngineError: as for ``choose_images``.
        MissingExtraError: SciPy, or Jinja2 for the page, is not installed.
    """
    require("scipy.stats", purpose="compare footage", extra="eval")
    samples = [sample_footage(bundle, source, options, progress=progress) for source in (a, b)]
    names = [_name(source) for source in (a, b)]
    drift = measure_drift(names[0], samples[0], names[1], samples[1], seed=options.seed)
    if json_file:
        write_json(json_file, drift)
    if output:
        write_text(output, render_page("drift.html.j2", drift=drift, level=LEVEL, parts=PARTS))
    return drift


def _name(source: str) -> str:
    shown = without_password(source)
    return short_name(source) if "://" in source else Path(shown).name or shown


def images_page(record: CalibrationSet, images: Sequence[Image]) -> str:
    """The page of a calibration set: all images under their exposure, darkest first, and what became of the frames.

    Args:
        images: those of the record, in its order, each (H, W, 3) uint8 RGB; decoded one at a time if they are lazy.
    """
    groups: dict[str, list[int]] = {}
    for number in sorted(range(len(record.images)), key=lambda at: record.images[at].exposure.luma):
        groups.setdefault(record.images[number].stratum, []).append(number)
    sheet = {
        name: [(picture_uri(images[number], side=_SIDE), record.images[number]) for number in sorted(numbers)]
        for name, numbers in groups.items()
    }
    return render_page("calibration_images.html.j2", record=record, sheet=sheet)
