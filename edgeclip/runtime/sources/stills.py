"""An image, a folder of images or a pattern of names in; one frame an image out."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path

from edgeclip.errors import SourceError
from edgeclip.printable import counted, path_text
from edgeclip.runtime.images import images_among, list_images, read_image
from edgeclip.runtime.sources.address import without_password
from edgeclip.runtime.sources.base import Frame, Source, picture_text


class ImageSource(Source):
    """One image as a stream of one frame; it is decoded when the source is opened."""

    def __init__(self, path: Path) -> None:
        super().__init__(path_text(path.name))
        self.total = 1
        self._image = read_image(path)

    def __iter__(self) -> Iterator[Frame]:
        yield Frame(0, 0.0, self._image)

    def describe(self) -> str:
        """The image's size."""
        height, width = self._image.shape[:2]
        return f"image, {picture_text(width, height)}"


class ImagesSource(Source):
    """Many images, in the order given; unreadable ones are counted, named and passed over.

    Args:
        name: for people.
        files: each with the name that its frame gets.
    """

    def __init__(self, name: str, files: Sequence[tuple[Path, str]]) -> None:
        super().__init__(name)
        self._files = files
        self.total = len(files)

    @classmethod
    def folder(cls, path: Path) -> ImagesSource:
        """The images directly in a folder, sorted by name; what else is in it is told."""
        files = [(file, path_text(file.name)) for file in list_images(path)]
        if not files:
            raise SourceError(
                f"expected images in {path_text(path)}, got none: put .jpg or .png files directly in it, or name those "
                "of its folders as '**/*.jpg' after it"
            )
        return cls(path_text(path.name or path), files)

    @classmethod
    def matching(cls, pattern: str) -> ImagesSource:
        """The images whose paths match a pattern (``**`` means any folders), sorted by path."""
        matches = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]  # noqa: PTH207 - "/abs/*.jpg"
        files = [(path, path_text(path)) for path in images_among(matches, path_text(pattern))]
        if not files:
            shown = without_password(path_text(pattern))
            raise SourceError(
                f"expected images that match {shown!r}, got none among {len(matches)} matching names: "
                "check the pattern, and quote it so that the shell leaves it alone"
            )
        return cls(path_text(pattern), files)

    def __iter__(self) -> Iterator[Frame]:
        for index, (path, name) in enumerate(self._files):
            try:
                image = read_image(path)
            except SourceError as error:
                self.fail(name, str(error))
                continue
            yield Frame(index, 0.0, image, file=name)
        if self.failed == self.total:
            why = self.failures[0]
            raise SourceError(
                f"none of the {self.total} images in {self.name} can be used; of {why.name} it is said: {why.reason}"
            )

    @property
    def paths(self) -> list[Path]:
        """Of the images, in order."""
        return [path for path, _ in self._files]

    def describe(self) -> str:
        """How many images there are."""
        return counted(len(self._files), "image")
