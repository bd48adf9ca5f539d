"""Image file in, HWC uint8 RGB array out."""

from __future__ import annotations

import logging
import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from edgeclip.errors import InputError, MissingExtraError, SourceError
from edgeclip.limits import check_limit
from edgeclip.printable import counted, path_text
from edgeclip.runtime.image_header import IMAGE_SUFFIXES as IMAGE_SUFFIXES  # part of this module's interface
from edgeclip.runtime.image_header import Image as Image
from edgeclip.runtime.image_header import is_image_name as is_image_name
from edgeclip.runtime.image_header import kind_of as kind_of
from edgeclip.runtime.image_header import read_header, turned

_log = logging.getLogger("edgeclip")

# How OpenCV's account of its build calls the decoder of a kind, where it may lack it.
_DECODERS = {"JPEG": "JPEG", "PNG": "PNG", "WebP": "WEBP", "TIFF": "TIFF", "PNM": "PXM", "JPEG 2000": "JPEG 2000"}
# What the system's loader says of a library for which there is no room. "Operation not permitted" is a folder of which
# nothing may be run; of the "static TLS block" there is little however much memory there is.
_NO_MEMORY = re.compile(
    r"failed to map segment(?!.*not permitted)|cannot allocate memory(?! in static TLS)|out of memory", re.IGNORECASE
)


def opencv() -> Any:
    """The module ``cv2``, quiet; on a Jetson this is the system's own build.

    Raises:
        MissingExtraError: there is none, or it does not load.
    """
    # Read once, when cv2 loads. What is wrong with a file is said by our own exception, not by a warning.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    try:
        import cv2
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "OpenCV is needed to read images and cameras but is not installed: on a Jetson run apt install "
            "nvidia-opencv, or python3-opencv where there is none (they have GStreamer); elsewhere "
            "pip install 'edgeclip[opencv]'"
        ) from error
    except ImportError as error:
        said = str(error)
        if _NO_MEMORY.search(said):
            why = f"there is no memory to load it ({said}): free some, or raise the limit of this process (ulimit -v)"
        elif "numpy" in said.lower():
            why = (
                f"does not load ({said}): the system's, on a Jetson or from apt, was built for NumPy 1 and here is "
                f"NumPy {np.__version__}; if that is why, run pip install 'numpy<2'"
            )
        else:
            why = f"does not load ({said}): mend what is named there, or install OpenCV again"
        raise MissingExtraError(f"OpenCV is needed to read images and cameras but {why}") from error
    return cv2


def images_among(paths: Iterable[Path], where: object) -> list[Path]:
    """The image files among paths, in their order; what else is there is told once, in a warning.

    Args:
        where: names the place, for the warning. Hidden files are none of anybody's.
    """
    images, others, no_files = [], Counter[tuple[str, str]](), Counter[tuple[str, str]]()  # by what one and several are
    for path in paths:
        if path.name.startswith("."):  # a half-written file, or what another system keeps beside its own
            continue
        if path.is_dir():
            if _is_searched(path):
                others["folder", "folders"] += 1
            elif path.is_symlink():
                no_files["link to a folder", "links to folders"] += 1
            else:
                no_files["folder that may not be read", "folders that may not be read"] += 1
        elif not path.is_file():
            pipe, nothing = ("pipe or device", "pipes or devices"), ("link to nothing", "links to nothing")
            no_files[pipe if path.exists() else nothing] += 1
        elif is_image_name(path):
            images.append(path)
        else:
            kind = path_text(path.suffix.lower()) or "without a suffix"
            others[kind, kind] += 1
    passed_over = [
        f"{why} ({', '.join(counted(count, *kind) for kind, count in found.most_common(8))})"
        for why, found in (("what is no image by its name", others), ("what is no regular file", no_files))
        if found
    ]
    if passed_over:
        _log.warning("%s: passed over %s", where, " and ".join(passed_over))
    return images


def list_images(folder: Path) -> list[Path]:
    """The image files directly in a folder, by name; what else is there is told.

    Raises:
        SourceError: the folder cannot be read.
    """
    try:
        return images_among(sorted(folder.iterdir()), path_text(folder))
    except OSError as error:
        raise SourceError(f"expected a folder of images at {path_text(folder)}, got: {error.strerror}") from error


def images_below(folder: Path) -> list[Path]:
    """The image files below a folder, searched recursively, by path; what else is there is told.

    What is hidden, or in a hidden folder (thumbnails, say), is none of anybody's. Links to folders are not followed.
    """
    shown = (path for path in sorted(folder.rglob("*")) if not any(map(_hidden, path.relative_to(folder).parts)))
    return images_among((path for path in shown if not _is_searched(path)), path_text(folder))


