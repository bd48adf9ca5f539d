"""``mqtt://user:pass@host:1883/base/topic`` in; host, port, credentials and base topic out."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from edgeclip.errors import InputError

_PORTS = {"mqtt": 1883, "mqtts": 8883}


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
            raise InputError(f"{wanted}, got one whose host or port cannot be read") from None
        if parts.scheme not in _PORTS:
            got = f"scheme {parts.scheme!r}" if "://" in url else "no mqtt:// or mqtts:// at its beginning"
            raise InputError(f"{wanted}, got {got}")
        if not parts.hostname:
            raise InputError(f"{wanted}, got no host")
        if parts.query or parts.fragment:
            raise InputError(f"{wanted}, got '?' or '#' in it: write them as %3F and %23 in a password")
        base = unquote(parts.path).strip("/") or "edgeclip"
        if re.search(r"[+#\x00]", base):
            raise InputError(f"{wanted}, got the topic {base!r}: '+' and '#' cannot be published to")
        user = unquote(parts.username) if parts.username else None
        password = unquote(parts.password) if parts.password else None
        return cls(parts.hostname, port or _PORTS[parts.scheme], base, parts.scheme == "mqtts", user, password)
