"""Image file in, HWC uint8 RGB array out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeclip.errors import InputError, MissingExtraError, SourceError

Image = npt.NDArray[np.uint8]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"


def opencv() -> Any:
    """The module ``cv2``, quiet; on a Jetson this is the system's own build.

    Raises:
        MissingExtraError: there is none, or it does not load.
    """
    # Read once, when cv2 loads. What is wrong with a file is said by our own exception, not by a warning.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")
    try:
        import cv2
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "OpenCV is needed to read images and cameras but is not installed: on a Jetson run "
            "apt install python3-opencv (it has GStreamer), elsewhere pip install 'edgeclip[opencv]'"
        ) from error
    except ImportError as error:
        raise MissingExtraError(
            f"OpenCV is needed to read images and cameras but does not load ({error}): the system's, on a Jetson or "
            f"from apt, was built for NumPy 1 and here is NumPy {np.__version__}; if that is why, "
            "run pip install 'numpy<2'"
        ) from error
    return cv2


def is_image_name(path: Path) -> bool:
    """Whether a file name ends like an image's."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def list_images(folder: Path) -> list[Path]:
    """The image files directly in a folder, by name."""
    return sorted(path for path in folder.iterdir() if path.is_file() and is_image_name(path))


def list_labelled(data: Path) -> tuple[list[tuple[Path, int]], list[str]]:
    """The images of ``data/CLASS/*`` as (path, index of the class), and the names of the class folders.

    Raises:
        SourceError: no class folders, or one without images.
    """
    if not data.is_dir():
        raise SourceError(f"expected a folder with one folder of images a class, got {data}: no such folder")
    folders = sorted(item for item in data.iterdir() if item.is_dir() and not item.name.startswith("."))
    if not folders:
        raise SourceError(f"expected one folder a class in {data}, got none")
    files: list[tuple[Path, int]] = []
    for index, folder in enumerate(folders):
        images = list_images(folder)
        if not images:
            raise SourceError(f"expected images in {folder}, got none: add some or remove the folder")
        files.extend((image, index) for image in images)
    return files, [folder.name for folder in folders]


def read_image(path: Path) -> Image:
    """Read a whole image as (H, W, 3) uint8 RGB in [0, 255].

    Grey becomes RGB, 16 bits become 8, alpha is dropped and the EXIF orientation is applied.

    Raises:
        SourceError: missing, empty, truncated, or not an image.
    """
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a path with a null in it
        raise SourceError(f"expected an image at {path}, got: {getattr(error, 'strerror', None) or error}") from error
    return decode_image(data, name=str(path))


def decode_image(data: bytes, *, name: str) -> Image:
    """Decode the bytes of an image file as ``read_image`` does; ``name`` is for the error."""
    cv2 = opencv()
    if data.startswith(_JPEG_START) and _JPEG_END not in data[-65536:]:
        raise SourceError(f"{name} is a truncated JPEG ({len(data):,} bytes, no end marker): copy it again")
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    except cv2.error as error:
        raise SourceError(f"{name} cannot be decoded ({error.err}): convert it to JPEG or PNG") from error
    if pixels is None:
        raise SourceError(f"expected an image, got {name} ({len(data):,} bytes that do not decode as one)")
    image: Image = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    return image


def as_image(image: Any) -> Image:
    """An image in any common form as (H, W, 3) uint8 RGB; a file and a Pillow image the way that they are to be seen.

    Args:
        image: a path, (H, W, 3) uint8 RGB, or a Pillow image.

    Raises:
        SourceError: a file that cannot be read.
        InputError: anything else, or an array of another shape or type.
    """
    if isinstance(image, str | os.PathLike):
        return read_image(Path(image))
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise InputError(
                f"expected an image as (H, W, 3) uint8 RGB, got {image.dtype} {image.shape}: "
                "convert it, several as a list"
            )
        return image
    if any(base.__module__ == "PIL.Image" for base in type(image).__mro__):
        return _from_pillow(image)
    raise InputError(f"expected a path, (H, W, 3) uint8 RGB or a Pillow image, got {type(image).__name__}")


def _from_pillow(image: Any) -> Image:
    from PIL import ImageOps  # it is there: the image is one of its

    try:
        upright = ImageOps.exif_transpose(image)
        if not upright.mode.startswith("I"):
            return np.asarray(upright.convert("RGB"))
        grey = np.asarray(upright)
    except (OSError, ValueError) as error:
        raise SourceError(f"the Pillow image cannot be read ({error}): open it again") from error
    if grey.min() < 0 or grey.max() > 65535:
        raise InputError(f"expected 16 bits a pixel at most, got values from {grey.min()} to {grey.max()}: scale them")
    # Pillow would clip 16 bits; a file of such an image is scaled to 8 when it is read.
    return np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, axis=2)


def write_image(path: Path, image: Image) -> None:
    """Write (H, W, 3) uint8 RGB; the suffix of ``path`` chooses the format. Not atomic: the caller names the file."""
    cv2 = opencv()
    if not cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR)):
        raise SourceError(f"cannot write the image {path}: check its suffix and folder")
