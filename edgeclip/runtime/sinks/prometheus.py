"""Labelled frames and the account in; Prometheus metrics at ``http://127.0.0.1:PORT/metrics`` out."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from edgeclip.errors import InputError
from edgeclip.extras import require
from edgeclip.runtime.records import Event, LabelledFrame, View
from edgeclip.runtime.sinks.base import Run, Sink
from edgeclip.runtime.sources.address import host_and_port, without_password
from edgeclip.runtime.sources.base import Frame

_log = logging.getLogger("edgeclip")

_COUNTS = {
    "read": "Frames that were decoded or delivered",
    "dropped": "Frames of a live source that nobody took",
    "gated": "Frames that had not changed and were not encoded",
    "encoded": "Frames that went through the encoder",
    "failed": "Packets or files that could not be decoded",
    "reconnects": "Times that the source was lost and came back",
}
_BUCKETS_S = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_MOST_EVENT_LABELS = 200  # a time series each; those of further labels are counted as "other"


class PrometheusSink(Sink):
    """Serves metrics for as long as the run lasts; ``docs/sinks.md`` lists them.

    Args:
        address: ``PORT`` or ``HOST:PORT``; without a host only this machine can ask.

    Attributes:
        port: the port in use, once open; another than asked for if that was 0.

    Raises:
        InputError: not such an address.
        MissingExtraError: prometheus-client is not installed.
    """

    name = "prometheus"

    def __init__(self, address: str) -> None:
        self.host, self.port = _parse(address)
        self._library = require("prometheus_client", purpose="serve metrics", extra="prometheus")
        self._server: Any = None
        self._thread: Any = None
        self._run: Run | None = None
        self._views: dict[str, list[View]] = {}
        self._event_labels: set[str] = set()

    def open(self, run: Run) -> None:
        """Start serving.

        Raises:
            InputError: the port is taken, or the host is not of this machine.
        """
        self._run = run
        library = self._library
        registry = library.CollectorRegistry()
        times = {"buckets": _BUCKETS_S, "registry": registry}
        self._latency = library.Histogram(
            "edgeclip_latency_seconds", "From a frame being there to its label", ["source"], **times
        )
        self._encode = library.Histogram(
            "edgeclip_encode_seconds", "From handing a frame to the engine to its embedding", ["source"], **times
        )
        self._events = library.Counter(
            "edgeclip_events", "Labels that came or went", ["label", "kind", "source"], registry=registry
        )
        registry.register(self)
        try:
            self._server, self._thread = library.start_http_server(self.port, self.host, registry=registry)
        except (OSError, UnicodeError) as error:  # UnicodeError: what can be no host's name
            reason = getattr(error, "strerror", None) or error
            raise InputError(
                f"cannot serve metrics at {self.host}:{self.port} ({reason}): choose another port or host"
            ) from error
        self.port = self._server.server_port
        _log.info("metrics at http://%s:%d/metrics", self.host, self.port)

    def write(self, labelled: LabelledFrame, frame: Frame | None) -> None:  # noqa: ARG002 - the interface of every sink
        """Observe the frame's times and remember what is said of it."""
        assert self._run is not None
        source = labelled.source or self._run.sources[0].name
        self._latency.labels(source).observe(labelled.latency_ms / 1e3)
        if not labelled.gated:
            self._encode.labels(source).observe(labelled.encode_ms / 1e3)
        only = View(self._run.tables.names[0], "", labelled.label, labelled.score, labelled.top, labelled.present)
        self._views[source] = labelled.views or [only]
        self._count(source, labelled.events)

    def end(self, source: str, events: list[Event], reason: str) -> None:  # noqa: ARG002 - the interface of every sink
        """Count what left with the source, and forget its scores."""
        self._count(source, events)
        self._views.pop(source, None)

    def close(self, *, complete: bool) -> None:  # noqa: ARG002 - nothing is kept
        """Stop serving."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    def collect(self) -> Iterator[Any]:
        """The account and the latest scores, for whoever asks; called by the library, on a thread of its own."""
        assert self._run is not None
        core = self._library.metrics_core
        account = self._run.account
        for name, said in _COUNTS.items():
            unit = name if name == "reconnects" else f"frames_{name}"
            counter = core.CounterMetricFamily(f"edgeclip_{unit}", said, labels=["source"])
            for source, count in list(account.sources.items()):
                counter.add_metric([source], getattr(count, name))
            yield counter
        lost = core.CounterMetricFamily("edgeclip_sink_dropped", "Records a sink was too slow for", labels=["sink"])
        for sink, number in list(account.sink_dropped.items()):
            lost.add_metric([sink], number)
        yield lost
        dead = core.GaugeMetricFamily("edgeclip_sink_dead", "Sinks that stopped with a fault", labels=["sink"])
        for sink in list(account.sink_failed):
            dead.add_metric([sink], 1)
        yield dead
        score = core.GaugeMetricFamily(
            "edgeclip_label_score", "Score of the current label", labels=["source", "table", "region", "label"]
        )
        for source, views in list(self._views.items()):
            for view in views:
                score.add_metric([source, view.table, view.region, view.label], view.score)
        yield score

    def _count(self, source: str, events: list[Event]) -> None:
        for event in events:
            if len(self._event_labels) < _MOST_EVENT_LABELS:
                self._event_labels.add(event.label)
            label = event.label if event.label in self._event_labels else "other"
            self._events.labels(label, event.kind, source).inc()


def _parse(address: str) -> tuple[str, int]:
    found = host_and_port(address)
    if found is None:
        raise InputError(
            "expected a port, HOST:PORT or [IPv6]:PORT to serve metrics at, such as 9100, got "
            f"{without_password(address)!r}"
        )
    return found[0] or "127.0.0.1", found[1]
