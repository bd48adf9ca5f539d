"""The text that names a source in; what it names, and its checked options, out."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from edgeclip.errors import SourceError


class Option(NamedTuple):
    """How the value of one option is read.

    Attributes:
        expected: what it should be, for the error.
        parse: text to value; raises ValueError.
    """

    expected: str
    parse: Callable[[str], Any]


def whole_number(low: int, high: int) -> Option:
    """An option that is a whole number in ``[low, high]``."""

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
            raise ValueError
        return int(text)

    return Option(f"a whole number from {low} to {high}", parse)


def number(low: float, high: float, unit: str = "") -> Option:
    """An option that is a number in ``[low, high]``."""

    def parse(text: str) -> float:
        if not low <= (value := float(text)) <= high:  # also refuses nan
            raise ValueError
        return value

    return Option(f"a number from {low:g} to {high:g}{unit and ' ' + unit}", parse)


def one_of(choices: Mapping[str, Any]) -> Option:
    """An option that is one of some words, each standing for a value."""

    def parse(text: str) -> Any:
        if text not in choices:
            raise ValueError
        return choices[text]

    return Option(f"one of {', '.join(choices)}", parse)


ESCAPING = (
    "in a user or password write / as %2F, ? as %3F, # as %23, @ as %40, : as %3A and % as %25, and @ elsewhere as %40 "
    "(python3 -c 'import urllib.parse as u; print(u.quote(input(), \"\"))' does it)"
)
_LONGEST_LABEL = 63  # between the dots of a host's name (RFC 1035)
SIDE = whole_number(1, 16384)
RATE = number(0.1, 1000.0)
SECONDS = number(0.1, 86400.0, "seconds")


_SCHEME = re.compile(r"\s*(gst:|(?:csi|rtsps?|https?)://)", re.IGNORECASE)


def as_usual(text: str) -> str:
    """An address without the blanks around it and with its scheme in small letters; any other text as it is.

    >>> as_usual(" RTSP://Cam/Live")
    'rtsp://Cam/Live'
    """
    scheme = _SCHEME.match(text)
    return scheme[1].lower() + text[scheme.end() :].rstrip() if scheme else text


def host_and_port(address: str) -> tuple[str, int] | None:
    """Host (empty where none is named) and port of ``HOST:PORT``, ``[IPv6]:PORT`` or ``PORT``; None if it is no such.

    >>> host_and_port("[::1]:9100")
    ('::1', 9100)
    """
    host, colon, port = address.rpartition(":")
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535) or (colon and not host):
        return None
    if bracketed := re.fullmatch(r"\[(.*)\]", host):
        host = bracketed[1]
    if bracketed or ":" in host:
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            return None
    elif not re.fullmatch(r"[\w.-]*", host) or max(map(len, host.split("."))) > _LONGEST_LABEL:
        return None
    return host, int(port)


def without_fragment(text: str) -> tuple[str, str]:
    """An address and the options after its ``#``; one before the last ``@`` belongs to a password."""
    account, at, rest = text.rpartition("@")
    address, _, query = rest.partition("#")
    return account + at + address, query


def is_cut_wrongly(address: str) -> bool:
    """Whether an ``@`` comes after what ends host and port, as where a password holds a ``/``, ``?`` or ``#``."""
    return "@" in address.partition("://")[2][len(_authority(address)) :]


def escaping_hint(address: str) -> str:
    """What to do about an address whose user or password seems to hold what divides an address; empty if none does."""
    account = _authority(address).rpartition("@")[0]
    return f"; {ESCAPING}" if is_cut_wrongly(address) or "@" in account or account.count(":") > 1 else ""


def _authority(address: str) -> str:
    return re.split(r"[/?#]", address.partition("://")[2], maxsplit=1)[0]


def read_options(text: str, query: str, known: Mapping[str, Option]) -> dict[str, Any]:
    """The options ``a=1&b=2`` of a source.

    Args:
        text: the whole source, for the error.
        query: the part that holds the options; may be empty.
        known: how each is read.

    Raises:
        SourceError: not of that form, an unknown option, one given twice, or a value that does not fit.
    """
    names = ", ".join(f"{name}=" for name in known)
    secret = re.match(r"(rtsp|http)s?://.*\?", text, re.DOTALL)  # the server's query: what follows may be of a password
    text = without_password(text)

    def got(part: str) -> str:
        return "something else" if secret else repr(part)

    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
    except ValueError:
        raise SourceError(
            f"expected options as name=value&name=value in {text!r}, got {got(query)}: known are {names}"
        ) from None  # which repeats it
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name not in known:
            raise SourceError(f"expected known options in {text!r}, got {got(name)}: known are {names}")
        if name in values:
            raise SourceError(f"expected each option once in {text!r}, got {name!r} twice")
        try:
            values[name] = known[name].parse(value)
        except ValueError:
            raise SourceError(f"expected {name}= to be {known[name].expected} in {text!r}, got {got(value)}") from None
    return values


