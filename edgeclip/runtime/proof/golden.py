"""Photographs and their FP32 embeddings, kept in a bundle: what an engine is proved on where no FP32 model can run."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from safetensors.numpy import save_file

from edgeclip.bundle import Bundle
from edgeclip.errors import IntegrityError, SourceError
from edgeclip.files import atomic_file
from edgeclip.prompts import FloatArray
from edgeclip.runtime.engines.base import ByteArray, Engine, normalise
from edgeclip.runtime.images import Image, decode_image, opencv
from edgeclip.runtime.preprocess.preprocess import Preprocessor
from edgeclip.runtime.proof.basis import Origin
from edgeclip.runtime.proof.parity import ParityReport, compare_embeddings, worst_of
from edgeclip.spec import PreprocessSpec, Sha256
from edgeclip.tensors import open_tensors

FILE = "golden/golden.safetensors"
COUNT = 64
_QUALITY = 90
_BATCH = 8
_CROP = re.compile(r", crop \d+$")


class _About(msgspec.Struct, frozen=True, kw_only=True):
    names: tuple[str, ...]
    digests: tuple[Sha256, ...] = ()
    origin: Origin = "unknown"
    sha256: str = ""  # of all that is in the set


@dataclass(frozen=True)
class GoldenImages:
    """Golden images and what FP32 makes of them.

    Attributes:
        names: of the N photographs, for reports.
        files: each photograph as a JPEG file of the encoder's size.
        embeddings: (N, D) float32 of the FP32 graph on ONNX Runtime, not normalised.
        classes: (C, D) float32 unit rows of a prompt table, to see whether decisions change; (0, D) if there was none.
        digests: hex sha256 of the photograph that each of the N is a view of: crops of one photograph share theirs.
            Of a set that was written without them, of the JPEG file of the first view of that photograph's name.
        origin: whose photographs they are.
    """

    names: tuple[str, ...]
    files: tuple[bytes, ...]
    embeddings: FloatArray
    classes: FloatArray
    digests: tuple[str, ...] = ()
    origin: Origin = "stand-ins"

    @cached_property
    def sha256(self) -> str:
        """Digest of all that is in it: what a proof was taken on."""
        digest = hashlib.sha256(msgspec.json.encode((self.names, self.digests, self.origin, len(self.classes))))
        for file in self.files:
            digest.update(hashlib.sha256(file).digest())
        for array in (self.embeddings, self.classes):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    @property
    def photographs(self) -> int:
        """How many different photographs they are views of."""
        return len(set(self.digests))

    def save(self, path: Path) -> None:
        """Write photographs, embeddings and classes to one ``.safetensors`` file, atomically."""
        tensors: dict[str, np.typing.NDArray[Any]] = {
            "jpeg": np.frombuffer(b"".join(self.files), np.uint8),
            "ends": np.cumsum([len(file) for file in self.files]).astype(np.int64),
            "embeddings": self.embeddings,
            "classes": self.classes,
        }
        with atomic_file(path) as temporary:
            about = _About(names=self.names, digests=self.digests, origin=self.origin, sha256=self.sha256)
            # One text: with several, their order in the file would be another each time.
            save_file(tensors, str(temporary), {"photographs": msgspec.json.encode(about).decode()})

    @classmethod
    def load(cls, path: Path) -> GoldenImages:
        """Read what ``save`` wrote.

        Raises:
            IntegrityError: it is not such a file, or was altered.
        """
        try:
            with open_tensors(path, error=IntegrityError) as stored:
                if "photographs" in stored.metadata:
                    about = stored.json("photographs", _About)
                else:  # as it was written before digests were kept
                    about = _About(names=stored.json("names", tuple[str, ...]))
                names = about.names
                embeddings = stored.array("embeddings", "F32", (len(names), None))
                classes = stored.array("classes", "F32", (None, embeddings.shape[1]))
                jpeg = stored.array("jpeg", "U8", (None,))
                ends = [0, *stored.array("ends", "I64", (len(names),)).tolist()]
            if not names or ends[-1] != len(jpeg) or any(end <= start for start, end in pairwise(ends)):
                raise IntegrityError(f"expected photographs one after another in {len(jpeg)} bytes, got others")
        except IntegrityError as error:
            raise IntegrityError(f"{path} holds no golden images ({error}): copy the bundle again") from error
        files = tuple(jpeg[start:end].tobytes() for start, end in pairwise(ends))
        digests = about.digests if len(about.digests) == len(names) else _digests(names, files)
        golden = cls(names, files, embeddings, classes, digests, about.origin)
        if about.sha256 and golden.sha256 != about.sha256:
            raise IntegrityError(f"{path} holds other golden images than were written to it: make it or copy it again")
        return golden

    def inputs(self, spec: PreprocessSpec) -> FloatArray:
        """The images as one preprocessed batch (N, 3, H, W) float32."""
        return decoded_inputs(self.files, spec)

    def compare(self, engine: Engine, *, dynamic_batch: bool = True) -> ParityReport:
        """Hold an engine against the stored embeddings: all images one by one, some in one batch if that is allowed.

        Raises:
            EngineError: the engine fails, or gives values that are not finite.
        """
        inputs = self.inputs(engine.encoder.preprocess)
        single = np.concatenate([engine.infer(image[None]) for image in inputs])
        reports = [compare_embeddings(self.embeddings, single, self.names, batch_size=1, classes=self.classes)]
        if dynamic_batch and len(inputs) > 1:
            size = min(_BATCH, len(inputs))
            together = np.concatenate([engine.infer(inputs[:size]), single[size:]])
            reports.append(
                compare_embeddings(self.embeddings, together, self.names, batch_size=size, classes=self.classes)
            )
        return worst_of(reports)


def crop_name(name: str, number: int) -> str:
    """What a further view of a photograph is called."""
    return f"{name}, crop {number}"


def _digests(names: Sequence[str], files: Sequence[bytes]) -> tuple[str, ...]:
    """One for each photograph, where only names tell which views are crops of the same."""
    of: dict[str, str] = {}
    photographs = [_CROP.sub("", name) for name in names]
    for photograph, file in zip(photographs, files, strict=True):
        of.setdefault(photograph, hashlib.sha256(file).hexdigest())
    return tuple(of[photograph] for photograph in photographs)


def golden_of(bundle: Bundle) -> GoldenImages | None:
    """A bundle's golden images, checked against their hash; None if it has none."""
    if FILE not in bundle.manifest.files:
        return None
    golden, width = GoldenImages.load(bundle.file(FILE)), bundle.manifest.encoder.embedding_dim
    if golden.embeddings.shape[1] != width:
        raise IntegrityError(
            f"expected golden embeddings of width {width} in {bundle.path.name}, got {golden.embeddings.shape[1]}: "
            "copy the bundle again"
        )
    return golden


