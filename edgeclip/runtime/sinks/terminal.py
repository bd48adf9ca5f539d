"""Labelled frames in, a live terminal view out; an account in, its summary out."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from edgeclip.printable import counted
from edgeclip.runtime.account import Account, SourceCount
from edgeclip.runtime.proof.choose import Choice
from edgeclip.runtime.records import Event, LabelledFrame
from edgeclip.runtime.sinks.base import Run, Sink
from edgeclip.runtime.sources.base import Frame, Source

_REFRESH_S = 0.1
_RATE_OVER_S = 2.0
_BAR_WIDTH = 30
_BARS, _BARS_AMONG_SEVERAL = 5, 2
_EVENTS_SHOWN = 4
_LABELS_IN_SUMMARY = 10
_FAILURES_IN_SUMMARY = 20


@dataclass
class _Seen:
    """What the view knows of one source."""

    source: Source
    latest: LabelledFrame | None = None
    times: deque[float] = field(default_factory=deque)  # of the frames of the last two seconds
    ended: str | None = None

    def add(self, labelled: LabelledFrame, now: float) -> None:
        self.latest = labelled
        self.times.append(now)
        while now - self.times[0] > _RATE_OVER_S:
            self.times.popleft()

    @property
    def fps(self) -> float:
        span = self.times[-1] - self.times[0] if self.times else 0.0
        return (len(self.times) - 1) / span if span > 0 else 0.0


class TerminalView(Sink):
    """A block of lines that is redrawn in place, at most ten times a second; off a terminal it draws nothing.

    Args:
        console: where to draw.
        limit: frames that will be taken of each source at most.
    """

    name = "terminal"
    only_shows = True

    def __init__(self, console: Console, *, limit: int | None = None) -> None:
        self._limit = limit
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._seen: dict[str, _Seen] = {}
        self._events: deque[Event] = deque(maxlen=_EVENTS_SHOWN)
        self._account = Account()
        self._drawn = float("-inf")

    def open(self, run: Run) -> None:
        """Take over the last lines of the terminal."""
        self._account = run.account
        self._seen = {source.name: _Seen(source) for source in run.sources}
        if self._live:
            self._live.start()

    def write(self, labelled: LabelledFrame, frame: Frame | None) -> None:  # noqa: ARG002 - the interface of every sink
        """Show the state after one more frame."""
        if self._live is None:
            return
        now = time.perf_counter()
        self._seen[labelled.source or next(iter(self._seen))].add(labelled, now)
        self._events.extend(labelled.events)
        if now - self._drawn >= _REFRESH_S:
            self._draw(now)

    def end(self, source: str, events: list[Event], reason: str) -> None:
        """Show that a source has ended."""
        self._seen[source].ended = reason or "ended"
        self._events.extend(events)
        if self._live:
            self._draw(time.perf_counter())

    def close(self, *, complete: bool) -> None:  # noqa: ARG002 - the view goes either way
        """Give the lines back."""
        if self._live:
            self._live.stop()

    def _draw(self, now: float) -> None:
        assert self._live is not None
        self._drawn = now
        self._live.update(Group(*self._lines()), refresh=True)

    def _lines(self) -> Iterator[RenderableType]:
        several = len(self._seen) > 1
        for name, seen in self._seen.items():
            yield self._head(name, seen)
            if seen.latest is not None:
                if not seen.latest.top or seen.latest.label != seen.latest.top[0].label:
                    yield Text(seen.latest.label, "bold yellow")  # unknown, whatever the best score is
                yield _bars(seen.latest, _BARS_AMONG_SEVERAL if several else _BARS)
                if seen.latest.present:
                    yield Text(f"present: {', '.join(seen.latest.present)}", "green", no_wrap=True, overflow="ellipsis")
        latency = self._account.latency_ms
        yield Text(f"latency {_percentiles(latency, 50, 99)}", "dim")
        for event in self._events:
            yield _event_line(event, several=several)

    def _head(self, name: str, seen: _Seen) -> Text:
        head = Text.assemble((name, "bold"), no_wrap=True, overflow="ellipsis")
        count = self._account.sources.get(name, SourceCount())
        if seen.latest is None:
            head.append("   waiting for the first frame", "dim")
        else:
            total = (
                self._limit if seen.source.total is None else min(seen.source.total, self._limit or seen.source.total)
            )
            head.append(f"   frame {seen.latest.frame + 1:,}{f' / {total:,}' if total else ''}")
            head.append(f"   {seen.latest.time_s:.1f} s   ")
            head.append(f"{seen.fps:.1f} frames/s", "cyan")
        lost = {"dropped": count.dropped, "gated": count.gated, "failed": count.failed, "reconnects": count.reconnects}
        head.append("".join(f"   {what} {number:,}" for what, number in lost.items() if number), "dim")
        if seen.ended is not None:
            head.append(f"   {seen.ended}", "yellow")
        elif seen.source.live and seen.source.state:
            head.append(f"   {seen.source.state}", "dim")
        return head


def _bars(labelled: LabelledFrame, count: int) -> Table:
    bars = Table.grid(padding=(0, 1))
    for label, score in labelled.top[:count]:
        style = "bold green" if label == labelled.label else "dim"
        length = max(1, round(score * _BAR_WIDTH))
        bars.add_row(Text(label, style), Text("█" * length, style), Text(f"{score:.2f}", style))
    return bars


def _event_line(event: Event, *, several: bool) -> Text:
    where = " ".join(part for part in (event.source if several else "", event.table, event.region) if part)
    stay = f" after {event.end_s - event.start_s:.1f} s" if event.end_s is not None else ""
    mark, style = ("+", "green") if event.kind == "enter" else ("-", "red")
    text = f"{mark} {event.time_s:8.1f} s  {event.label}{stay}{f'  ({where})' if where else ''}"
    return Text(text, style, no_wrap=True, overflow="ellipsis")


def print_summary(account: Account, console: Console) -> None:
    """Say what became of every frame, how long it took, which labels were seen and which sinks failed."""
    _say(
        f"{counted(account.labelled, 'frame')} labelled in {account.elapsed_s:.1f} s ({account.fps:.1f} frames/s)"
        f"{'; stopped' if account.interrupted else ''}",
        console,
    )
    for name, count in account.sources.items():
        whose = f"{name}: " if len(account.sources) > 1 else ""
        _say(f"{whose}{_count_line(count)}", console)
    if len(account.sources) > 1:
        reconnects = sum(count.reconnects for count in account.sources.values())
        total = SourceCount(account.read, account.dropped, account.gated, account.encoded, account.failed, reconnects)
        _say(f"together: {_count_line(total)}", console)
    if account.labelled:
        _say(f"latency {_percentiles(account.latency_ms, 50, 90, 99)}", console)
        _say(
            f"encode {_percentiles(account.encode_ms, 50, 99)}; "
            f"preprocess {_percentiles(account.preprocess_ms, 50, 99)}; {account.events:,} events",
            console,
        )
        table = Table.grid(padding=(0, 2))
        for label, number in account.labels.most_common(_LABELS_IN_SUMMARY):
            table.add_row(Text(label), counted(number, "frame"), f"{number / account.labelled:.1%}")
        console.print(table)
    for name, count in account.sources.items():
        for failed in count.failures[:_FAILURES_IN_SUMMARY]:
            whose = f"{name}: " if len(account.sources) > 1 else ""
            _say(f"{whose}failed: {failed.name} ({failed.reason})", console, style="yellow")
        if (more := len(count.failures) - _FAILURES_IN_SUMMARY) > 0:
            _say(f"{more:,} more failed", console, style="yellow")
    for sink, lost in account.sink_dropped.items():
        _say(f"{sink} was too slow for {lost:,} records", console, style="yellow")
    for sink, reason in account.sink_failed.items():
        _say(f"{sink} failed: {reason}", console, style="red")


def _count_line(count: SourceCount) -> str:
    line = (
        f"{count.read:,} read, {count.dropped:,} dropped, {count.gated:,} gated, {count.encoded:,} encoded, "
        f"{count.failed:,} failed"
    )
    return line + (f", {count.reconnects:,} reconnects" if count.reconnects else "")


def _percentiles(values: deque[float], *which: int) -> str:
    return ", ".join(f"p{q} {Account.percentile(values, q):.1f} ms" for q in which)


def _say(line: str, console: Console, *, style: str | None = None) -> None:
    console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)  # names may hold brackets


def print_choice(choice: Choice, console: Console) -> None:
    """Say which variant and engine will run, why, and what was refused."""
    lines = [f"{choice.variant} on {choice.engine}: {choice.why}"]
    lines += [f"not {variant} on {engine}: {reason}" for variant, engine, reason in choice.refused]
    for line in lines:
        console.print(line, style="dim", markup=False, highlight=False, soft_wrap=True)  # a reason may hold brackets
