"""Small tars of labelled images, for whatever reads WebDataset's shards."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image as PillowImage


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    """A plain tar of named contents."""
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def write_labelled_shards(folder: Path) -> Path:
    """Two shards of six images each in three classes, and their names; returns the folder."""
    for shard in range(2):
        members = []
        for item in range(6):
            members += [(f"{item:06}.jpg", jpeg(10 * shard + item)), (f"{item:06}.cls", str(item % 3).encode())]
        write_tar(folder / f"train-{shard:03}.tar", members)
    (folder / "classes.json").write_text(
        json.dumps([{"names": ["goldfish"]}, {"names": ["Teapot"]}, {"names": ["moon"]}])
    )
    return folder


def jpeg(seed: int, side: int = 48) -> bytes:
    """Noise, as JPEG."""
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    PillowImage.fromarray(pixels).save(stream, "JPEG", quality=90)
    return stream.getvalue()
