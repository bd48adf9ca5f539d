"""A bundle directory (or one ``.tar`` of it) in, verified manifest, encoder files and prompt tables out.

A bundle is all that a device needs. Nothing in it is pickled; every file that is read is first held against the
sha256 in ``manifest.json``, and the manifest against its own digest.
"""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from edgeclip.class_names import ClassesLike, TemplatesLike, as_classes, as_templates
from edgeclip.decisions import Current, current_decisions
from edgeclip.errors import BundleError, InputError, IntegrityError, TableError, VariantError
from edgeclip.extras import require
from edgeclip.files import atomic_file, atomic_folder, cache_dir, sha256_file, sha256_json
from edgeclip.manifest import MANIFEST, file_record, read_manifest, safe_path, write_manifest
from edgeclip.prompts import PromptTable, TextEncoder, check_table_name
from edgeclip.spec import Manifest, TableEntry, Variant

STARTER = "starter"


@dataclass(eq=False)
class Bundle:
    """An opened bundle.

    Attributes:
        path: the directory (for a ``.tar``, where it was unpacked).
        manifest: its verified manifest; what is added to the bundle is in it at once.
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
                raise TableError(f"{self.path.name} {what}: name one")
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
        if table.embeddings.ndim != 2 or table.embeddings.shape[1] != width:
            raise TableError(
                f"table {table.name!r} has rows of width {table.embeddings.shape[-1]}, the encoder of {self.path.name} "
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

    def text_encoder(self) -> TextEncoder:
        """The text encoder that the bundle's tables are made with; a device needs none.

        Raises:
            MissingExtraError: its libraries are not installed.
        """
        encoder: TextEncoder = self._prompts("embed texts").BundleTextEncoder(self)
        return encoder

    @property
    def has_text_encoder(self) -> bool:
        """Whether the libraries of the text encoder are installed, as far as a quick look can tell."""
        files = require("edgeclip.training.checkpoint.files", purpose="look at a model's origin", extra="export")
        libraries = ("torch", files.text_library(self.manifest.model.origin))
        return all(find_spec(library) is not None for library in libraries)

    def encode_table(
        self,
        name: str,
        classes: ClassesLike,
        templates: TemplatesLike = "simple",
        *,
        background: ClassesLike = (),
        progress: Callable[[int, int], None] | None = None,
    ) -> PromptTable:
        """As ``build_table``, but the table is only returned."""
        table: PromptTable = self._prompts("encode class names").table_for_bundle(
            self,
            as_classes(classes),
            as_templates(templates),
            name=name,
            background=() if background == () else as_classes(background),
            progress=progress,
        )
        return table

    def build_table(
        self,
        name: str,
        classes: ClassesLike,
        templates: TemplatesLike = "simple",
        *,
        background: ClassesLike = (),
        output: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> PromptTable:
        """Encode class names × templates with the bundle's text encoder; the table is added to the bundle.

        A table that replaces one with decisions keeps these; they are stale until they are fitted again.

        Args:
            name: of the table.
            classes: names, ``"a | b"`` giving one class two of them, or ``{label: names}``, or a file of names.
            templates: ``simple``, ``imagenet`` (CLIP's 80), a file with one a line, or templates, ``{}`` for the name.
            background: as ``classes``, what means nothing of interest: a frame best described by one is unknown.
            output: a ``.safetensors`` file to write instead; the shipped starter takes no tables.
            overwrite: replace a table, or file, of that name.
            progress: called with (prompts done, prompts in all) after each batch.

        Raises:
            PromptError: no class or template, a name that no file can have, or a background that is a class by other
                names.
            TableError: the name is taken and ``overwrite`` is false.
            BundleError: the bundle is the shipped one and no ``output`` is given.
            InputError: ``output`` exists and ``overwrite`` is false.
            MissingExtraError: the text encoder's libraries are not installed.
            ModelError: its weights cannot be had, or are not those the bundle was made with.
        """
        check_table_name(name)
        target = None if output is None else Path(output)
        if target is None:
            self._check_table_addable(name, overwrite=overwrite)
        elif target.suffix != ".safetensors":
            raise InputError(f"expected an output that ends in .safetensors, got {target}: give it that suffix")
        elif target.exists() and not overwrite:
            raise InputError(f"{target} exists already: choose another output or overwrite it")
        table = self.encode_table(name, classes, templates, background=background, progress=progress)
        earlier = self._earlier_table(name, target)
        if earlier and earlier.decisions:
            table = replace(table, decisions=earlier.decisions)
        if target is None:
            self.add_table(table, overwrite=overwrite)
        else:
            table.save(target)
        return table

    def _prompts(self, purpose: str) -> Any:
        """The module that makes tables: it is on the workstation's side, which a device does not have."""
        extra = "demo" if self.manifest.model.origin.loader == "edgeclip" else "export"
        return require("edgeclip.export.prompt_table", purpose=purpose, extra=extra)

    def _earlier_table(self, name: str, file: Path | None) -> PromptTable | None:
        """The table that is about to be replaced: its decisions stay, to be fitted again."""
        if file:
            return PromptTable.load(file) if file.exists() else None
        return self.table(name) if any(entry.name == name for entry in self.manifest.tables) else None

    def require_writable(self) -> None:
        """Refuse a bundle that nothing can be added to.

        Raises:
            BundleError: it is the shipped one, or was opened from a ``.tar``: the cache holds that under the tar's
                sha256.
        """
        if self.is_starter:
            raise BundleError(
                "the shipped starter bundle is read-only: give an output for a table, or make a bundle of your own "
                "with edgeclip export starter"
            )
        if self.path.parent == cache_dir("bundles"):
            raise BundleError("expected a bundle's folder to write to, got one in a .tar: unpack it first")

    def _check_table_addable(self, name: str, *, overwrite: bool) -> None:
        self.require_writable()
        self.manifest = read_manifest(self.path)  # another process, or another Bundle, may have added something
        if not overwrite and any(entry.name == name for entry in self.manifest.tables):
            raise TableError(f"{self.path.name} has a table {name!r} already: choose another name or overwrite it")

    def add_table(self, table: PromptTable, *, overwrite: bool = False) -> Bundle:
        """Write a table into the bundle and list it; at every moment the bundle on disk is valid. Returns the bundle.

        Raises:
            TableError: the name is taken and ``overwrite`` is false, or the table is of another model.
            BundleError: the bundle is the shipped one, which is read-only.
        """
        check_table_name(table.name)
        self._check_table_addable(table.name, overwrite=overwrite)
        self.check_table(table)
        relative = f"prompts/{table.name}.safetensors"
        others = tuple(entry for entry in self.manifest.tables if entry.name != table.name)
        entry = TableEntry(name=table.name, file=relative, classes=len(table.classes), content_hash=table.content_hash)
        return self._put(relative, table.save, tables=others, added=(entry,))

    def add_file(self, relative: str, content: bytes) -> Bundle:
        """Write a small file, such as a report, into the bundle and list it, in place of one of that name.

        Returns the bundle.

        Raises:
            BundleError: the bundle cannot be written to, or the name is that of an encoder, a table or the manifest.
            IntegrityError: ``relative`` does not stay inside the bundle.
        """
        self.require_writable()
        self.manifest = read_manifest(self.path)
        taken = {file for variant in self.manifest.variants for file in (variant.file, *variant.data_files)}
        taken |= {entry.file for entry in self.manifest.tables} | {MANIFEST}
        if str(safe_path(relative)) in taken:
            raise BundleError(f"{relative} is a part of {self.path.name} that has its own way in: choose another name")

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
            unlisted = msgspec.structs.replace(self.manifest, tables=tables, files=files)
            self.manifest = write_manifest(self.path, unlisted)
        path = self.path / relative
        save(path)
        listed = {**files, relative: file_record(path)}
        manifest = msgspec.structs.replace(self.manifest, tables=(*tables, *added), files=listed)
        self.manifest = write_manifest(self.path, manifest)
        return self

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
    with atomic_folder(path, overwrite=overwrite, holds=(MANIFEST,)) as folder:
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


def open_bundle(bundle: BundleLike) -> Bundle:
    """A bundle that is opened already or named by its path.

    Raises:
        InputError: neither of these; and as ``Bundle.open``.
    """
    if isinstance(bundle, Bundle):
        return bundle
    if isinstance(bundle, str | os.PathLike):
        return Bundle.open(bundle)
    raise InputError(f"expected a bundle or the path of one, got {type(bundle).__name__}")


def open_bundles(bundles: BundleLike | Sequence[BundleLike]) -> list[Bundle]:
    """One or several bundles. Raises as ``open_bundle``."""
    several = [bundles] if isinstance(bundles, Bundle | str | os.PathLike) else bundles
    return [open_bundle(each) for each in several]


BundleLike = Bundle | str | os.PathLike[str]
