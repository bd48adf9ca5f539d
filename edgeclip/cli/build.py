"""Variants to build in; builds, proofs and layers on the screen out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pkgutil import resolve_name

from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table
from rich.text import Text

from edgeclip.bundle import Bundle
from edgeclip.devices.machine.cuda import require_gpu
from edgeclip.engine_list import engine_entry
from edgeclip.errors import ParityError, VariantError
from edgeclip.runtime.engines.build import build_variant
from edgeclip.runtime.engines.tensorrt import Layer
from edgeclip.runtime.engines.tensorrt_options import BuildOptions
from edgeclip.runtime.proof.basis import basis_of, how_to_prove
from edgeclip.runtime.proof.choose import lacking
from edgeclip.runtime.proof.proof import prove
from edgeclip.runtime.proof.site import bundle_name, require_golden


def build_and_prove(
    bundle: Bundle,
    variants: Sequence[str],
    engine: str,
    options: BuildOptions,
    *,
    unproved: bool = False,
    console: Console,
    bars: Progress,
) -> None:
    """Build every variant, prove each one that runs here, and print what came of it.

    Args:
        unproved: build also for a bundle that has no golden images.

    Raises:
        EngineError: layers are to be read and there is no GPU here, which that takes.
        ParityError: a plan disagrees with FP32, and ``runtime/proof/choose.py`` passes over it; or there are no images
            to prove one on.
        VariantError: there is nothing to build.
        EdgeclipError: a build that failed.
    """
    if not variants:
        raise VariantError(f"{bundle.path.name} has no variant that {engine} is meant for: give --variant")
    reader = engine_entry(engine).layers if options.detailed_layers else None
    read_layers = resolve_name(reader) if reader else None
    if read_layers and engine_entry(engine).nvidia:
        require_gpu("read the layers of a plan, as --layers asks")  # now, not after minutes of building
    elsewhere = options.compute_capability is not None or options.hardware_compatible
    golden = require_golden(bundle, unproved=unproved or elsewhere)  # now, too
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)  # paths and messages hold brackets
    wrong: list[str] = []
    for variant in variants:
        tasks: dict[str, TaskID] = {}

        def watch(phase: str, done: int, total: int, tasks: dict[str, TaskID] = tasks) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase, total=total)
            bars.update(tasks[phase], completed=done, total=total)

        built = build_variant(bundle, variant, engine, options, progress=watch)
        for task in tasks.values():
            bars.remove_task(task)
        how = "found in the cache" if built.reused else f"built in {built.seconds:.1f} s"
        say(f"{variant} for {engine}: {how}, {built.size / 1e6:.1f} MB, {built.path}")
        for note in built.notes:
            say(f"  {note}", style="dim")
        if read_layers:
            _print_layers(read_layers(engine, built.path), console)
        if elsewhere:
            say("  not proved: it is for another machine; build runs the proof there")
        elif golden is None:
            say(f"  not proved: the bundle has no golden images; {how_to_prove(bundle_name(bundle))} proves it")
        else:
            proof = prove(bundle, variant, engine, golden)
            verdict = f"{'wrong' if proof.failures else 'proved'}: {proof}"
            conditions = f"; {proof.conditions}" if proof.conditions else ""
            lacks = "".join(f"; {each}" for each in lacking(bundle, proof, basis_of(bundle, variant, golden)))
            say(f"  {verdict}{lacks}{conditions}", style="red" if proof.failures else None)
            wrong += [f"{variant}: expected {failure}" for failure in proof.failures]
    if wrong:
        raise ParityError(
            f"{engine} disagrees with fp32 on the golden images ({'; '.join(wrong)}): it will not be used"
        )


def _print_layers(layers: Sequence[Layer], console: Console) -> None:
    table = Table("layer", "kind", "outputs", box=None, header_style="bold", padding=(0, 2))
    for layer in layers:
        table.add_row(*map(Text, (layer.name, layer.kind, ", ".join(layer.outputs))))
    console.print(table, highlight=False)
