"""A file, a ``pipe:`` command or an address in, its bytes as a stream out; a failure is told, never cut short.

Why not by a library: fsspec ends with a lost connection, does not ask a busy server again, and can only read from the
start where a server knows no ranges; webdataset's pipes tell a failed command's exit status and not its words.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import os
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from edgeclip.errors import EdgeclipError, SourceError
from edgeclip.runtime.sources.address import escaping_hint, without_password

PIPE = "pipe:"
_TIMEOUT_S = 60
_ATTEMPTS = 4
_FIRST_WAIT_S = 0.5
_GRACE_S = 5
_BROKEN_PIPE = (-signal.SIGPIPE, 128 + signal.SIGPIPE)  # what closing our end does to a command that still writes
_SHOWN_BYTES = 300
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})


@contextlib.contextmanager
def open_stream(shard: str) -> Iterator[BinaryIO]:
    """Open a shard for one pass.

    Raises:
        SourceError: absent; the command fails (said at the end, with its exit status); the server answers an error,
            or hangs up and does not come back.
    """
    if shard.startswith(PIPE):
        with _command(shard.removeprefix(PIPE)) as stream:
            yield stream
    elif shard.startswith(("http://", "https://")):
        with contextlib.closing(Download(shard)) as download:
            yield download  # type: ignore[misc]
    else:
        try:
            file = Path(shard).open("rb", buffering=0)  # noqa: SIM115 - closed below
        except OSError as error:
            raise SourceError(f"expected a shard at {shard}, got: {error.strerror}") from error
        with file:
            yield file


def is_local(shard: str) -> bool:
    """Whether a shard is a file of this machine."""
    return not shard.startswith((PIPE, "http://", "https://"))


@contextlib.contextmanager
def _command(command: str) -> Iterator[BinaryIO]:
    """Standard output of a shell command."""
    # With bash, `curl … | gunzip` fails when curl does; plain sh would only look at the last command.
    bash = shutil.which("bash")
    shell = [bash, "-o", "pipefail", "-c"] if bash else ["/bin/sh", "-c"]
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [*shell, command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            bufsize=0,
            start_new_session=True,  # so that the whole pipeline can be ended
        )
        assert process.stdout is not None
        try:
            problem: EdgeclipError | None = None
            try:
                yield process.stdout  # type: ignore[misc]
            except EdgeclipError as error:
                # That the archive is cut may only be what a failed command looks like.
                problem = error
                process.stdout.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE_S if problem else None)
            if process.returncode and not (problem and process.returncode in _BROKEN_PIPE):
                errors.seek(max(0, errors.seek(0, os.SEEK_END) - _SHOWN_BYTES))
                words = errors.read().decode(errors="replace").strip() or "it printed no error"
                shown = without_password(PIPE + command)
                raise SourceError(
                    f"the command {shown!r} failed with exit status {process.returncode}: {words}"
                ) from problem
            if problem:
                raise problem
        finally:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            process.stdout.close()


class Download(io.RawIOBase):
    """The body of an HTTP answer; a lost connection is taken up again where it broke off.

    Args:
        url: user and password, if any, go into the header of basic authentication and are left out of messages.
    """

    def __init__(self, url: str) -> None:
        self.name = without_password(url)
        self._url = url
        self._request = _request(url)
        self._at = 0
        self._size: int | None = None
        self._answer: http.client.HTTPResponse | None = None
        self.readinto(bytearray())  # connects

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: object) -> int:
        """Fill some of the buffer; 0 only where the whole body has been read."""
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                self._answer = self._answer or self._open()
                count = self._answer.readinto(view)
                self._at += count
                if count or not view or self._size is None or self._at >= self._size:
                    return count
                problem = f"the body ended after {self._at:,} of {self._size:,} bytes"
            except urllib.error.HTTPError as error:
                problem = f"{error.code} {error.reason}"
                if error.code not in _TRANSIENT:
                    break
            except (ValueError, http.client.InvalidURL) as error:  # no address; what is said of it may be a password
                problem = f"no address{hint}" if (hint := escaping_hint(self._url)) else str(error)
                break
            except (OSError, http.client.HTTPException) as error:
                reason = getattr(error, "reason", error)
                problem = str(reason) or type(reason).__name__
            self._hang_up()
            if attempt < _ATTEMPTS:
                time.sleep(_FIRST_WAIT_S * 2 ** (attempt - 1))
        raise SourceError(f"expected a shard at {self.name}, got: {problem} (tried {attempt} times)")

    def close(self) -> None:
        """Hang up."""
        self._hang_up()
        super().close()

    def _open(self) -> http.client.HTTPResponse:
        if self._at:
            self._request.add_header("Range", f"bytes={self._at}-")
        answer: http.client.HTTPResponse = urllib.request.urlopen(self._request, timeout=_TIMEOUT_S)
        skip = self._at if answer.status != http.client.PARTIAL_CONTENT else 0  # a server may not know ranges
        length = answer.headers.get("Content-Length")
        self._size = None if length is None else int(length) + self._at - skip
        while skip:
            if not (got := len(answer.read(min(skip, 1 << 20)))):
                raise ConnectionError("the body was shorter than before")
            skip -= got
        return answer

    def _hang_up(self) -> None:
        if self._answer:
            self._answer.close()
            self._answer = None


def _request(url: str) -> urllib.request.Request:
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError as error:
        raise SourceError(f"expected an address, got {without_password(url)!r}, which is none") from error
    account, at, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(urllib.parse.urlunsplit(parts._replace(netloc=host)))
    if at:
        encoded = base64.b64encode(urllib.parse.unquote(account).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {encoded}")
    return request
