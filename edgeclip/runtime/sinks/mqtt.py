"""Labelled frames in; retained states and events on an MQTT broker out, for Home Assistant among others.

Home Assistant finds the entities by its MQTT discovery (home-assistant.io/integrations/mqtt).
"""

from __future__ import annotations

import json
import logging
import re
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec

from edgeclip.errors import EdgeclipError, InputError
from edgeclip.extras import require
from edgeclip.runtime.records import Event, LabelledFrame
from edgeclip.runtime.sinks.base import Run, Sink, hashed, slug, slugs
from edgeclip.runtime.sources.address import ESCAPING, escaping_hint, is_cut_wrongly
from edgeclip.runtime.sources.base import Frame
from edgeclip.version import __version__

_log = logging.getLogger("edgeclip")

_QUEUED = 1000  # messages kept while the broker is away
_SCORE_STEP = 0.05  # a smaller change of the score alone is not worth a message
_FLUSH_S = 3.0
_LONGEST_BASE = 1000
_LONGEST_PACKET = 64 << 10  # nothing is subscribed to: acknowledgements come, and pings
_PORTS = {"mqtt": 1883, "mqtts": 8883}
_PREFIX = "homeassistant"  # what Home Assistant listens to unless told otherwise
_MOST_LABELS = 50  # of a table; more binary sensors than that help nobody


@dataclass
class _State:
    """What was last known and last published of one source."""

    topic: str
    events: str
    latest: LabelledFrame | None = None
    published: LabelledFrame | None = None
    published_at: float = float("-inf")

    def changed(self) -> bool:
        latest, published = self.latest, self.published
        if latest is None or published is None:
            return latest is not None
        return (
            (latest.label, latest.present) != (published.label, published.present)
            or [(view.label, view.present) for view in latest.views]
            != [(view.label, view.present) for view in published.views]
            or abs(latest.score - published.score) >= _SCORE_STEP
        )


