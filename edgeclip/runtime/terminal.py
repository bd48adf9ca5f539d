"""Labelled frames in, a live terminal view out: frames a second, the current labels, drops."""

from __future__ import annotations

import time
from collections import deque
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from edgeclip.runtime.choose import Choice
from edgeclip.runtime.label import Account
from edgeclip.runtime.sinks import LabelledFrame

_REFRESH_S = 0.1
_BAR_WIDTH = 30
_LABELS_IN_SUMMARY = 10


class TerminalView:
    """A block of lines that is redrawn in place; on anything but a terminal it draws nothing.

    Args:
        console: where to draw.
        name: of the source.
        total: frames to come, where known.
    """

    def __init__(self, console: Console, name: str, total: int | None) -> None:
        self._name = name
        self._total = total
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._recent: deque[float] = deque(maxlen=30)
        self._drawn = 0.0

    def __enter__(self) -> TerminalView:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, labelled: LabelledFrame, account: Account) -> None:
        """Show the state after one more frame, at most ten times a second."""
        now = time.perf_counter()
        self._recent.append(now)
        if self._live is None or now - self._drawn < _REFRESH_S:
            return
        self._drawn = now
        self._live.update(self._render(labelled, account), refresh=True)

    def _render(self, labelled: LabelledFrame, account: Account) -> Group:
        span = self._recent[-1] - self._recent[0]
        fps = (len(self._recent) - 1) / span if span > 0 else 0.0
        of = f" / {self._total:,}" if self._total else ""
        head = Text.assemble(
            (self._name, "bold"),
            f"   frame {labelled.frame + 1:,}{of}   {labelled.time_s:.1f} s   ",
            (f"{fps:.1f} frames/s", "cyan"),
            f"   encode {labelled.encode_ms:.1f} ms   ",
            (f"dropped {account.dropped:,}   failed {account.failed:,}", "dim"),
        )
        bars = Table.grid(padding=(0, 1))
        for row, (label, score) in enumerate(labelled.top):
            style = "bold green" if row == 0 else "dim"
            bars.add_row(
                Text(label, style), Text("█" * max(1, round(score * _BAR_WIDTH)), style), Text(f"{score:.2f}", style)
            )
        return Group(head, bars)


def print_summary(account: Account, console: Console) -> None:
    """Say what became of every frame, how fast it went and which labels were seen."""
    console.print(
        f"{account.encoded:,} frames labelled, {account.dropped:,} dropped, {account.failed:,} failed"
        f" in {account.elapsed_s:.1f} s ({account.fps:.1f} frames/s){'; stopped' if account.interrupted else ''}",
        highlight=False,
    )
    if not account.encoded:
        return
    encode, preprocess = account.encode_ms, account.preprocess_ms
    console.print(
        f"encode p50 {account.percentile(encode, 50):.1f} ms, p99 {account.percentile(encode, 99):.1f} ms; "
        f"preprocess p50 {account.percentile(preprocess, 50):.1f} ms, p99 {account.percentile(preprocess, 99):.1f} ms",
        highlight=False,
    )
    table = Table.grid(padding=(0, 2))
    for label, count in account.labels.most_common(_LABELS_IN_SUMMARY):
        table.add_row(Text(label), f"{count:,} frames", f"{count / account.encoded:.1%}")
    console.print(table)


def print_choice(choice: Choice, console: Console) -> None:
    """Say which variant and engine will run, why, and what was refused."""
    lines = [f"{choice.variant} on {choice.engine}: {choice.why}"]
    lines += [f"not {variant} on {engine}: {reason}" for variant, engine, reason in choice.refused]
    for line in lines:
        console.print(line, style="dim", markup=False, highlight=False, soft_wrap=True)  # a reason may hold brackets
