"""The text that names a source in; what it names, and its checked options, out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

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


SIDE = whole_number(1, 16384)
RATE = number(0.1, 1000.0)
SECONDS = number(0.1, 86400.0, "seconds")


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
    text = without_password(text)
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
    except ValueError as error:
        raise SourceError(
            f"expected options as name=value&name=value in {text!r}, got {query!r}: known are {names}"
        ) from error
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name not in known:
            raise SourceError(f"expected known options in {text!r}, got {name!r}: known are {names}")
        if name in values:
            raise SourceError(f"expected each option once in {text!r}, got {name!r} twice")
        try:
            values[name] = known[name].parse(value)
        except ValueError as error:
            raise SourceError(f"expected {name}= to be {known[name].expected} in {text!r}, got {value!r}") from error
    return values


def without_password(address: str) -> str:
    """A URL without user name and password, fit for messages."""
    if "://" not in address:
        return address
    scheme, _, rest = address.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def short_name(address: str) -> str:
    """The host and path of a URL, as the name of a source: no user, password, or query, which may hold a token."""
    parts = urlsplit(without_password(address))
    return f"{parts.netloc}{parts.path}".rstrip("/") or address
