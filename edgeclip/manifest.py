"""A bundle's ``manifest.json``: written atomically, read only if it is valid and matches its own sha256."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TypeVar

import msgspec

from edgeclip.documents import decode_json, read_bytes
from edgeclip.errors import IntegrityError, ManifestError
from edgeclip.files import sha256_file, sha256_json, write_json
from edgeclip.spec import SCHEMA_VERSION, FileRecord, Manifest

MANIFEST = "manifest.json"
_T = TypeVar("_T")


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
        scan: hash every file in the folder into ``manifest.files`` first.
    """
    if scan:
        paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
        files = {path.relative_to(folder).as_posix(): file_record(path) for path in paths}
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


def _decoded(raw: bytes, kind: type[_T], path: Path) -> _T:
    try:
        return decode_json(raw, kind, where=str(path), error=ManifestError)
    except ManifestError as error:
        raise ManifestError(f"{path} is not a valid manifest ({error}): copy the bundle again") from error


def file_record(path: Path) -> FileRecord:
    """Size and sha256 of a file."""
    return FileRecord(size=path.stat().st_size, sha256=sha256_file(path))


def safe_path(relative: str) -> PurePosixPath:
    """A relative path that stays inside the bundle, or IntegrityError."""
    path = PurePosixPath(relative)
    if path.is_absolute() or ".." in path.parts or "\\" in relative or not path.parts:
        raise IntegrityError(f"expected a path inside the bundle, got {relative!r}: do not use this bundle")
    return path
