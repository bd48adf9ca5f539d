"""What the command line says of outputs in; the sinks it means out, refused before the encoder is loaded."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from pkgutil import resolve_name

from edgeclip.errors import InputError
from edgeclip.outputs import check_writable
from edgeclip.runtime.sinks.base import Sink

WEBHOOK_SECRET = "EDGECLIP_WEBHOOK_SECRET"


@dataclass(frozen=True)
class SinkOptions:
    """Where labelled frames go; every output that is not None gets them.

    Attributes:
        jsonl: file with a JSON line a frame.
        jsonl_rotate_mb: where a source is live, start a new such file before this many megabytes.
        csv: file with a row a frame and view.
        overlay: video with the labels drawn in.
        mqtt: ``mqtt://user:password@host:1883/base/topic``.
        ha_discovery: whether to tell Home Assistant over MQTT what there is.
        prometheus: ``PORT`` or ``HOST:PORT`` of the metrics.
        webhook: URL that events are posted to, signed with ``$EDGECLIP_WEBHOOK_SECRET`` where that is set.
    """

    jsonl: Path | None = None
    jsonl_rotate_mb: float | None = None
    csv: Path | None = None
    overlay: Path | None = None
    mqtt: str | None = field(default=None, repr=False)  # with a password
    ha_discovery: bool = True
    prometheus: str | None = None
    webhook: str | None = field(default=None, repr=False)  # often a secret as a whole


def make_sinks(options: SinkOptions) -> list[Sink]:
    """Make the sinks that the options ask for; nothing is opened or written yet.

    Raises:
        InputError: a file that cannot be written, a wrong suffix or address, or one file for two sinks.
        MissingExtraError: a sink's library is not installed.
    """
    files = [path for path in (options.jsonl, options.csv, options.overlay) if path is not None]
    for path in files:
        check_writable(path)
    same = {path for path in files if [other.resolve() for other in files].count(path.resolve()) > 1}
    if same:
        raise InputError(f"expected a file for each output, got {same.pop()} for two: give one another name")
    if options.jsonl_rotate_mb is not None and options.jsonl is None:
        raise InputError("expected a file `jsonl` beside `jsonl_rotate_mb`, got no file: add one")
    return [
        resolve_name(f"edgeclip.runtime.sinks.{where}")(value, **more)  # imported only where asked for: start-up counts
        for where, value, more in _wanted(options)
        if value is not None
    ]


def _wanted(options: SinkOptions) -> list[tuple[str, object, dict[str, object]]]:
    """Module and class of each kind of sink, its first argument (None where it is not wanted) and the others."""
    return [
        ("files:JsonlSink", options.jsonl, {"rotate_mb": options.jsonl_rotate_mb}),
        ("files:CsvSink", options.csv, {}),
        ("video:OverlaySink", options.overlay, {}),
        ("mqtt:MqttSink", options.mqtt, {"discovery": options.ha_discovery}),
        ("prometheus:PrometheusSink", options.prometheus, {}),
        ("webhook:WebhookSink", options.webhook, {"secret": os.environ.get(WEBHOOK_SECRET)}),
    ]
