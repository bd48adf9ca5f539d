"""A bundle directory (or one ``.tar`` of it) in, verified manifest, encoder files and prompt tables out.

A bundle is all that a device needs. Nothing in it is pickled; every file that is read is first held against the
sha256 in ``manifest.json``, and the manifest against its own digest.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tarfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib import resources
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from edgeclip.class_names import ClassesLike, TemplatesLike, as_classes, as_templates
from edgeclip.decisions import Current, current_decisions
from edgeclip.documents import read_json
from edgeclip.errors import BundleError, InputError, IntegrityError, TableError, VariantError
from edgeclip.extras import require
from edgeclip.files import atomic_file, atomic_folder, cache_dir, sha256_file, sha256_json
from edgeclip.locks import locked
from edgeclip.manifest import (
    MANIFEST,
    check_consistent,
    file_record,
    plain_path,
    read_manifest,
    safe_path,
    visible_files,
    write_manifest,
)
from edgeclip.onnx_graph import check_graph
from edgeclip.printable import printable
from edgeclip.prompts import PromptTable, TextEncoder, check_table_name
from edgeclip.spec import FileRecord, Manifest, TableEntry, Variant
from edgeclip.tars import plain_files

STARTER = "starter"
# Hidden in a bundle's folder: who writes to it holds the one, and puts new files into the other.
LOCK, STAGING = ".lock", ".adding"


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
        return cls(folder, _manifest_in(folder))

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
        path = plain_path(self.path, relative)
        if not path.is_file():
            raise IntegrityError(f"{self.path} lacks {relative}: copy the bundle again")
        try:
            size = path.stat().st_size
            digest = sha256_file(path) if size == record.size else ""
        except OSError as error:
            raise IntegrityError(f"cannot read {path} ({error.strerror}): copy the bundle again") from error
        if size != record.size:
            raise IntegrityError(
                f"{path} was altered: expected {record.size:,} bytes, got {size:,}; copy the bundle again"
            )
        if digest != record.sha256:
            raise IntegrityError(
                f"{path} was altered: expected sha256 {record.sha256[:12]}…, got {digest[:12]}…; copy the bundle again"
            )
        return path

    def verify(self) -> Iterator[str]:
        """Check every listed file in turn, yielding each relative path once it has passed.

        What another process adds or replaces meanwhile is looked at too. Hidden files are passed over, and so is what
        a process that was killed while it wrote had noted: the next one that writes removes it.

        Raises:
            IntegrityError: at the first file that is missing or altered, if a graph is not what ``variant_path`` would
                give, or if the folder holds unlisted files.
        """
        passed: dict[str, FileRecord] = {}
        while True:
            seen = self._manifest_stamp()
            try:
                for relative, record in sorted(self.manifest.files.items()):
                    if passed.get(relative) != record:
                        self.file(relative)
                        passed[relative] = record
                        yield relative
                for variant in self.manifest.variants:
                    self._check_graph(variant)
                self._check_nothing_unlisted()
            except IntegrityError:
                if not self._changed_since(seen):
                    raise
            else:
                return

    def _check_nothing_unlisted(self) -> None:
        leaving = _noted(self.path / LOCK)  # before they are looked for, as the note goes after them
        present = set(visible_files(self.path)) - {MANIFEST}
        coming = _noted(self.path / LOCK)  # and after, as the note comes before them
        if unlisted := sorted(present - self.manifest.files.keys() - {*leaving, *coming}):
            names = printable(", ".join(unlisted[:3]), lines=False)
            raise IntegrityError(f"{self.path} holds files that its manifest does not list ({names}): remove them")

    def _manifest_stamp(self) -> tuple[int, int]:
        try:
            found = (self.path / MANIFEST).stat()
        except FileNotFoundError:
            return 0, 0
        return found.st_ino, found.st_mtime_ns

    def _changed_since(self, seen: tuple[int, int]) -> bool:
        """Whether the manifest on disk was written since, for the same model; then it is this bundle's."""
        fresh = _manifest_in(self.path)
        # Two changes may have led back to what it was.
        changed = fresh != self.manifest or self._manifest_stamp() != seen
        if fresh.model != self.manifest.model:
            return False
        self.manifest = fresh
        return changed

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
        """Checked path of a variant's ONNX graph; its external data files are checked too.

        Raises:
            VariantError: there is no such variant.
            IntegrityError: a file is missing or altered, the graph is none, reads a file that the variant does not
                list, or asks for more than ``check_graph`` allows.
        """
        variant = self.variant(name)
        for data_file in variant.data_files:
            self.file(data_file)
        path = self.file(variant.file)
        self._check_graph(variant)
        return path

    def _check_graph(self, variant: Variant) -> None:
        """Look at a graph whose hash was checked: what it asks for, and whether the variant lists what it reads."""
        path, folder = self.path / variant.file, PurePosixPath(variant.file).parent
        for location in check_graph(path, error=IntegrityError):
            if str(folder / location) not in variant.data_files:
                raise IntegrityError(
                    f"{path} reads {location!r}, which the manifest does not list for {variant.name}: make the bundle "
                    "again"
                )

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
        while True:
            seen = self._manifest_stamp()
            try:
                return self._table(name)
            except (IntegrityError, TableError, FileNotFoundError):
                if not self._changed_since(seen):  # it may have been replaced, or added
                    raise

    def _table(self, name: str | None) -> PromptTable:
        tables = {table.name: table for table in self.manifest.tables}
        if name is None:
            if len(tables) != 1:
                what = f"has {len(tables)} prompt tables ({', '.join(tables)})" if tables else "has no prompt table"
                raise TableError(f"{self.path.name} {what}: name one")
            name = next(iter(tables))
        if name not in tables:
            available = ", ".join(tables) or "none yet; make one with edgeclip prompts build"
            raise TableError(f"{self.path.name} has no prompt table {name!r}: expected one of: {available}")
        entry = tables[name]
        table = PromptTable.load(self.file(entry.file))
        if (table.name, len(table.classes), table.content_hash) != (entry.name, entry.classes, entry.content_hash):
            raise TableError(
                f"{entry.file} of {self.path.name} is not the table {name!r} of its manifest: build it anew"
            )
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
        if target is None:
            return self._write_table(table, overwrite=overwrite, keep_decisions=True)
        if target.exists():
            table = replace(table, decisions=PromptTable.load(target).decisions)
        table.save(target)
        return table

    def _prompts(self, purpose: str) -> Any:
        """The module that makes tables: it is on the workstation's side, which a device does not have."""
        extra = "demo" if self.manifest.model.origin.loader == "edgeclip" else "export"
        return require("edgeclip.export.prompt_table", purpose=purpose, extra=extra)

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
        self._check_name_free(name, overwrite=overwrite)

    def _check_name_free(self, name: str, *, overwrite: bool) -> None:
        if not overwrite and any(entry.name == name for entry in self.manifest.tables):
            raise TableError(f"{self.path.name} has a table {name!r} already: choose another name or overwrite it")

    def add_table(self, table: PromptTable, *, overwrite: bool = False, replaces: PromptTable | None = None) -> Bundle:
        """Write a table into the bundle and list it; at every moment the bundle on disk is valid. Returns the bundle.

        Args:
            overwrite: replace a table of that name.
            replaces: the table that this one was made from, if it is to take its place.

        Raises:
            TableError: the name is taken and ``overwrite`` is false, the table is of another model, or another process
                has changed ``replaces`` meanwhile.
            BundleError: the bundle is the shipped one, which is read-only, or cannot be written to.
        """
        self._write_table(table, overwrite=overwrite, replaces=replaces)
        return self

    def _write_table(
        self,
        table: PromptTable,
        *,
        overwrite: bool,
        replaces: PromptTable | None = None,
        keep_decisions: bool = False,
    ) -> PromptTable:
        """As ``add_table``; ``keep_decisions`` takes over those of the table that is there, to be fitted again."""
        check_table_name(table.name)
        self.check_table(table)
        with self.writing() as changes:
            self._check_name_free(table.name, overwrite=overwrite)
            present = {entry.name: entry.content_hash for entry in self.manifest.tables}
            if replaces is not None and present.get(table.name) != replaces.content_hash:
                raise TableError(
                    f"the table {table.name!r} of {self.path.name} was changed meanwhile, by another process perhaps: "
                    "run this again"
                )
            if keep_decisions and table.name in present:
                table = replace(table, decisions=self._table(table.name).decisions)
            relative = self._free_name(f"prompts/{table.name}.safetensors")
            table.save(changes.folder / relative)
            others = tuple(entry for entry in self.manifest.tables if entry.name != table.name)
            replaced = {entry.file for entry in self.manifest.tables if entry.name == table.name}
            entry = TableEntry(
                name=table.name, file=relative, classes=len(table.classes), content_hash=table.content_hash
            )
            changes.commit([relative], dropped=replaced, tables=(*others, entry))
        return table

    def _free_name(self, relative: str) -> str:
        """``prompts/shelf.safetensors``, or ``prompts/shelf.2.safetensors`` where that is what will be replaced."""
        path = PurePosixPath(relative)
        names = (str(path.with_name(f"{path.stem}.{count}{path.suffix}")) for count in itertools.count(2))
        taken = self.manifest.files
        return next(name for name in itertools.chain([relative], names) if name not in taken)

    def add_file(self, relative: str, content: bytes | Callable[[], bytes]) -> Bundle:
        """Write a small file, such as a report, into the bundle and list it, in place of one of that name.

        Args:
            content: what is in it, or what gives that once nobody else can change the bundle.

        Returns the bundle.

        Raises:
            BundleError: the bundle cannot be written to, or the name is that of an encoder, a table or the manifest.
            IntegrityError: ``relative`` does not stay inside the bundle.
        """
        relative = str(safe_path(relative))
        with self.writing() as changes:
            taken = {file for variant in self.manifest.variants for file in (variant.file, *variant.data_files)}
            taken |= {entry.file for entry in self.manifest.tables} | {MANIFEST}
            if relative in taken:
                raise BundleError(
                    f"{relative} is a part of {self.path.name} that has its own way in: choose another name"
                )
            with atomic_file(changes.folder / relative) as temporary:
                temporary.write_bytes(content() if callable(content) else content)
            changes.commit([relative])
        return self

    @contextmanager
    def writing(self) -> Iterator[Changes]:
        """Hold the bundle against other writers, its manifest as it is on disk; yields a way to change it.

        Raises:
            BundleError: the bundle cannot be written to, or another process is writing to it for minutes.
        """
        self.require_writable()
        _manifest_in(self.path)  # before a lock is left in what is no bundle
        try:
            with locked(self.path / LOCK) as lock:
                changes = Changes(self, lock)
                changes.sweep()
                try:
                    yield changes
                finally:
                    changes.sweep()
        except OSError as error:
            raise BundleError(
                f"cannot write to {self.path} ({error.strerror or error}): make room, or choose another place"
            ) from error

    def to_tar(self, path: str | os.PathLike[str]) -> Path:
        """Write the whole bundle, checked, as one ``.tar`` with fixed times and owners (same bytes every time)."""

        def plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
            info.mtime, info.uid, info.gid, info.uname, info.gname, info.mode = 0, 0, 0, "", "", 0o644
            return info

        target = Path(path)
        with atomic_file(target) as temporary, tarfile.open(temporary, "w") as archive:
            archive.add(self.path / MANIFEST, MANIFEST, filter=plain)
            written = self.manifest
            for relative in self.verify():
                archive.add(self.path / relative, relative, filter=plain)
            if not written == self.manifest == read_manifest(self.path):
                raise BundleError(f"{self.path} was changed while it was packed: pack it again")
        return target


