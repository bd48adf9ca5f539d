"""A bundle's ``manifest.json``: written atomically, read only if it is valid and matches its own sha256."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TypeVar

import msgspec

from edgeclip.documents import decode_json, read_bytes
from edgeclip.errors import IntegrityError, ManifestError
from edgeclip.files import sha256_file, sha256_json, write_json
from edgeclip.printable import printable
from edgeclip.spec import SCHEMA_VERSION, FileRecord, Manifest

MANIFEST = "manifest.json"
_T = TypeVar("_T")
_DEEPEST = 16  # folders in folders


class _Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file ``manifest.json``: a manifest and the sha256 of its canonical JSON."""

    manifest: Manifest
    sha256: str


class _SchemaOnly(msgspec.Struct, frozen=True):
    schema_version: int | None = None


class _AnyEnvelope(msgspec.Struct, frozen=True):
    manifest: _SchemaOnly


def write_manifest(folder: Path, manifest: Manifest, *, scan: bool = False) -> Manifest:
    """Write ``manifest.json`` atomically and return what was written.

    Args:
        scan: hash every file in the folder that is not hidden into ``manifest.files`` first.
    """
    if scan:
        names = sorted(set(visible_files(folder)) - {MANIFEST})
        files = {name: file_record(plain_path(folder, name)) for name in names}
        manifest = msgspec.structs.replace(manifest, files=files)
    envelope = _Envelope(manifest=manifest, sha256=sha256_json(manifest))
    write_json(folder / MANIFEST, envelope)
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Read and check ``manifest.json``.

    Raises:
        ManifestError: absent, not JSON, of an unknown schema, invalid, or not matching its digest.
    """
    path = folder / MANIFEST
    if not path.is_file():
        what = "no such file or folder" if not folder.exists() else f"no {MANIFEST} in it"
        raise ManifestError(f"expected a bundle at {folder}, got {what}: make one with edgeclip export")
    raw = read_bytes(path, error=ManifestError)
    version = _decoded(raw, _AnyEnvelope, path).manifest.schema_version
    if version != SCHEMA_VERSION:
        raise ManifestError(
            f"{path} has schema version {version}, this edgeclip reads {SCHEMA_VERSION}: "
            "use the edgeclip that wrote it, or export again"
        )
    envelope = _decoded(raw, _Envelope, path)
    if envelope.sha256 != sha256_json(envelope.manifest):
        raise ManifestError(f"{path} was altered: it does not match its own sha256; copy the bundle again")
    return envelope.manifest


def check_consistent(manifest: Manifest, path: Path) -> Manifest:
    """Give a manifest back if every variant and table has a name of its own and files that are listed.

    Args:
        path: of it, for messages.

    Raises:
        ManifestError: as said.
    """
    named = {each.name: (each.file, *each.data_files) for each in manifest.variants}
    tables = {entry.name: (entry.file,) for entry in manifest.tables}
    for kind, entries, count in (("variant", named, len(manifest.variants)), ("table", tables, len(manifest.tables))):
        if len(entries) < count:
            raise ManifestError(f"{path} has two entries for one {kind}: make the bundle again")
        for name, files in entries.items():
            if unlisted := [file for file in files if file not in manifest.files]:
                shown = printable(unlisted[0], lines=False)
                raise ManifestError(
                    f"{path} names the file {shown} for the {kind} {name}, and does not list it with a sha256: make "
                    "the bundle again"
                )
    return manifest


def _decoded(raw: bytes, kind: type[_T], path: Path) -> _T:
    try:
        return decode_json(raw, kind, where=str(path), error=ManifestError)
    except ManifestError as error:
        raise ManifestError(f"{path} is not a valid manifest ({error}): copy the bundle again") from error


def file_record(path: Path) -> FileRecord:
    """Size and sha256 of a file."""
    return FileRecord(size=path.stat().st_size, sha256=sha256_file(path))


def visible_files(folder: Path) -> Iterator[str]:
    """Relative paths of what is in a folder, links and devices too, without what is hidden."""
    for root, folders, names in os.walk(folder):
        links = [name for name in folders if Path(root, name).is_symlink()]
        folders[:] = [name for name in folders if name not in links and not name.startswith(".")]
        for name in (*names, *links):
            if not name.startswith("."):
                yield Path(root, name).relative_to(folder).as_posix()


def safe_path(relative: str) -> PurePosixPath:
    """A relative path that stays inside the bundle, or IntegrityError."""
    path = PurePosixPath(relative)
    strange = "\\" in relative or printable(relative, lines=False) != relative or len(path.parts) > _DEEPEST
    if path.is_absolute() or ".." in path.parts or strange or not path.parts:
        raise IntegrityError(f"expected a path inside the bundle, got {relative[:100]!r}: do not use this bundle")
    return path


def plain_path(folder: Path, relative: str) -> Path:
    """The path of a file in a bundle's folder.

    Raises:
        IntegrityError: it does not stay inside, or leads through a symbolic link: what that points to may change, and
            may lie elsewhere.
    """
    path = folder
    try:
        for part in safe_path(relative).parts:
            path /= part
            if path.is_symlink():
                raise IntegrityError(
                    f"expected files in {folder}, got the symbolic link {path.relative_to(folder)}: copy the bundle "
                    "with what its links point to"
                )
    except OSError as error:  # a name that is too long
        raise IntegrityError(f"cannot look for {relative} in {folder} ({error.strerror}): copy it again") from error
    return path