class MqttSink(Sink):
    """Publishes with QoS 1; see ``docs/sinks.md`` for topics and payloads.

    A broker that is absent or goes away is tried again for as long as the run lasts. Meanwhile up to 1,000 events are
    kept; states are not, as only the latest counts.

    Args:
        url: ``mqtt://user:password@host:1883/base/topic`` or ``mqtts://...``.
        discovery: whether to publish what Home Assistant needs to find the entities by itself.
        interval_s: shortest time between two states of a source.

    Raises:
        InputError: not such a URL.
        MissingExtraError: paho-mqtt is not installed.
    """

    name = "mqtt"

    def __init__(self, url: str, *, discovery: bool = True, interval_s: float = 1.0) -> None:
        self.address = MqttAddress.parse(url)
        self._paho = require("paho.mqtt.client", purpose="publish to MQTT", extra="mqtt")
        self._discovery = discovery
        self._interval_s = interval_s
        self._client: Any = None
        self._states: dict[str, _State] = {}
        self._run: Run | None = None
        self._labels: tuple[str, ...] = ()
        self._configs: dict[str, bytes] = {}
        self._configs_lock = threading.Lock()
        self._connected = threading.Event()
        self._lost_retained = threading.Event()  # the broker may have forgotten what was retained
        self._trouble = "there was no time"
        self._acknowledged = threading.Condition()
        self._waiting = 0  # messages that were handed to paho and are not acknowledged
        self._refused = 0  # messages that paho's full queue did not take
        self._ever_connected = False

    def open(self, run: Run) -> None:
        """Start connecting, without waiting for the broker.

        Raises:
            InputError: there is no host of that name.
        """
        address = self.address
        try:
            socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        except (socket.gaierror, UnicodeError) as error:
            if getattr(error, "errno", None) == socket.EAI_AGAIN:  # no network yet: paho will look again
                self._trouble = "its name cannot be looked up yet"
            else:
                raise InputError(f"expected an MQTT broker, got {address}: there is no such host") from error
        self._run = run
        base, own = address.base, slugs(source.name for source in run.sources)
        self._states = {name: _State(f"{base}/{slug}/state", f"{base}/{slug}/event") for name, slug in own.items()}
        paho = self._paho
        client = self._client = _bounded(paho.Client)(paho.CallbackAPIVersion.VERSION2)
        client.max_queued_messages_set(_QUEUED)
        client.reconnect_delay_set(min_delay=1, max_delay=30)
        client.will_set(f"{base}/status", "offline", qos=1, retain=True)
        if address.user is not None:
            client.username_pw_set(address.user, address.password)
        if address.tls:
            client.tls_set()
        client.on_connect, client.on_disconnect = self._on_connect, self._on_disconnect
        client.on_connect_fail, client.on_publish = self._on_connect_fail, self._on_publish
        self._refresh_configs()
        client.connect_async(address.host, address.port, keepalive=30)
        client.loop_start()  # its thread connects, and connects again

    def write(self, labelled: LabelledFrame, frame: Frame | None) -> None:  # noqa: ARG002 - the interface of every sink
        """Publish the frame's events, and its state if that has changed."""
        state = self._states[labelled.source or next(iter(self._states))]
        state.latest = labelled
        for event in labelled.events:
            self._publish(state.events, msgspec.json.encode(event))
        if not self._connected.is_set():
            return
        if self._lost_retained.is_set():
            self._lost_retained.clear()
            for each in self._states.values():
                self._publish_state(each)
        elif state.changed() and time.perf_counter() - state.published_at >= self._interval_s:
            self._publish_state(state)

    def end(self, source: str, events: list[Event], reason: str) -> None:  # noqa: ARG002 - the interface of every sink
        """Publish what left with the source, and a state in which nothing is present."""
        state = self._states[source]
        for event in events:
            self._publish(state.events, msgspec.json.encode(event))
        if state.latest is not None:
            gone = [msgspec.structs.replace(view, present=[]) for view in state.latest.views]
            state.latest = msgspec.structs.replace(state.latest, present=[], views=gone)
            if state.changed() and self._connected.is_set():
                self._publish_state(state)

    def close(self, *, complete: bool) -> None:  # noqa: ARG002 - what was published stays
        """Publish the last states and ``offline``, and wait a moment for the broker to have taken everything.

        Raises:
            EdgeclipError: the broker never answered, or did not take everything.
        """
        if self._client is None:
            return
        if self._connected.is_set():
            for state in self._states.values():
                if state.changed():
                    self._publish_state(state)
            self._publish(f"{self.address.base}/status", b"offline", retain=True)
            with self._acknowledged:
                self._acknowledged.wait_for(lambda: not self._waiting or not self._connected.is_set(), _FLUSH_S)
        self._client.disconnect()
        self._client.loop_stop()
        missing = self._waiting + self._refused
        count = f"; {missing:,} messages were not delivered" if missing else ""
        if not self._ever_connected:
            raise EdgeclipError(f"no connection to {self.address} ({self._trouble}){count}")
        if missing:
            raise EdgeclipError(f"{self.address}{count}")

    # What follows up to the next line is called by paho's thread too.

    def _publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Hand a message to paho, which never waits."""
        with self._acknowledged:
            self._waiting += 1  # before it can be acknowledged
        info = self._client.publish(topic, payload, qos=1, retain=retain)
        if info.rc not in (self._paho.MQTT_ERR_SUCCESS, self._paho.MQTT_ERR_NO_CONN):
            with self._acknowledged:
                self._waiting -= 1
                self._refused += 1

    def _on_connect(self, _client: Any, _data: object, _flags: object, reason: Any, _properties: object) -> None:
        if reason.is_failure:
            self._say_trouble(str(reason))
            return
        self._ever_connected = True
        self._publish(f"{self.address.base}/status", b"online", retain=True)
        with self._configs_lock:
            configs = list(self._configs.items())
        for topic, payload in configs:
            self._publish(topic, payload, retain=True)
        # States wait for the next frame: paho sends what was under way again after this, and would overwrite them.
        self._lost_retained.set()
        self._connected.set()
        self._trouble = "there was no time"
        _log.info("connected to %s", self.address)

    def _on_disconnect(self, _client: Any, _data: object, _flags: object, reason: Any, _properties: object) -> None:
        if self._connected.is_set() and reason.is_failure:  # else it never was, and why has been said
            self._say_trouble(f"connection lost ({reason})")
        self._connected.clear()
        with self._acknowledged:
            self._acknowledged.notify_all()

    def _on_connect_fail(self, _client: Any, _data: object) -> None:
        doubt = ", or its certificate is not trusted here" if self.address.tls else ""  # paho does not tell which
        self._say_trouble(f"it did not answer{doubt}")

    def _on_publish(self, _client: Any, _data: object, _mid: int, _reason: object, _properties: object) -> None:
        with self._acknowledged:
            self._waiting -= 1
            self._acknowledged.notify_all()

    def _say_trouble(self, reason: str) -> None:
        if reason != self._trouble:
            _log.warning("%s: %s; trying again", self.address, reason)
        self._trouble = reason

    # ------------------------------------------------------------------------------------------------------------------

    def _publish_state(self, state: _State) -> None:
        if state.latest is None:
            return
        self._refresh_configs()
        latest = state.published = state.latest
        state.published_at = time.perf_counter()
        said: dict[str, object] = {
            "label": latest.label,
            "score": round(latest.score, 4),
            "present": latest.present,
            "frame": latest.frame,
            "time_s": latest.time_s,
        }
        if latest.views:
            said["views"] = [
                {
                    "table": view.table,
                    "region": view.region,
                    "label": view.label,
                    "score": round(view.score, 4),
                    "present": view.present,
                }
                for view in latest.views
            ]
        self._publish(state.topic, msgspec.json.encode(said), retain=True)

    def _refresh_configs(self) -> None:
        """Make the discovery payloads of the labels in use; publish what changed, once the broker was told any."""
        assert self._run is not None
        labels = tuple(self._run.tables.current()[0].labels)
        if not self._discovery or (labels == self._labels and self._configs):
            return
        topics = {name: state.topic for name, state in self._states.items()}
        configs = discovery(self.address.base, topics, labels, model=self._run.bundle.manifest.model.name)
        with self._configs_lock:
            earlier, self._configs, self._labels = self._configs, configs, labels
        if self._connected.is_set():
            for topic in [*configs, *(earlier.keys() - configs.keys())]:  # an empty payload takes an entity away
                if configs.get(topic) != earlier.get(topic):
                    self._publish(topic, configs.get(topic, b""), retain=True)


def _bounded(client: Any) -> Any:
    """paho's client class, refusing packets that nobody sends who was asked for nothing.

    paho has no bound of its own, and takes memory for as much as a packet's head announces, up to 256 MB.
    """

    class Bounded(client):  # type: ignore[misc]
        def _sock_recv(self, size: int) -> bytes:
            if size > _LONGEST_PACKET:
                raise ConnectionError(f"the broker announced a packet of {size:,} bytes")
            received: bytes = super()._sock_recv(size)
            return received

    return Bounded


@dataclass(frozen=True)
class MqttAddress:
    """Where to publish; printing it shows no password.

    Attributes:
        host, port: of the broker.
        base: topic that all others lie under.
        tls: whether the connection is encrypted and the broker's certificate checked.
        user, password: credentials, or None.
    """

    host: str
    port: int
    base: str = "edgeclip"
    tls: bool = False
    user: str | None = None
    password: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtts' if self.tls else 'mqtt'}://{host}:{self.port}/{self.base}"

    @classmethod
    def parse(cls, url: str) -> MqttAddress:
        """Take a URL apart; the topic is ``edgeclip`` unless it names one.

        Raises:
            InputError: not such a URL. The message repeats nothing that could be a password.
        """
        wanted = "expected an MQTT address like mqtt://user:password@host:1883/base/topic"
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise InputError(f"{wanted}, got one whose host or port cannot be read{escaping_hint(url)}") from None
        if parts.scheme not in _PORTS:
            got = f"scheme {parts.scheme!r}" if "://" in url else "no mqtt:// or mqtts:// at its beginning"
            raise InputError(f"{wanted}, got {got}")
        if not parts.hostname:
            raise InputError(f"{wanted}, got no host")
        if is_cut_wrongly(url):
            raise InputError(f"{wanted}, got '@' after the first '/', '?' or '#' in it: {ESCAPING}")
        if parts.query or parts.fragment:
            raise InputError(f"{wanted}, got '?' or '#' in it: write them as %3F and %23 in a password")
        base = unquote(parts.path).strip("/") or "edgeclip"
        if re.search(r"[+#\x00]", base):
            raise InputError(f"{wanted}, got the topic {base!r}: '+' and '#' cannot be published to")
        if len(base) > _LONGEST_BASE:
            raise InputError(f"{wanted}, got a topic of {len(base):,} letters: use {_LONGEST_BASE} at most")
        user = unquote(parts.username) if parts.username else None
        password = unquote(parts.password) if parts.password else None
        return cls(parts.hostname, port or _PORTS[parts.scheme], base, parts.scheme == "mqtts", user, password)


def discovery(base: str, states: Mapping[str, str], labels: Sequence[str], *, model: str) -> dict[str, bytes]:
    """Topic → retained payload: a sensor of the label for each source, and a binary sensor for each label present.

    Args:
        base: base topic; its ``status`` says whether the entities are available.
        states: name of a source → its state topic.
        labels: of the first table; more than 50 get no binary sensors.
        model: for people.
    """
    device = {"identifiers": [_id(base)], "name": base, "manufacturer": "edgeclip", "model": model}
    payloads = {}

    def add(kind: str, name: str, source: str, *item: str, **more: object) -> None:
        unique = _id(base, source, *item)
        payloads[f"{_PREFIX}/{kind}/{unique}/config"] = json.dumps(
            {
                "name": f"{source} {name}",
                "unique_id": unique,
                "state_topic": states[source],
                "availability_topic": f"{base}/status",
                "device": device,
                "origin": {"name": "edgeclip", "sw_version": __version__},
                **more,
            },
            ensure_ascii=False,
        ).encode()

    for source, topic in states.items():
        template = "{{ value_json.label }}"
        add("sensor", "label", source, "label", value_template=template, json_attributes_topic=topic)
        for label in labels if len(labels) <= _MOST_LABELS else ():
            quoted = json.dumps(label, ensure_ascii=False)  # a JSON string is a string for Jinja too
            template = f"{{{{ 'ON' if {quoted} in value_json.present else 'OFF' }}}}"
            add("binary_sensor", label, source, "present", label, value_template=template)
    return payloads


def _id(*names: str) -> str:
    """What Home Assistant knows a thing by, whatever else there is: for people, and with a hash of its exact names."""
    return hashed(slug("-".join(["edgeclip", *names])).replace(".", "_"), *names)
