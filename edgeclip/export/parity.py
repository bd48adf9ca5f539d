"""Two encoders' embeddings of the same photographs in, how well they agree out; or an error that names the worst."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from edgeclip.errors import InputError, ParityError
from edgeclip.export.photographs import Photograph
from edgeclip.prompts import FloatArray
from edgeclip.runtime.engine import load_engine
from edgeclip.runtime.preprocess import Preprocessor
from edgeclip.spec import EncoderSpec, Precision
from edgeclip.training.model import ContrastiveModel

MIN_COSINE = 0.9999
_WORST = 3


class ParityReport(msgspec.Struct, frozen=True, kw_only=True):
    """How a candidate's embeddings agree with the reference's, image by image.

    Embeddings of one model share a large common part, and a wrong graph can keep that part and lose what tells images
    apart. So the cosine is also taken between embeddings less the reference's mean over the images.

    Attributes:
        images: how many were compared.
        batch_sizes: the candidate's, each compared on all images; the figures are the worst over them.
        mean_cosine, min_cosine: over images.
        min_centred_cosine: the same after subtracting the reference's mean; None for a single image.
        max_relative_error: largest ‖candidate − reference‖ / ‖reference‖ of an image.
        max_abs_difference: largest difference of one number.
        worst: names of the images with the lowest cosines, the worst first.
    """

    images: int
    batch_sizes: tuple[int, ...]
    mean_cosine: float
    min_cosine: float
    min_centred_cosine: float | None
    max_relative_error: float
    max_abs_difference: float
    worst: tuple[str, ...]

    def require(self, *, min_cosine: float, min_centred_cosine: float | None = None, what: str) -> ParityReport:
        """Return self, or refuse.

        Args:
            min_centred_cosine: limit of the centred cosine; None to leave it unchecked.
            what: what was compared, to begin the sentence.

        Raises:
            ParityError: below a limit; names the worst images, what was expected and got.
        """
        checks = (
            ("cosine", self.min_cosine, min_cosine),
            ("mean-centred cosine", self.min_centred_cosine, min_centred_cosine),
        )
        failures = [
            f"a {kind} of at least {limit}, got {value:.6f}"
            for kind, value, limit in checks
            if value is not None and limit is not None and not value >= limit  # a NaN is below every limit
        ]
        if failures:
            raise ParityError(
                f"{what}: expected {' and '.join(failures)} (worst of {self.images} images: {', '.join(self.worst)}): "
                "do not use this file"
            )
        return self


def compare_embeddings(
    reference: FloatArray, candidate: FloatArray, names: Sequence[str], *, batch_size: int
) -> ParityReport:
    """Compare (N, D) embeddings row by row; neither needs to be normalised.

    Args:
        names: of the N images.
        batch_size: with which the candidate was made, for the report.

    Raises:
        InputError: no image, or shapes that differ.
    """
    if reference.shape != candidate.shape or reference.ndim != 2 or len(reference) != len(names) or not len(names):
        raise InputError(
            f"expected {len(names)} rows of embeddings from both, got {reference.shape} and {candidate.shape}"
        )
    exact, tried = reference.astype(np.float64), candidate.astype(np.float64)
    difference = tried - exact
    cosine = _cosine(exact, tried)
    centre = exact.mean(axis=0)
    centred = _cosine(exact - centre, tried - centre) if len(names) > 1 else None
    order = np.argsort(cosine if centred is None else np.minimum(cosine, centred))
    return ParityReport(
        images=len(names),
        batch_sizes=(batch_size,),
        mean_cosine=float(cosine.mean()),
        min_cosine=float(cosine.min()),
        min_centred_cosine=None if centred is None else float(centred.min()),
        max_relative_error=float((np.linalg.norm(difference, axis=1) / np.linalg.norm(exact, axis=1)).max()),
        max_abs_difference=float(np.abs(difference).max()),
        worst=tuple(names[index] for index in order[:_WORST]),
    )


def check_parity(
    model: ContrastiveModel, onnx_path: Path, photos: Sequence[Photograph], *, min_cosine: float = MIN_COSINE
) -> ParityReport:
    """Compare an ONNX file on ONNX Runtime's CPU provider with the model's own ``encode_image``.

    Both see the same preprocessed photographs, the file one by one and all in one batch. ``min_cosine`` holds for the
    cosine and for the mean-centred one.

    Raises:
        ParityError: below the limit, with the worst images.
        EngineError: the file does not load or run, or gives values that are not finite.
    """
    images = preprocess(photos, model.encoder)
    reference = np.concatenate([model.encode_image(torch.from_numpy(image[None])).numpy() for image in images])
    names = [name for name, _ in photos]
    reports = [
        compare_embeddings(reference, candidate, names, batch_size=size)
        for size, candidate in run_onnx(onnx_path, images, model.encoder)
    ]
    return worst_of(reports).require(
        min_cosine=min_cosine, min_centred_cosine=min_cosine, what=f"{onnx_path.name} differs from {model.name}"
    )


def preprocess(photos: Sequence[Photograph], encoder: EncoderSpec) -> FloatArray:
    """Photographs as one batch (N, 3, H, W) float32.

    Raises:
        InputError: there are none.
    """
    if not photos:
        raise InputError("expected photographs to compare on, got none")
    preprocessor = Preprocessor(encoder.preprocess)
    return np.stack([preprocessor(pixels) for _, pixels in photos])


def run_onnx(
    path: Path,
    images: FloatArray,
    encoder: EncoderSpec,
    *,
    precision: Precision = "fp32",
    dynamic_batch: bool = True,
) -> list[tuple[int, FloatArray]]:
    """Embeddings (N, D) of all images at batch 1 and, where the graph allows it, at batch N: [(batch size, rows)]."""
    with load_engine("onnxruntime", path, encoder, precision=precision) as engine:
        rows = [(1, np.concatenate([engine.infer(image[None]) for image in images]))]
        if dynamic_batch and len(images) > 1:
            rows.append((len(images), engine.infer(images)))
    return rows


def worst_of(reports: Sequence[ParityReport]) -> ParityReport:
    """One report from those of several batch sizes: each figure is the worst of them."""
    worst = min(reports, key=lambda report: (report.min_cosine, -report.max_relative_error))
    centred = [report.min_centred_cosine for report in reports if report.min_centred_cosine is not None]
    return msgspec.structs.replace(
        worst,
        batch_sizes=tuple(size for report in reports for size in report.batch_sizes),
        mean_cosine=min(report.mean_cosine for report in reports),
        min_centred_cosine=min(centred) if centred else None,
        max_relative_error=max(report.max_relative_error for report in reports),
        max_abs_difference=max(report.max_abs_difference for report in reports),
    )


def _cosine(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Cosine of each pair of rows; 0 where a row is zero."""
    products = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine: npt.NDArray[np.float64] = (a * b).sum(axis=1) / np.maximum(products, 1e-30)
    return cosine
