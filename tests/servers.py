"""Real servers for the tests, on 127.0.0.1: an RTSP camera that can be killed, an MJPEG camera, files over HTTP."""

from __future__ import annotations

import functools
import http.server
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SYSTEM_PYTHON = "/usr/bin/python3"


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def need(program: str) -> None:
    """Skip the test where a program is absent."""
    if shutil.which(program) is None:
        pytest.skip(f"needs {program}, which is not installed")


class RtspServer:
    """GStreamer's RTSP server in a process of its own; may be killed, frozen and started again on the same port."""

    def __init__(self, certificate: Path | None = None) -> None:
        self.port = free_port()
        self.url = f"{'rtsps' if certificate else 'rtsp'}://127.0.0.1:{self.port}/yard"
        self._arguments = [str(self.port), *([str(certificate)] if certificate else [])]
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start it and wait until it listens."""
        need("gst-inspect-1.0")
        check = "import gi; gi.require_version('GstRtspServer', '1.0')"
        if subprocess.run([SYSTEM_PYTHON, "-c", check], check=False, capture_output=True).returncode:
            pytest.skip("needs the system's python3-gi with gir1.2-gst-rtsp-server-1.0, which is not installed")
        program = Path(__file__).with_name("rtsp_server.py")
        self._process = subprocess.Popen(
            [SYSTEM_PYTHON, str(program), *self._arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def kill(self) -> None:
        """Pull the plug."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None

    def freeze(self, frozen: bool) -> None:
        """Let it hang with its connections open, or go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP if frozen else signal.SIGCONT)


@contextmanager
def rtsp_server(certificate: Path | None = None) -> Iterator[RtspServer]:
    """A running RTSP camera; with a certificate it speaks TLS."""
    server = RtspServer(certificate)
    server.start()
    try:
        yield server
    finally:
        server.kill()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def _serving(handler: object, port: int) -> Iterator[http.server.ThreadingHTTPServer]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)  # type: ignore[arg-type]
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def file_server(folder: Path) -> Iterator[str]:
    """A folder over HTTP; gives its address."""
    with _serving(functools.partial(_Quiet, directory=str(folder)), 0) as server:
        yield f"http://127.0.0.1:{server.server_address[1]}"


class MjpegServer:
    """A camera that sends the same JPEGs round and round, as multipart/x-mixed-replace.

    Args:
        images: the JPEG files' bytes.
        port: to listen on.
        limit: hang up after so many images.
        interval_s: between two of them.
    """

    def __init__(self, images: list[bytes], port: int, *, limit: int | None = None, interval_s: float = 0.02) -> None:
        self.url = f"http://127.0.0.1:{port}/stream"
        self.sent = 0
        self.frozen = False
        self._gone = threading.Event()
        outer = self

        class Handler(_Quiet):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                count = 0
                while not outer._gone.wait(interval_s) and count != limit:
                    if outer.frozen:
                        continue
                    image = images[count % len(images)]
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(image)}\r\n\r\n".encode()
                    try:
                        self.wfile.write(head + image + b"\r\n")
                    except OSError:
                        return
                    count += 1
                    outer.sent += 1

        self._running = _serving(Handler, port)

    def __enter__(self) -> MjpegServer:
        self._running.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._gone.set()
        self._running.__exit__(None, None, None)


class Answering:
    """A server that sends the same bytes to whoever connects, whatever is asked: also what no good one would send.

    Attributes:
        connections: how many there were.
    """

    def __init__(self, parts: list[bytes], *, head: bytes, interval_s: float, hang_up: bool) -> None:
        self._parts, self._head = parts, head
        self._interval_s, self._hang_up = interval_s, hang_up
        self._gone = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/stream"
        self.connections = 0
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while not self._gone.is_set():
            try:
                peer, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            self._threads.append(threading.Thread(target=self._serve, args=(peer,)))
            self._threads[-1].start()

    def _serve(self, peer: socket.socket) -> None:
        with peer:
            try:
                peer.recv(65536)
                peer.sendall(self._head)
                for part in self._parts:
                    peer.sendall(part)
                    if self._gone.wait(self._interval_s):
                        return
                if not self._hang_up:
                    self._gone.wait()
            except OSError:
                return

    def close(self) -> None:
        """Hang up, and listen no more."""
        self._gone.set()
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for thread in self._threads:
            thread.join()


@contextmanager
def answering(
    *parts: bytes, head: bytes = b"HTTP/1.1 200 OK\r\n\r\n", interval_s: float = 0.0, hang_up: bool = True
) -> Iterator[Answering]:
    """A server of those bytes, with a pause after each part; then it hangs up, or is silent."""
    server = Answering(list(parts), head=head, interval_s=interval_s, hang_up=hang_up)
    try:
        yield server
    finally:
        server.close()