def _is_searched(path: Path) -> bool:
    """Whether ``rglob`` looks into it."""
    return path.is_dir() and not path.is_symlink() and os.access(path, os.R_OK | os.X_OK)


def _hidden(name: str) -> bool:
    return name.startswith(".")


def list_labelled(data: Path) -> tuple[list[tuple[Path, int]], list[str]]:
    """The images of ``data/CLASS/*`` as (path, index of the class), and the names of the class folders.

    A name has each of its letters as one character (NFC), however the disk spells it.

    Raises:
        SourceError: no class folders, one without images, or two of the same name.
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
    names = [_composed(folder.name) for folder in folders]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise SourceError(f"expected each class once in {data}, got folders that are both called {twice[0]}: join them")
    return files, names


def read_image(path: Path) -> Image:
    """Read a whole image as (H, W, 3) uint8 RGB in [0, 255].

    Grey becomes RGB, 16 bits become 8, alpha is dropped and the EXIF orientation is applied. Of several pages or frames
    it is the first.

    Raises:
        SourceError: missing, empty, truncated, of too many pixels, or not an image.
    """
    return decode_image(read_image_bytes(path), name=path_text(path))


def read_image_bytes(path: Path) -> bytes:
    """The bytes of an image file, whichever way the accents in its name are written.

    Raises:
        SourceError: it cannot be read, or is a pipe or device.
    """
    try:
        try:
            about = path.stat()
        except FileNotFoundError:
            if (same := _spelled_otherwise(path)) is None:
                raise
            path, about = same, same.stat()
        if not stat.S_ISREG(about.st_mode) and not stat.S_ISDIR(about.st_mode):  # opening it might wait for ever
            raise SourceError(
                f"expected an image at {path_text(path)}, got a pipe or device: save what it gives as a file first"
            )
        check_limit("image_bytes", about.st_size, path_text(path), error=SourceError)
        with path.open("rb") as stream:
            return stream.read(about.st_size)
    except (OSError, ValueError) as error:  # ValueError: a path with a null in it
        raise SourceError(
            f"expected an image at {path_text(path)}, got: {getattr(error, 'strerror', None) or error}"
        ) from error


def _spelled_otherwise(path: Path) -> Path | None:
    r"""What is there under a name that lists spell otherwise: é as one character or as e and an accent, or ``\xff``."""
    if path.exists() or path.parent == path:
        return path
    if (parent := _spelled_otherwise(path.parent)) is None:
        return None
    if path.name.isascii() and "\\x" not in path.name:  # a folder of millions is not listed for each that is missing
        return parent / path.name if (parent / path.name).exists() else None
    wanted = unicodedata.normalize("NFC", path.name)
    return next((each for each in parent.iterdir() if _composed(each.name) == wanted), None)


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", path_text(name))


def decode_image(data: bytes, *, name: str) -> Image:
    """Decode the bytes of an image file as ``read_image`` does; ``name`` is for the error.

    Raises:
        SourceError: truncated, of too many pixels, or not an image.
    """
    header = read_header(data, name=name)
    check_limit("image_pixels", header.width * header.height, name, error=SourceError)
    if header.kind == "JPEG":
        from edgeclip.runtime.sources.jpeg import check_whole

        check_whole(data, name=name)
    if header.kind in ("HEIF", "GIF"):  # which not every OpenCV reads; and none puts the tiles of a HEIF together
        from edgeclip.runtime.heif import decode_first, decode_heif

        return decode_heif(data, name=name) if header.kind == "HEIF" else decode_first(data, "gif", name=name)
    cv2 = opencv()
    try:
        # Turned by us: an OpenCV before 4.12 knows the orientation of a JPEG only.
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise SourceError(f"{name} cannot be decoded ({error.err}): convert it to JPEG or PNG") from error
    if pixels is None:
        raise SourceError(
            f"{name} is a {header.kind} of {header.width}x{header.height} pixels that {_refused_by(cv2, header.kind)}"
        )
    image: Image = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    return turned(image, header.orientation)


def _refused_by(cv2: Any, kind: str) -> str:
    has = rf"^\s*{_DECODERS.get(kind, '')}:\s+(?!NO\b)"
    if kind in _DECODERS and not re.search(has, cv2.getBuildInformation(), re.MULTILINE):
        return f"this OpenCV ({cv2.__version__}) was built without a decoder for: convert it to JPEG or PNG"
    return f"OpenCV {cv2.__version__} cannot decode: it is damaged or of a rare form; convert it to JPEG or PNG"


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

    check_limit("image_pixels", image.width * image.height, "the Pillow image", error=SourceError)
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
