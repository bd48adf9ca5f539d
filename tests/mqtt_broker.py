"""A real mosquitto on 127.0.0.1 for tests, which can be killed and started again, and what a subscriber sees of it."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest

from tests.sink_runs import happens

# Debian puts it where only an administrator looks.
MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")


class Broker:
    """A broker in a process of its own.

    Args:
        folder: for its configuration and what it stores.
        more: further lines of configuration.
    """

    def __init__(self, folder: Path, more: str = "allow_anonymous true") -> None:
        if MOSQUITTO is None:
            pytest.skip("needs mosquitto, which is not installed")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._config = folder / "mosquitto.conf"
        self._config.write_text(f"user root\nlistener {self.port} 127.0.0.1\n{more}\n")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it accepts connections."""
        assert MOSQUITTO is not None
        self._process = subprocess.Popen([MOSQUITTO, "-c", str(self._config)], stderr=subprocess.DEVNULL)
        assert happens(self._answers), "mosquitto does not start"

    def kill(self) -> None:
        """Pull the plug; what it held in memory is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True


class Listener:
    """Everything a subscriber of ``#`` gets: (topic, payload, retained)."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, bytes, bool]] = []
        self.subscribed = threading.Event()

    def payloads(self, topic: str) -> list[Any]:
        """Payloads of one topic, decoded where they are JSON."""
        return [_decoded(payload) for seen, payload, _ in list(self.messages) if seen == topic]


def _decoded(payload: bytes) -> Any:
    return json.loads(payload) if payload.startswith(b"{") else payload.decode()


@contextmanager
def listening(port: int) -> Iterator[Listener]:
    """Subscribe to everything."""
    heard = Listener()
    client = paho.Client(paho.CallbackAPIVersion.VERSION2)
    client.on_connect = lambda own, *_: own.subscribe("#", qos=1)
    client.on_subscribe = lambda *_: heard.subscribed.set()
    client.on_message = lambda _own, _data, message: heard.messages.append(
        (message.topic, message.payload, message.retain)
    )
    client.connect("127.0.0.1", port)
    client.loop_start()
    assert heard.subscribed.wait(10)
    try:
        yield heard
    finally:
        client.disconnect()
        client.loop_stop()
