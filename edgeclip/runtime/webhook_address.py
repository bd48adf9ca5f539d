"""``https://user:pass@host/path`` in; what to ask for, with which credentials, and what may be printed out."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from edgeclip.errors import InputError


@dataclass(frozen=True)
class WebhookAddress:
    """Where events are posted.

    Attributes:
        url: without credentials.
        authorization: header of HTTP basic authentication, or None.
        place: scheme, host and port only, as the rest of a webhook's URL is often its secret.
    """

    url: str = field(repr=False)
    authorization: str | None = field(repr=False)
    place: str

    def __str__(self) -> str:
        return self.place

    @classmethod
    def parse(cls, url: str) -> WebhookAddress:
        """Take a URL apart.

        Raises:
            InputError: not an http or https URL. The message repeats nothing that could be a secret.
        """
        wanted = "expected a webhook like https://host/path"
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise InputError(f"{wanted}, got one whose host or port cannot be read") from None
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise InputError(f"{wanted}, got {'no host' if parts.scheme in {'http', 'https'} else 'another scheme'}")
        if not url.isascii() or any(character.isspace() or not character.isprintable() for character in url):
            raise InputError(f"{wanted}, got blanks or letters beyond ASCII in it: write them as %20 and the like")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        netloc = f"{host}:{port}" if port else host
        authorization = None
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            authorization = "Basic " + base64.b64encode(pair.encode()).decode()
        bare = parts._replace(netloc=netloc, fragment="").geturl()
        return cls(bare, authorization, f"{parts.scheme}://{netloc}")
