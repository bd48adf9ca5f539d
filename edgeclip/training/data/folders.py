"""A folder of images in, with one folder a class or none at all, pairs out: labelled, or images alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from edgeclip.errors import SourceError
from edgeclip.runtime.images import list_images, list_labelled
from edgeclip.training.data.labelled import read_class_names
from edgeclip.training.data.pairs import Classes, ImageTextPair, IndexedPairs, Packed
from edgeclip.training.recipe import Data


class FolderPairs(IndexedPairs):
    """The images of ``root/CLASS/*``; or of ``root/*``, without labels, where there are no folders in it.

    Args:
        root: the folder.
        classes: names of each class, in the order of the folders' names; by default these names, underscores read as
            spaces.

    Attributes:
        folders: the class folders' names; none where images lie in ``root``.

    Raises:
        SourceError: no images, or a class folder without one.
    """

    def __init__(self, root: Path, *, classes: Classes = ()) -> None:
        self.name = str(root)
        self._root = root
        files, self.folders = list_folder(root)
        self.classes = classes or tuple((folder.replace("_", " "),) for folder in self.folders)
        # As bytes: a file's name need not be text.
        self.rows = Packed([(os.fsencode(path.relative_to(root)), label) for path, label in files])

    def pair(self, row: int) -> ImageTextPair:
        """The image of a row."""
        name, label = self.rows[row]
        return ImageTextPair(name.decode("utf-8", "backslashreplace"), self._root / os.fsdecode(name), (), label)


def list_folder(root: Path) -> tuple[list[tuple[Path, int]], list[str]]:
    """(path, label) of each image and the class folders' names; labels of -1 and no names where images lie in ``root``.

    Raises:
        SourceError: as ``FolderPairs``.
    """
    if not any(item.is_dir() and not item.name.startswith(".") for item in root.iterdir()):
        if images := list_images(root):
            return [(path, -1) for path in images], []
        raise SourceError(f"expected images or one folder of images a class in {root}, got neither")
    return list_labelled(root)


def open_folder(texts: Sequence[str], data: Data) -> FolderPairs:
    """The image folder of a recipe."""
    if len(texts) > 1:
        raise SourceError(f"expected one folder of images, got {', '.join(texts)}: put their contents into one")
    root = Path(texts[0])
    _, folders = list_folder(root)
    if not data.classes or not folders:
        return FolderPairs(root)
    return FolderPairs(root, classes=tuple(map(tuple, read_class_names(Path(data.classes), folders=folders))))