def golden_files(images: Sequence[Image], spec: PreprocessSpec) -> tuple[bytes, ...]:
    """Frames of any size as the JPEG files of a golden set: resized and cropped for the encoder."""
    cv2 = opencv()
    preprocess = Preprocessor(spec)
    files = []
    for image in images:
        small = cv2.cvtColor(preprocess.resize(image), cv2.COLOR_RGB2BGR)
        done, data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
        assert done  # a uint8 frame always encodes
        files.append(bytes(data))
    return tuple(files)


def decoded_inputs(files: Sequence[bytes], spec: PreprocessSpec) -> FloatArray:
    """JPEG files as one preprocessed batch (N, 3, H, W) float32.

    Raises:
        IntegrityError: one is no JPEG of the encoder's size.
    """
    return normalise(spec, decoded_images(files, spec))


def decoded_images(files: Sequence[bytes], spec: PreprocessSpec) -> ByteArray:
    """JPEG files as (N, H, W, 3) uint8 RGB.

    Raises:
        IntegrityError: one is no JPEG of the encoder's size.
    """
    images = []
    for number, file in enumerate(files, start=1):
        try:
            image = decode_image(file, name=f"golden image {number}")
        except SourceError as error:
            raise IntegrityError(f"a golden image is no JPEG of its size ({error}): copy the bundle again") from error
        # Not resized: it has the encoder's size, and a resize before a crop would cut it a second time.
        if image.shape[:2] != (spec.height, spec.width):
            raise IntegrityError(f"a golden image is no JPEG of {spec.height}x{spec.width}: copy the bundle again")
        images.append(image)
    return np.stack(images)
