"""The verb ``prove``: a bundle and photographs of a site in; what agrees with FP32 there, limit by limit, out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeclip.bundle import Bundle
from edgeclip.cli.common import BundleArgument, console, notices

if TYPE_CHECKING:
    from edgeclip.runtime.proof.renew import Held, Renewal

_NAMED = 20
_STYLES = {"checked": "green", "failed": "red", "could not be checked": "yellow"}


def prove(
    bundle: BundleArgument,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of photographs of the site. \\[those given before, or else the bundle's own]"),
    ] = None,
    variant: Annotated[
        list[str] | None, typer.Option(help="Form of the encoder; give it again for more. \\[all]")
    ] = None,
    engine: Annotated[
        list[str] | None, typer.Option(help="Inference engine; give it again for more. \\[all that are here]")
    ] = None,
    stored: Annotated[
        bool, typer.Option("--stored", help="Go back to the bundle's own images and the embeddings stored with them.")
    ] = False,
    count: Annotated[int, typer.Option(help="So many different photographs are enough.")] = 64,
    threads: Annotated[int | None, typer.Option(help="CPU threads an inference. \\[the cores]")] = None,
) -> None:
    """Hold a bundle's variants against FP32 on this device, on photographs of the place where it will work.

    FP32 encodes them here, on ONNX Runtime. The device keeps them, and whatever it runs from then on is proved on them.
    The exit code is 1 if what was asked for disagrees with FP32, or could not run.
    It is 0 also where what agrees is provisional, which is told.
    """
    from edgeclip.runtime.proof.renew import prove as renew

    opened = Bundle.open(bundle)
    with notices.status("proving the encoder on this machine") as status:
        renewal = renew(
            opened,
            images,
            variant=variant,
            engine=engine,
            stored=stored,
            count=count,
            threads=threads,
            progress=status.update,
        )
    print_renewal(renewal, console)
    if renewal.failed:
        raise typer.Exit(1)


def print_renewal(renewal: Renewal, console: Console) -> None:
    """Print what became of the images, of every limit of every variant on every engine, and what it is worth."""
    if renewal.images is not None:
        _say(str(renewal.images), console)
        undecodable = renewal.images.undecodable
        for said in undecodable[:_NAMED]:
            _say(f"  {said}", console, style="yellow")
        if len(undecodable) > _NAMED:
            _say(f"  and {len(undecodable) - _NAMED:,} more", console, style="yellow")
    for said in renewal.told:
        _say(said, console, style="yellow")
    for held in renewal.held:
        _print_held(held, console)
    for said in renewal.failed:
        _say(f"not proved: {said}", console, style="red")


def _print_held(held: Held, console: Console) -> None:
    name, proof = f"{held.variant} on {held.engine}", held.proof
    if proof is None:
        _say(f"{name}: could not run: {held.refused}", console, style="yellow")
        return
    verdict = "agrees with fp32" if held.passed else "wrong"
    _say(f"{name}: {verdict}, {proof.latency_ms:.1f} ms an image; {proof.ran_on}", console)
    limits = Table("limit", "expected", "got", "", box=None, header_style="bold", padding=(0, 1))
    for check in proof.checks:
        status = Text(check.status, _STYLES[check.status])
        limits.add_row(*map(Text, (check.figure, check.expected, check.got or "-")), status)
    console.print(limits, highlight=False)
    if proof.slowed_by:
        _say(f"  {proof.slowed_by}: prove again when they rest", console, style="yellow")
    if proof.unchecked:
        _say(f"  could not be checked, as {held.why_unchecked}: {', '.join(proof.unchecked)}", console, style="yellow")
    if held.passed:
        _say(f"  {'' if held.basis.provisional else 'proved '}{held.basis}", console)


def _say(line: str, console: Console, *, style: str | None = None) -> None:
    console.print(line, style=style, highlight=False, soft_wrap=True)
