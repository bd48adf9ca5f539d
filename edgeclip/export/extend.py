"""A bundle and a way to fill its folder in, the same bundle with more variants in its place out."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from edgeclip.bundle import Bundle
from edgeclip.devices.probe import installed_versions
from edgeclip.errors import BundleError
from edgeclip.export.variants import TOOLS
from edgeclip.files import atomic_folder, cache_dir
from edgeclip.manifest import write_manifest
from edgeclip.spec import Variant


@contextmanager
def extended(bundle: Bundle, *, names: Sequence[str]) -> Iterator[tuple[Path, list[Variant]]]:
    """Yield a copy of the bundle's folder, and a list to add variants to; it takes the bundle's place on success.

    Args:
        names: of the variants that will be made; those of the bundle that are called so are left out of the copy.

    Raises:
        BundleError: the bundle cannot be written to; see :func:`require_writable`.
        IntegrityError: a file of the bundle does not match its hash.
    """
    require_writable(bundle)
    manifest = bundle.manifest
    kept = [variant for variant in manifest.variants if variant.name not in names]
    dropped = {
        file
        for variant in manifest.variants
        if variant not in kept
        for file in (variant.file, *variant.data_files, f"reports/parity-{variant.name}.json")
    }
    with atomic_folder(bundle.path, overwrite=True) as folder:
        for relative in bundle.verify():
            if relative not in dropped:
                _link(bundle.path / relative, folder / relative)
        made: list[Variant] = []
        yield folder, made
        tools = {**manifest.tools, **installed_versions(TOOLS)}
        write_manifest(folder, msgspec.structs.replace(manifest, variants=(*kept, *made), tools=tools), scan=True)


def require_writable(bundle: Bundle) -> None:
    """Refuse a bundle that nothing can be added to.

    Raises:
        BundleError: it is the shipped one, or was opened from a ``.tar``: the cache holds that under the tar's sha256.
    """
    if bundle.is_starter:
        raise BundleError("the shipped starter bundle is read-only: edgeclip export starter makes one of your own")
    if bundle.path.parent == cache_dir("bundles"):
        raise BundleError("expected a bundle's folder to write to, got one in a .tar: unpack it first")


def _link(source: Path, target: Path) -> None:
    """The same file under another name, where the file system can: a bundle may hold gigabytes, and files are never
    written in place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
