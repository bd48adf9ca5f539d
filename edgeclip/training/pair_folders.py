"""A folder with one folder of images a class in, labelled images out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgeclip.errors import SourceError
from edgeclip.runtime.images import list_labelled
from edgeclip.training.class_names import read_class_names
from edgeclip.training.pairs import Classes, IndexedPairs, Packed, Pair
from edgeclip.training.recipe import Data


class FolderPairs(IndexedPairs):
    """The images of ``root/CLASS/*``.

    Args:
        root: the folder.
        classes: names of each class, in the order of the folders' names; by default these names, underscores read as
            spaces.

    Raises:
        SourceError: no class folders, or one without images.
    """

    def __init__(self, root: Path, *, classes: Classes = ()) -> None:
        files, folders = list_labelled(root)
        self.name = str(root)
        self._root = root
        self.folders = tuple(folders)
        self.classes = classes or tuple((folder.replace("_", " "),) for folder in folders)
        self.rows = Packed([(str(path.relative_to(root)), label) for path, label in files])

    def pair(self, row: int) -> Pair:
        """The image of a row."""
        name, label = self.rows[row]
        return Pair(name, self._root / name, (), label)


def open_folder(texts: Sequence[str], data: Data) -> FolderPairs:
    """The class folder of a recipe."""
    if len(texts) > 1:
        raise SourceError(f"expected one folder of classes, got {', '.join(texts)}: put their folders into one")
    root = Path(texts[0])
    if not data.classes:
        return FolderPairs(root)
    _, folders = list_labelled(root)
    return FolderPairs(root, classes=tuple(map(tuple, read_class_names(Path(data.classes), folders=folders))))
