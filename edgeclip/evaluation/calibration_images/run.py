"""Sources in, a folder of calibration images with its report out; or two sites in, what has drifted out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from edgeclip.bundle import Bundle
from edgeclip.calibration.choice.choose import ChooseOptions, choose_images
from edgeclip.calibration.choice.chosen_set import CalibrationSet, ChosenImages
from edgeclip.calibration.choice.drift import Drift, footage_of, measure_drift, site_of
from edgeclip.evaluation.calibration_images.page import calibration_sheet, coverage_page, drift_page
from edgeclip.files import atomic_folder, write_json, write_text
from edgeclip.runtime.images import write_image

_OWN_HOLDOUT = 0.5


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
        SourceError, VariantError, IntegrityError, EngineError: as for
            ``choose_images``.
    """
    with atomic_folder(output, overwrite=overwrite) as folder:
        chosen = choose_images(bundle, sources, folder, options, progress=progress)
        images = ChosenImages(folder)
        write_text(folder / "coverage.html", coverage_page(chosen.record, images, chosen.worst))
        write_image(folder / "coverage.png", calibration_sheet(chosen.record, images))
    return chosen.record


def compare_sites(
    bundle: Bundle,
    a: str,
    b: str,
    options: ChooseOptions,
    *,
    output: Path | None = None,
    json_file: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> Drift:
    """Hold B's footage against A's set, and write a page and the figures where asked for.

    Args:
        a, b: a folder that ``edgeclip calibrate images`` wrote, or any source; of A's source, half is held out.

    Raises:
        InputError: too few frames, or a set that was chosen with another model.
        SourceError, EngineError: as for ``choose_images``.
    """
    own = replace(options, sampling=replace(options.sampling, holdout=_OWN_HOLDOUT))
    everything = replace(options.sampling, holdout=1.0)
    site = site_of(bundle, a, own, progress=progress)
    other = footage_of(bundle, b, options, everything, progress=progress)
    drift = measure_drift(site, other, seed=options.sampling.seed)
    if json_file:
        write_json(json_file, drift)
    if output:
        write_text(output, drift_page(drift))
    return drift