def _manifest_in(folder: Path) -> Manifest:
    plain_path(folder, MANIFEST)  # not elsewhere
    return check_consistent(read_manifest(folder), folder / MANIFEST)


class Changes:
    """Files that are added to a bundle, under its lock, so that a kill at any moment leaves a valid bundle.

    New files are made in ``folder`` and noted in the lock; then they get their names, and the manifest, which is
    renamed into place, lists them: that is the change. What it no longer lists goes last. A file that keeps its name is
    unlisted first, with what names it.

    Attributes:
        folder: hidden, in the bundle; where new files are put under the paths that they will have.
    """

    def __init__(self, bundle: Bundle, lock: int) -> None:
        self._bundle = bundle
        self._lock = lock
        self.folder = bundle.path / STAGING

    def commit(self, added: Sequence[str], *, dropped: Iterable[str] = (), **entries: object) -> None:
        """Move files from ``folder`` to their places and list them.

        Args:
            added: their paths, relative to the bundle.
            dropped: paths of files that are listed no more.
            entries: fields of the manifest that change: ``tables``, ``variants``, ``tools``.

        Raises:
            IntegrityError: a path leads through a symbolic link.
        """
        bundle, old = self._bundle, self._bundle.manifest
        targets = [plain_path(bundle.path, relative) for relative in added]
        records = {relative: file_record(self.folder / relative) for relative in added}
        gone = set(dropped) - set(added)
        kept = {relative: record for relative, record in old.files.items() if relative not in gone}
        self._note([*added, *gone])
        if replaced := old.files.keys() & set(added):
            bundle.manifest = write_manifest(bundle.path, _without(old, replaced))
        for relative, target in zip(added, targets, strict=True):
            target.parent.mkdir(parents=True, exist_ok=True)
            (self.folder / relative).replace(target)
        new = msgspec.structs.replace(old, files=kept | records, **entries)
        bundle.manifest = write_manifest(bundle.path, new)

    def sweep(self) -> None:
        """Remove what was noted and is not listed: the files that were replaced, or what a killed process left."""
        bundle = self._bundle
        bundle.manifest = read_manifest(bundle.path)
        for relative in _noted(bundle.path / LOCK):
            if relative not in bundle.manifest.files and relative != MANIFEST:
                with suppress(FileNotFoundError, IsADirectoryError, IntegrityError):
                    plain_path(bundle.path, relative).unlink()
        self._note([])
        if self.folder.is_symlink() or self.folder.is_file():
            self.folder.unlink()  # somebody else's idea of that name
        shutil.rmtree(self.folder, ignore_errors=True)

    def _note(self, names: Sequence[str]) -> None:
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, msgspec.json.encode(names) if names else b"", 0)