# Values of these names are kept in messages; those of all others in a query may be a secret, whatever they are called.
_HARMLESS = re.compile(
    "(bitrate|cam|camera|ch|channel|channelno|codec|encode|fmt|format|fps|give_up|height|index|input|protocol|quality|res|"
    "resolution|size|stall|stream|streamtype|subtype|timeout|transport|type|profile|video|width)=[\\w.]{1,12}",
    re.IGNORECASE,
)
# A query's part with one of these names is shown as NAME=***, any other that is not harmless as ***.
_SECRET_NAME = r"[\w-]*?(?:pass|pw|psw|secret|token|key|auth|cred|cookie|sess|sig|user|usr|login|jwt|header|proxy-id)"
_IN_PATH = re.compile(rf"({_SECRET_NAME}[\w-]*)=.+", re.IGNORECASE | re.DOTALL)  # user=me_password=…_channel=1.sdp
_IN_QUERY = re.compile(rf"([?&]{_SECRET_NAME}[\w-]*)=[^&]+", re.IGNORECASE)
_HEADER = re.compile(rf"({_SECRET_NAME}[\w-]*)\s*[=:].+", re.IGNORECASE | re.DOTALL)
_FLAG = re.compile(rf"(?:-u|--?{_SECRET_NAME}[\w-]*)", re.IGNORECASE)
_URL = re.compile(r"[A-Za-z][\w+.-]*://")
# `me:pa/ss@host` and `rtsp:/me:pass@host`: no address yet, but somebody's password.
_NEARLY_URL = re.compile(r"\s*(?:(?:rtsps?|https?|mqtts?|rtmps?|srt|udp|tcp):?[/\\]{0,2})?[^/\\]*:.*@", re.DOTALL)
# As a shell and GStreamer take words: what is quoted belongs to the word it stands in, up to the end if need be.
_WORD = re.compile(r"(?:\\.|\"(?:\\.|[^\"\\])*(?:\"|$)|'(?:\\.|[^'\\])*(?:'|$)|[^\s\"'\\]|\\$)+", re.DOTALL)


def without_password(text: str) -> str:
    """What names a source, sink or file (an address, a pipeline, a command) without anything that may be a secret.

    Of an address, all up to the last ``@`` goes, as a password may hold ``/``, ``?``, ``#`` and ``@``; so do the values
    in its query, but for those of a few harmless names. In a pipeline, so do the values of properties like ``user-pw``.

    >>> without_password("rtsp://me:pa/ss@cam:554/live?channel=1&pwd=hidden#transport=udp")
    'rtsp://cam:554/live?channel=1&pwd=***#transport=udp'
    >>> without_password("rtspsrc location=rtsp://me:pass@cam/1 user-pw=hidden latency=0 ! decodebin")
    'rtspsrc location=rtsp://cam/1 user-pw=*** latency=0 ! decodebin'
    """
    if _URL.match(text.lstrip()):
        return _address_without(text)
    if text.startswith(("gst:", "pipe:")) or re.search(r"\s!\s", text) or "://" in text:
        return _words_without(re.sub(r"\s*=\s*", "=", text))
    if nearly := _NEARLY_URL.match(text):
        return f"***@{_address_without(text[nearly.end() :])}"
    return _IN_QUERY.sub(r"\1=***", text)


def _words_without(text: str) -> str:
    shown, at, flag = "", 0, False
    for word in _WORD.finditer(text):
        shown += text[at : word.start()] + ("***" if flag else _word_without(word[0]))
        at, flag = word.end(), _FLAG.fullmatch(word[0]) is not None
    return shown + text[at:]


def _address_without(address: str) -> str:
    scheme, mark, rest = address.partition("://")
    start, *rest_parts = re.split(r"([?#&;])", rest.rpartition("@")[2])
    shown = _IN_PATH.sub(r"\1=***", start)
    in_options = "=" not in start  # ours, as long as nothing of the server's has a raw "#" in it
    for separator, part in zip(rest_parts[::2], rest_parts[1::2], strict=True):
        in_options = in_options and (separator == "#" or "#" in shown)
        is_option = in_options and re.fullmatch(rf"(?!{_SECRET_NAME})\w+=[\w.]{{1,12}}", part, re.IGNORECASE)
        shown += separator + (part if is_option else _query_part_without(part))
    return f"{scheme}{mark}{shown}"


def _query_part_without(part: str) -> str:
    if not part or _HARMLESS.fullmatch(part):
        return part
    name, _, value = part.partition("=")
    is_name = re.fullmatch(rf"{_SECRET_NAME}[\w-]{{0,8}}", name, re.IGNORECASE)  # and no secret that is one itself
    return f"{name}=***" if is_name and value.strip("=") else "***"


def _word_without(word: str) -> str:
    name, equals, _ = word.partition("=")
    if equals and re.fullmatch(rf"{_SECRET_NAME}[\w-]*", name, re.IGNORECASE):
        return f"{name}=***"
    if url := _URL.search(word):
        bare = word.rstrip("\"'")
        return word[: url.start()] + _address_without(bare[url.start() :]) + word[len(bare) :]
    return _HEADER.sub(r"\1=***", word)


def short_name(address: str) -> str:
    """The host and path of a URL, as the name of a source: no user, password, or query, which may hold a token."""
    scheme, _, rest = without_password(address).strip().partition("://")
    return re.split(r"[?#&;]", rest)[0].rstrip("/") or scheme
