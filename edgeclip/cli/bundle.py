"""The verbs ``inspect``, ``verify`` and ``demo``: what a bundle holds, whether it is whole, the shipped one at work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeclip.bundle import Bundle
from edgeclip.cli.common import BundleArgument, console, output_folder
from edgeclip.extras import require
from edgeclip.prompts import PromptTable

if TYPE_CHECKING:
    from edgeclip.runtime.proof.basis import Basis


def inspect(bundle: BundleArgument) -> None:
    """Print what a bundle holds."""
    print_card(Bundle.open(bundle), console)


def verify(bundle: BundleArgument) -> None:
    """Check every file of a bundle against its sha256, and every table against the encoder."""
    opened = Bundle.open(bundle)
    for relative in opened.verify():
        console.print(Text.assemble(("ok", "green"), f"  {relative}"), soft_wrap=True)
    for entry in opened.manifest.tables:
        opened.table(entry.name)
    console.print(f"{len(opened.manifest.files)} files match; model {opened.manifest.model.id}", highlight=False)


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the results.", callback=output_folder)
    ] = Path("demo-out"),
    variant: Annotated[str, typer.Option(help="Form of the encoder.")] = "fp32",
) -> None:
    """Label a camera-like stream made from real photographs with the starter bundle, and say how well it went."""
    require("skimage", purpose="get the demo's photographs")
    from edgeclip.cli.demo import run_demo

    run_demo(output, variant=variant, console=console)


def print_card(bundle: Bundle, console: Console) -> None:
    """Print model, preprocessing, scoring, variants, tables and tools of a bundle.

    Raises:
        IntegrityError: a table is missing or altered.
        TableError: it cannot be used.
    """
    manifest = bundle.manifest
    prompts = [bundle.table(entry.name) for entry in manifest.tables]  # before a line is printed: it may be refused
    model, encoder = manifest.model, manifest.encoder
    preprocess = encoder.preprocess
    resize = f"shorter side to {preprocess.resize_to}" if preprocess.resize == "shortest" else "squashed"
    origin = f"{model.origin.loader}:{model.origin.name}"
    if model.origin.pretrained:
        origin += f" ({model.origin.pretrained})"
    if model.origin.seed is not None:
        origin += f" (random weights, seed {model.origin.seed})"
    facts = Table.grid(padding=(0, 2))
    facts.add_row("bundle", str(bundle.path))
    facts.add_row("model", f"{model.name}  id {model.id}")
    facts.add_row("origin", origin)
    if model.distilled_from:
        facts.add_row("tables", f"takes those made for {', '.join(model.table_ids[1:])} too")
    facts.add_row("input", f"{preprocess.height}×{preprocess.width} RGB, {resize}, {preprocess.interpolation}")
    facts.add_row("normalise", f"mean {_numbers(preprocess.mean)}  std {_numbers(preprocess.std)}")
    facts.add_row(
        "score",
        f"{encoder.score}({encoder.logit_scale:.3f} · cos {encoder.logit_bias:+.3f}), width {encoder.embedding_dim}",
    )
    # With the runtime, which other verbs need not load.
    from edgeclip.runtime.proof.choose import recommendations

    for found in recommendations(bundle):
        where = found.machine.get("board") or found.machine.get("cpu") or "another machine"
        facts.add_row(
            "recommended", f"{found.variant} on {found.engine}, measured on {where}: {found.latency_ms:.2f} ms"
        )
    facts.add_row("tools", ", ".join(f"{name} {version}" for name, version in sorted(manifest.tools.items())))
    console.print(facts, highlight=False)
    for said in _proved_on(bundle):  # whole, as it ends with a command
        console.print(f"{'proofs of':<11}{said}", markup=False, highlight=False, soft_wrap=True)

    variants = Table("variant", "precision", "opset", "batch", "MB", box=None, header_style="bold", padding=(0, 2))
    for variant in manifest.variants:
        size = sum(manifest.files[name].size for name in (variant.file, *variant.data_files))
        batch = "any" if variant.dynamic_batch else "1"
        variants.add_row(variant.name, variant.precision, str(variant.opset), batch, f"{size / 1e6:.1f}")
    console.print(variants, highlight=False)

    tables = Table(
        "table", "classes", "background", "thresholds", "content", box=None, header_style="bold", padding=(0, 2)
    )
    for entry, table in zip(manifest.tables, prompts, strict=True):
        tables.add_row(
            entry.name,
            str(len(table.classes)),
            str(len(table.background)),
            str(len(table.thresholds) or "none"),
            entry.content_hash[:12],
        )
    if prompts:
        console.print(tables, highlight=False)
        for said in _decisions(bundle, prompts):
            console.print(said, highlight=False, markup=False, soft_wrap=True)
    else:
        console.print("no prompt table yet: edgeclip prompts build", highlight=False)


def _proved_on(bundle: Bundle) -> Iterator[str]:
    """What the variants are proved on on this device, those together of which the same is said."""
    from edgeclip.runtime.proof.basis import basis_of, how_to_prove
    from edgeclip.runtime.proof.choose import remedy
    from edgeclip.runtime.proof.site import bundle_name, golden_here

    golden = golden_here(bundle)
    if golden is None:
        yield f"nothing: there are no golden images; {how_to_prove(bundle_name(bundle))} proves it"
        return
    alike: dict[Basis, list[str]] = {}
    for variant in bundle.manifest.variants:
        alike.setdefault(basis_of(bundle, variant.name, golden), []).append(variant.name)
    for basis, names in alike.items():
        yield f"{', '.join(names)}: {basis}{f': {remedy(bundle, basis)}' if basis.provisional else ''}"


def _decisions(bundle: Bundle, tables: list[PromptTable]) -> list[str]:
    """What holds of the decisions in the tables, for each variant that they were fitted for."""
    present = {variant.name for variant in bundle.manifest.variants}
    fitted = [(table, each.facts.variant) for table in tables for each in table.decisions]
    return [bundle.decisions(table, variant).said for table, variant in fitted if variant in present]


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.4g}" for value in values)
