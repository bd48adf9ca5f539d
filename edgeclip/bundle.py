"""A bundle directory (or one ``.tar`` of it) in, verified manifest, encoder files and prompt tables out.

A bundle is all that a device needs. Nothing in it is pickled; every file that is read is first held against the
sha256 in ``manifest.json``, and the manifest against its own digest.
"""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import msgspec

from edgeclip.decisions import Current, current_decisions
from edgeclip.errors import BundleError, IntegrityError, TableError, VariantError
from edgeclip.files import atomic_file, atomic_folder, cache_dir, sha256_file, sha256_json
from edgeclip.manifest import MANIFEST, file_record, read_manifest, safe_path, write_manifest
from edgeclip.prompts import PromptTable, check_table_name
from edgeclip.spec import Manifest, TableEntry, Variant

STARTER = "starter"


@dataclass(frozen=True)
class Bundle:
    """An opened bundle.

    Attributes:
        path: the directory (for a ``.tar``, where it was unpacked).
        manifest: its verified manifest.
    """

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Open a bundle directory, a ``.tar`` of one, or the shipped ``"starter"``.

        The manifest is read and checked here; bulk files are checked when they are asked for.

        Raises:
            ManifestError: there is no manifest, or it is malformed, altered or of an unknown schema.
            IntegrityError: a ``.tar`` holds unsafe or missing files.
        """
        if str(path) == STARTER:
            folder = Path(str(resources.files("edgeclip") / "assets" / "starter.edgeclip"))
        else:
            folder = Path(path)
            if folder.suffix == ".tar" and folder.is_file():
                folder = _unpack(folder)
        return cls(folder, read_manifest(folder))

    @property
    def is_starter(self) -> bool:
        """Whether this is the bundle shipped inside the package, which must not be written to."""
        return self.path == Path(str(resources.files("edgeclip") / "assets" / "starter.edgeclip"))

    def file(self, relative: str) -> Path:
        """Path of a file listed in the manifest, after checking its size and sha256.

        Raises:
            IntegrityError: it is unlisted, missing or altered.
        """
        record = self.manifest.files.get(relative)
        if record is None:
            raise IntegrityError(f"{relative} is not listed in {self.path / MANIFEST}: make the bundle again")
        path = self.path / safe_path(relative)
        if not path.is_file():
            raise IntegrityError(f"{self.path} lacks {relative}: copy the bundle again")
        size = path.stat().st_size
        if size != record.size:
            raise IntegrityError(
                f"{path} was altered: expected {record.size:,} bytes, got {size:,}; copy the bundle again"
            )
        digest = sha256_file(path)
        if digest != record.sha256:
            raise IntegrityError(
                f"{path} was altered: expected sha256 {record.sha256[:12]}…, got {digest[:12]}…; copy the bundle again"
            )
        return path

    def verify(self) -> Iterator[str]:
        """Check every listed file in turn, yielding each relative path once it has passed.

        Raises:
            IntegrityError: at the first file that is missing or altered, or if the folder holds unlisted files.
        """
        listed = set(self.manifest.files)
        present = {
            path.relative_to(self.path).as_posix()
            for path in self.path.rglob("*")
            if path.is_file() and path.name != MANIFEST and not path.name.startswith(".")
        }
        for relative in sorted(listed):
            self.file(relative)
            yield relative
        if unlisted := sorted(present - listed):
            raise IntegrityError(
                f"{self.path} holds files that its manifest does not list ({', '.join(unlisted[:3])}): remove them"
            )

    def variant(self, name: str) -> Variant:
        """The variant called ``name``.

        Raises:
            VariantError: there is none; the message lists those there are.
        """
        for variant in self.manifest.variants:
            if variant.name == name:
                return variant
        available = ", ".join(variant.name for variant in self.manifest.variants)
        raise VariantError(f"{self.path.name} has no variant {name!r}: expected one of {available}")

    def variant_path(self, name: str) -> Path:
        """Checked path of a variant's ONNX graph (its external data files are checked too)."""
        variant = self.variant(name)
        for data_file in variant.data_files:
            self.file(data_file)
        return self.file(variant.file)

    def graph_digests(self, name: str) -> list[str]:
        """Sha256 of a variant's ONNX graph and of each external data file, as the manifest has them."""
        variant = self.variant(name)
        return [self.manifest.files[file].sha256 for file in (variant.file, *variant.data_files)]

    def graph_sha256(self, name: str) -> str:
        """One hex sha256 over all of a variant's graph files: what decisions are bound to."""
        return sha256_json(self.graph_digests(name))

    def table(self, name: str | None = None) -> PromptTable:
        """Load a prompt table of this bundle, checked against its hash and against the encoder.

        Args:
            name: the table; may be left out when the bundle has exactly one.

        Raises:
            TableError: no such table, or it belongs to another model.
        """
        tables = {table.name: table for table in self.manifest.tables}
        if name is None:
            if len(tables) != 1:
                what = f"has {len(tables)} prompt tables ({', '.join(tables)})" if tables else "has no prompt table"
                raise TableError(f"{self.path.name} {what}: name one with --table or give --classes")
            name = next(iter(tables))
        if name not in tables:
            available = ", ".join(tables) or "none yet; make one with edgeclip prompts build"
            raise TableError(f"{self.path.name} has no prompt table {name!r}: expected one of: {available}")
        table = PromptTable.load(self.file(tables[name].file))
        self.check_table(table)
        return table

    def check_table(self, table: PromptTable) -> None:
        """Refuse a table that was made for another model or width; a student takes its teacher's.

        Raises:
            TableError: with what was expected and got.
        """
        width = self.manifest.encoder.embedding_dim
        if table.embeddings.shape[1] != width:
            raise TableError(
                f"table {table.name!r} has rows of width {table.embeddings.shape[1]}, the encoder of {self.path.name} "
                f"gives {width}: build the table for this bundle"
            )
        model = self.manifest.model
        if table.model_id not in model.table_ids:
            raise TableError(
                f"table {table.name!r} was made for model {table.model_id}, this bundle is {model.id} "
                f"({model.name}): build the table for this bundle"
            )

    def decisions(self, table: PromptTable, variant: str | None) -> Current:
        """The decisions of a table that hold for a variant of this bundle as it is now, and why or why not."""
        graph = self.graph_sha256(variant) if variant and table.decisions else ""
        return current_decisions(table.decisions, table=table.name, rows=table.rows_hash, variant=variant, graph=graph)

    def add_table(self, table: PromptTable, *, overwrite: bool = False) -> Bundle:
        """Write a table into the bundle and list it; at every moment the bundle on disk is valid.

        Raises:
            TableError: the name is taken and ``overwrite`` is false, or the table is of another model.
            BundleError: the bundle is the shipped one, which is read-only.
        """
        if self.is_starter:
            raise BundleError("the shipped starter bundle is read-only: pass --output FILE.safetensors")
        check_table_name(table.name)
        self.check_table(table)
        relative = f"prompts/{table.name}.safetensors"
        others = tuple(entry for entry in self.manifest.tables if entry.name != table.name)
        if len(others) < len(self.manifest.tables) and not overwrite:
            raise TableError(f"{self.path.name} has a table {table.name!r} already: pass --overwrite to replace it")
        entry = TableEntry(name=table.name, file=relative, classes=len(table.classes), content_hash=table.content_hash)
        return self._put(relative, table.save, tables=others, added=(entry,))

    def add_file(self, relative: str, content: bytes) -> Bundle:
        """Write a small file, such as a report, into the bundle and list it, in place of one of that name.

        Raises:
            BundleError: the bundle is the shipped one, which is read-only.
            IntegrityError: ``relative`` does not stay inside the bundle.
        """
        if self.is_starter:
            raise BundleError("the shipped starter bundle is read-only: edgeclip export starter makes one of your own")

        def save(path: Path) -> None:
            with atomic_file(path) as temporary:
                temporary.write_bytes(content)

        return self._put(str(safe_path(relative)), save, tables=self.manifest.tables)

    def _put(
        self,
        relative: str,
        save: Callable[[Path], object],
        *,
        tables: tuple[TableEntry, ...],
        added: tuple[TableEntry, ...] = (),
    ) -> Bundle:
        """Write a file and list it; what it replaces is unlisted first, so that the bundle on disk is always valid."""
        files = {name: record for name, record in self.manifest.files.items() if name != relative}
        if len(files) < len(self.manifest.files):
            write_manifest(self.path, msgspec.structs.replace(self.manifest, tables=tables, files=files))
        path = self.path / relative
        save(path)
        listed = {**files, relative: file_record(path)}
        manifest = msgspec.structs.replace(self.manifest, tables=(*tables, *added), files=listed)
        return Bundle(self.path, write_manifest(self.path, manifest))

    def to_tar(self, path: str | os.PathLike[str]) -> Path:
        """Write the whole bundle, checked, as one ``.tar`` with fixed times and owners (same bytes every time)."""

        def plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
            info.mtime, info.uid, info.gid, info.uname, info.gname, info.mode = 0, 0, 0, "", "", 0o644
            return info

        target = Path(path)
        with atomic_file(target) as temporary, tarfile.open(temporary, "w") as archive:
            archive.add(self.path / MANIFEST, MANIFEST, filter=plain)
            for relative in self.verify():
                archive.add(self.path / relative, relative, filter=plain)
        return target


@contextmanager
def create_bundle(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder to fill (end with ``write_manifest``); it becomes ``path`` only on success."""
    with atomic_folder(path, overwrite=overwrite) as folder:
        (folder / "image_encoder").mkdir()
        (folder / "prompts").mkdir()
        (folder / "reports").mkdir()
        yield folder


def _unpack(archive_path: Path) -> Path:
    """Unpack a bundle ``.tar`` to the cache, once for each content; only plain files at safe paths are taken."""
    target = cache_dir("bundles") / sha256_file(archive_path)
    if target.is_dir():
        return target
    try:
        with tarfile.open(archive_path, "r:") as archive, atomic_folder(target) as folder:
            for member in archive:
                if member.isdir():
                    continue
                stream = archive.extractfile(member) if member.isreg() else None
                if stream is None:
                    raise IntegrityError(f"{archive_path} holds {member.name!r}, which is not a plain file")
                path = folder / safe_path(member.name)
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as out:
                    shutil.copyfileobj(stream, out)
            read_manifest(folder)
    except tarfile.TarError as error:
        raise IntegrityError(f"{archive_path} is not a readable tar ({error}): copy it again") from error
    return target
