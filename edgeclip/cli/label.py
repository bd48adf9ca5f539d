"""``edgeclip label``: sources, tables and sinks as flags; one stream; one summary."""

from __future__ import annotations

import gc
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeclip.bundle import Bundle
from edgeclip.cli.common import BundleArgument, ClassesHelp, TemplatesHelp, bar, console, notices, output_file
from edgeclip.errors import InputError
from edgeclip.prompts import load_templates

if TYPE_CHECKING:
    from edgeclip.runtime.stream import Stream
    from edgeclip.runtime.tables import TableWatch

_SOURCE_HELP = (
    "Image, folder, pattern, video file, camera index or /dev/video0, rtsp://, http:// (MJPEG, HLS), a GStreamer "
    "pipeline, csi://0, or - for raw frames on stdin; several share one encoder. See docs/sources.md."
)
_INPUT, _DECISIONS, _OUTPUT, _RUN = "What is seen", "What is said", "Where it goes", "What runs"


def label(
    bundle: BundleArgument,
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE...", help=_SOURCE_HELP)],
    table: Annotated[
        list[str] | None, typer.Option(help="Table in the bundle, or a .safetensors file; give it again for more.")
    ] = None,
    classes: Annotated[str | None, typer.Option(help=ClassesHelp + " Needs the text encoder.")] = None,
    templates: Annotated[str, typer.Option(help=TemplatesHelp)] = "simple",
    top: Annotated[int, typer.Option(help="Labels to report for each frame.")] = 5,
    realtime: Annotated[
        bool,
        typer.Option(
            "--realtime", help="Play files as cameras: at their pace, late frames dropped.", rich_help_panel=_INPUT
        ),
    ] = False,
    loop: Annotated[
        int, typer.Option(help="Play video files so many times; 0 for ever.", rich_help_panel=_INPUT, min=0)
    ] = 1,
    limit: Annotated[
        int | None, typer.Option(help="Stop after this many frames of each source.", rich_help_panel=_INPUT)
    ] = None,
    tiles: Annotated[
        str | None, typer.Option(help="Label parts of a grid, COLUMNSxROWS: 3x2.", rich_help_panel=_INPUT)
    ] = None,
    regions: Annotated[
        Path | None, typer.Option(help="Label named boxes or polygons of this JSON file.", rich_help_panel=_INPUT)
    ] = None,
    gate: Annotated[
        float | None,
        typer.Option(
            help="Do not encode frames that changed by no more than so many grey levels (14 was tested).",
            rich_help_panel=_INPUT,
        ),
    ] = None,
    gate_refresh: Annotated[
        float | None,
        typer.Option(help="With --gate: encode at least so often, seconds.", rich_help_panel=_INPUT),
    ] = None,
    smooth: Annotated[
        float, typer.Option(help="Time constant of smoothing, seconds; 0 is none.", rich_help_panel=_DECISIONS)
    ] = 0.0,
    smooth_embeddings: Annotated[
        bool,
        typer.Option("--smooth-embeddings", help="Smooth embeddings in place of scores.", rich_help_panel=_DECISIONS),
    ] = False,
    enter: Annotated[
        float | None,
        typer.Option(help="Score from which a label enters. (while it is the best)", rich_help_panel=_DECISIONS),
    ] = None,
    leave: Annotated[
        float | None, typer.Option(help="Score below which it leaves. (0.7 of enter)", rich_help_panel=_DECISIONS)
    ] = None,
    dwell: Annotated[
        float, typer.Option(help="Seconds that it must have entered or left for.", rich_help_panel=_DECISIONS)
    ] = 0.5,
    unknown_below: Annotated[
        float | None, typer.Option(help="Say unknown where the best score is lower.", rich_help_panel=_DECISIONS)
    ] = None,
    jsonl: Annotated[
        Path | None, typer.Option(help="One JSON line a frame.", callback=output_file, rich_help_panel=_OUTPUT)
    ] = None,
    jsonl_rotate_mb: Annotated[
        float | None, typer.Option(help="Begin a new file at this size, for cameras.", rich_help_panel=_OUTPUT)
    ] = None,
    csv: Annotated[
        Path | None, typer.Option(help="One row a frame.", callback=output_file, rich_help_panel=_OUTPUT)
    ] = None,
    overlay: Annotated[
        Path | None,
        typer.Option(
            help="A video with the labels drawn in (.mp4, .mkv).", callback=output_file, rich_help_panel=_OUTPUT
        ),
    ] = None,
    web: Annotated[bool, typer.Option("--web", help="A live page on this machine.", rich_help_panel=_OUTPUT)] = False,
    web_address: Annotated[
        str, typer.Option(help="Address of the page; any but loopback asks for a token.", rich_help_panel=_OUTPUT)
    ] = "127.0.0.1:8080",
    web_token: Annotated[
        str | None,
        typer.Option(
            envvar="EDGECLIP_WEB_TOKEN",
            help="Token of the page. (none on loopback, else a random one)",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    mqtt: Annotated[str | None, typer.Option(help="mqtt://USER:PASSWORD@HOST/TOPIC", rich_help_panel=_OUTPUT)] = None,
    ha_discovery: Annotated[
        bool,
        typer.Option(
            "--ha-discovery/--no-ha-discovery", help="Announce to Home Assistant over MQTT.", rich_help_panel=_OUTPUT
        ),
    ] = True,
    prometheus: Annotated[str | None, typer.Option(help="Metrics at [HOST:]PORT.", rich_help_panel=_OUTPUT)] = None,
    webhook: Annotated[str | None, typer.Option(help="POST events to this URL.", rich_help_panel=_OUTPUT)] = None,
    variant: Annotated[
        str | None, typer.Option(help="Form of the encoder. (the fastest proved here)", rich_help_panel=_RUN)
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="Inference engine. (the fastest proved here)", rich_help_panel=_RUN)
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            help="CPU threads for the encoder. (the cores or the container's quota)",
            rich_help_panel=_RUN,
        ),
    ] = None,
    unproved: Annotated[
        bool,
        typer.Option("--unproved", help="Run a bundle without golden images to prove it on.", rich_help_panel=_RUN),
    ] = False,
    preprocess: Annotated[
        str, typer.Option(help="auto (the fastest that agrees with exact here), exact or fast.", rich_help_panel=_RUN)
    ] = "auto",
) -> None:
    """Label images, videos and cameras, live.

    Unless told otherwise, it runs the fastest variant and engine that agree with FP32 on this machine, and says which.
    SIGHUP, or a change of a table's file, loads the tables again; Ctrl-C ends it as the end of the streams would.
    The exit code is 1 where an output failed.
    """
    from edgeclip.runtime.decision import DecisionOptions
    from edgeclip.runtime.labeller import Labeller, find_tables_and_files
    from edgeclip.runtime.page.sink import WebSink
    from edgeclip.runtime.regions import load_regions, parse_tiles
    from edgeclip.runtime.sinks.make import SinkOptions, make_sinks
    from edgeclip.runtime.sinks.terminal import TerminalView, print_choice, print_summary
    from edgeclip.runtime.sources.open import SourceOptions, open_source
    from edgeclip.runtime.stream import StreamOptions
    from edgeclip.runtime.tables import TableWatch

    if table and classes is not None:
        raise InputError("expected --table or --classes, got both: leave one out")
    if tiles and regions:
        raise InputError("expected --tiles or --regions, got both: leave one out")
    options = StreamOptions(
        preprocess=preprocess,
        top_k=top,
        limit=limit,
        regions=parse_tiles(tiles) if tiles else load_regions(regions) if regions else (),
        gate=gate,
        gate_refresh_s=gate_refresh,
        decision=DecisionOptions(
            smooth_s=smooth,
            smooth="embeddings" if smooth_embeddings else "scores",
            enter=enter,
            leave=leave,
            dwell_s=dwell,
            unknown_below=unknown_below,
        ),
    )
    sinks = make_sinks(
        SinkOptions(
            jsonl=jsonl,
            jsonl_rotate_mb=jsonl_rotate_mb,
            csv=csv,
            overlay=overlay,
            mqtt=mqtt,
            ha_discovery=ha_discovery,
            prometheus=prometheus,
            webhook=webhook,
        )
    )
    opened = Bundle.open(bundle)
    page = WebSink.at(web_address, token=web_token, bundle=opened, templates=load_templates(templates)) if web else None
    if classes is None:
        found = find_tables_and_files(opened, table)
    else:
        with bar("prompts") as watch_prompts:
            found = [(opened.encode_table("classes", classes, templates, progress=watch_prompts), None)]
    origins = {each.name: file for each, file in found if file is not None}
    files = SourceOptions(loop=loop)
    # Sources first: an address that is wrong is said before seconds are spent on the encoder.
    with ExitStack() as stack:
        cameras = [stack.enter_context(open_source(source, realtime=realtime, options=files)) for source in sources]
        with notices.status("proving the encoder on this machine") as status:
            labeller = Labeller(
                opened, variant=variant, engine=engine, threads=threads, unproved=unproved, progress=status.update
            )
        print_choice(labeller.choice, notices)
        view = TerminalView(console, limit=limit)
        outputs = [*sinks, *([page] if page else []), view]
        stream = labeller.stream(*cameras, table=[each for each, _ in found], options=options, sinks=outputs)
        with stream, TableWatch(stream.tables, origins) as watch, _signals(stream, watch):
            notices.print(str(stream.preprocessing), style="dim", highlight=False)
            for said in stream.tables.said.values():
                notices.print(said, style="dim", markup=False, highlight=False, soft_wrap=True)
            if page:
                notices.print(f"live page: {page.url}", highlight=False, soft_wrap=True)
            gc.collect()
            gc.freeze()  # all that was loaded stays: the collector going through it would stop the loop for 15 to 40 ms
            account = stream.run()
    print_summary(account, console)
    if account.sink_failed or any(lost >= account.labelled for lost in account.sink_dropped.values()):
        raise typer.Exit(1)


@contextmanager
def _signals(stream: Stream, watch: TableWatch) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM ends the stream, the second the process; SIGHUP loads the tables again."""

    def end(number: int, _frame: Any) -> None:
        signal.signal(number, previous[signal.Signals(number)])
        # A handler runs wherever the main thread is, also where it holds a lock that stopping needs.
        threading.Thread(target=stream.stop, kwargs={"interrupted": True}, name="edgeclip-stop").start()

    handlers = {signal.SIGINT: end, signal.SIGTERM: end, signal.SIGHUP: lambda *_: watch.reload()}
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
