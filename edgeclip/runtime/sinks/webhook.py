"""Events in; one signed HTTP POST each out, tried again until it is taken."""

from __future__ import annotations

import base64
import email.utils
import hashlib
import hmac
import http.client
import logging
import random
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import msgspec

from edgeclip.errors import EdgeclipError, InputError
from edgeclip.printable import printable
from edgeclip.runtime.records import Event, LabelledFrame
from edgeclip.runtime.sinks.base import Run, Sink
from edgeclip.runtime.sources.address import ESCAPING, escaping_hint, is_cut_wrongly
from edgeclip.runtime.sources.base import Frame
from edgeclip.version import __version__

_log = logging.getLogger("edgeclip")

_QUEUED = 1000
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 60.0
_LONGEST_ASKED_WAIT_S = 600.0
_FLUSH_S = 5.0
_LONGEST_REASON = 200


class _Post(NamedTuple):
    body: bytes
    delivery: str


class WebhookSink(Sink):
    """Posts every event, in order, on a thread of its own.

    A refusal for good (4xx other than 408 and 429, or a redirection) passes over that event; anything else is tried
    again after 0.5 s, 1 s, 2 s and so on up to a minute, or later where ``Retry-After`` says so, after ten minutes at
    most. While none is taken the
    latest 1,000 events are kept.

    Args:
        url: where to post to; credentials in it are sent as HTTP basic authentication.
        secret: key of an HMAC-SHA256 over the body, sent as ``X-Edgeclip-Signature: sha256=<hex>``; None for none.
        timeout_s: how long a single attempt may wait for the server.

    Raises:
        InputError: not an http or https URL.
    """

    name = "webhook"

    def __init__(self, url: str, *, secret: str | None = None, timeout_s: float = 10.0) -> None:
        self.address = WebhookAddress.parse(url)
        self._secret = secret.encode() if secret else None
        self._timeout_s = timeout_s
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._changed = threading.Condition()
        self._posts: deque[_Post] = deque()
        self._deadline: float | None = None  # set by close
        self._undelivered = 0
        self._trouble = "there was no time"
        self._source = ""
        self._thread = threading.Thread(target=self._work, name="edgeclip-webhook", daemon=True)

    def open(self, run: Run) -> None:
        """Start the thread that posts."""
        self._source = run.sources[0].name
        self._thread.start()

    def write(self, labelled: LabelledFrame, frame: Frame | None) -> None:  # noqa: ARG002 - the interface of every sink
        """Queue the frame's events, if any."""
        self._add(labelled.events)

    def end(self, source: str, events: list[Event], reason: str) -> None:  # noqa: ARG002 - the interface of every sink
        """Queue what left with the source."""
        self._add(events)

    def close(self, *, complete: bool) -> None:  # noqa: ARG002 - what was posted stays
        """Try once more for what is queued, for a few seconds.

        Raises:
            EdgeclipError: events were not delivered; it says how many and why the last one was not.
        """
        with self._changed:
            self._deadline = time.perf_counter() + _FLUSH_S
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(_FLUSH_S)
        with self._changed:
            missing = self._undelivered + len(self._posts)
        if missing:
            raise EdgeclipError(f"{missing:,} events were not delivered to {self.address} ({self._trouble})")

    def _add(self, events: list[Event]) -> None:
        if not events:
            return
        with self._changed:
            for event in events:
                named = event if event.source else msgspec.structs.replace(event, source=self._source)
                self._posts.append(_Post(msgspec.json.encode(named), str(uuid.uuid4())))
                if len(self._posts) > _QUEUED:
                    self._posts.popleft()
                    self._undelivered += 1
            self._changed.notify_all()

    def _work(self) -> None:
        failures = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._posts or self._deadline is not None)
                if not self._posts or self._left_s() <= 0:
                    return
                post = self._posts[0]
            wait_s = self._send(post, failures)
            failures = failures + 1 if wait_s is not None else 0
            with self._changed:
                if wait_s is None:
                    if self._posts and self._posts[0] is post:  # else it fell out of the full queue meanwhile
                        self._posts.popleft()
                elif self._deadline is not None:
                    return  # that was the last attempt
                else:
                    self._changed.wait_for(lambda: self._deadline is not None, wait_s)

    def _send(self, post: _Post, failures: int) -> float | None:
        """Post once; None if that event is done with, or else how long to wait before trying again."""
        request = urllib.request.Request(self.address.url, data=post.body, method="POST", headers=self._headers(post))
        asked_s = None
        try:
            with self._opener.open(request, timeout=max(min(self._timeout_s, self._left_s()), 0.1)):
                return None
        except urllib.error.HTTPError as error:
            with error:
                self._say_trouble(f"it answered {error.code} {error.reason}")
                if error.code < 500 and error.code not in (408, 429):
                    with self._changed:
                        self._undelivered += 1
                    return None
                asked_s = _retry_after_s(error.headers.get("Retry-After"))
        except urllib.error.URLError as error:
            self._say_trouble(getattr(error.reason, "strerror", None) or str(error.reason))
        except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: a host that is no name
            self._say_trouble(str(error) or type(error).__name__)
        # Half to all of the wait, by chance: many devices must not come back to a server all at once.
        own_s = min(_FIRST_WAIT_S * 2.0 ** min(failures, 30), _LONGEST_WAIT_S) * random.uniform(0.5, 1.0)
        return max(own_s, min(asked_s or 0.0, _LONGEST_ASKED_WAIT_S))  # a server may ask for more, not for less

    def _headers(self, post: _Post) -> dict[str, str]:
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"edgeclip/{__version__}",
            "X-Edgeclip-Delivery": post.delivery,  # the same in every attempt, so that a receiver can tell
        }
        if self.address.authorization:
            headers["Authorization"] = self.address.authorization
        if self._secret:
            digest = hmac.new(self._secret, post.body, hashlib.sha256).hexdigest()
            headers["X-Edgeclip-Signature"] = f"sha256={digest}"
        return headers

    def _left_s(self) -> float:
        return float("inf") if self._deadline is None else self._deadline - time.perf_counter()

    def _say_trouble(self, reason: str) -> None:
        reason = printable(reason[:_LONGEST_REASON], lines=False)  # a server may say anything
        if reason != self._trouble:
            _log.warning("webhook %s: %s", self.address, reason)
        self._trouble = reason


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows nothing: a POST would become a GET, and the signature and credentials would go elsewhere."""

    def redirect_request(self, *_args: Any, **_kwargs: Any) -> None:
        return None


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
            raise InputError(f"{wanted}, got one whose host or port cannot be read{escaping_hint(url)}") from None
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise InputError(f"{wanted}, got {'no host' if parts.scheme in {'http', 'https'} else 'another scheme'}")
        if is_cut_wrongly(url):
            raise InputError(f"{wanted}, got '@' after the first '/', '?' or '#' behind the host: {ESCAPING}")
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


def _retry_after_s(header: str | None) -> float | None:
    """Seconds that a ``Retry-After`` header asks for: a number, or a date (RFC 9110, 10.2.3)."""
    if header is None:
        return None
    if (text := header.strip()).isascii() and text.isdigit():
        return float(text[:12])  # 10 digits are more than a life
    try:
        until = email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return max(until - time.time(), 0.0)  # against a server's clock, so this machine's is meant