def _noted(lock: Path) -> list[str]:
    """Files that a process which writes to the bundle, or was killed while it did, adds or removes."""
    try:
        return read_json(lock, list[str], error=BundleError) if lock.stat().st_size else []
    except (OSError, BundleError):
        return []  # nobody writes, or the note was not finished: then nothing was done


def _without(manifest: Manifest, files: Collection[str]) -> Manifest:
    """A manifest without some files and the variants and tables that need them."""
    return msgspec.structs.replace(
        manifest,
        variants=tuple(each for each in manifest.variants if not {each.file, *each.data_files} & set(files)),
        tables=tuple(entry for entry in manifest.tables if entry.file not in files),
        files={name: record for name, record in manifest.files.items() if name not in files},
    )


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
    try:
        target = cache_dir("bundles") / sha256_file(archive_path)
        if target.is_dir():
            return target
        with locked(target.with_name(f".{target.name}{LOCK}")):
            if not target.is_dir():  # nor has another process unpacked it meanwhile
                with atomic_folder(target) as folder:
                    _unpack_into(folder, archive_path)
    except OSError as error:
        raise BundleError(
            f"cannot unpack {archive_path} to the cache ({error.strerror or error}): make room, or set EDGECLIP_CACHE "
            "to another folder"
        ) from error
    return target


def _unpack_into(folder: Path, archive_path: Path) -> None:
    for name, read in plain_files(archive_path, error=IntegrityError):
        try:
            relative = safe_path(name)
        except IntegrityError as error:
            raise IntegrityError(f"{archive_path}: {error}") from error
        if any(part.startswith(".") for part in relative.parts):
            continue  # none of a bundle's: what an archiver or a file manager adds
        try:
            (folder / relative).parent.mkdir(parents=True, exist_ok=True)
            with (folder / relative).open("xb") as out:
                while block := read(1 << 20):
                    out.write(block)
        except (FileExistsError, NotADirectoryError) as error:
            raise IntegrityError(f"{archive_path} holds {name!r} twice: pack the bundle's folder again") from error
    try:
        _manifest_in(folder)
    except BundleError as error:  # of a folder that is gone when this is read
        raise type(error)(str(error).replace(str(folder), str(archive_path))) from error


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
