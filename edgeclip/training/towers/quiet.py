"""Model libraries kept from writing over our output: their log lines, warnings and retries."""

from __future__ import annotations

import contextlib
import io
import logging
import pickle
import socket
import threading
import urllib.request
import warnings
from collections.abc import Iterator
from urllib.parse import urlsplit

from safetensors import SafetensorError

from edgeclip.errors import ModelError
from edgeclip.extras import require

CONNECT_TIMEOUT_S = 3.0

# What open_clip, transformers, torch and the hub client raise for a file that they cannot get or read.
_LOADING_ERRORS = (
    OSError,
    RuntimeError,
    ValueError,
    KeyError,
    ImportError,
    EOFError,
    pickle.UnpicklingError,
    SafetensorError,
)


# Two threads that overlap must not restore each other's silence.
_LOCK = threading.Lock()
_INSIDE: list[None] = []
_BEFORE: list[int] = []


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence logging and Python warnings inside; leave the process's logging as it was, once no thread is inside."""
    root = logging.getLogger()
    handlers = list(root.handlers)
    with _LOCK:
        if not _INSIDE:
            _BEFORE[:] = [logging.root.manager.disable]
        _INSIDE.append(None)
        logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        with _LOCK:
            _INSIDE.pop()
            if not _INSIDE:
                logging.disable(_BEFORE[0])
        # open_clip logs through the root logger, which installs a handler of its own as a side effect.
        for handler in [handler for handler in root.handlers if handler not in handlers]:
            root.removeHandler(handler)


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """``quiet``, and drop what is printed; for libraries whose failures arrive as exceptions."""
    with quiet(), contextlib.redirect_stdout(io.StringIO()):
        yield


@contextlib.contextmanager
def downloads(what: str) -> Iterator[None]:
    """Load something that may have to come from the Hugging Face hub, quietly.

    Without a network only files already on this machine are used: huggingface_hub alone would retry for 23 s a file.

    Args:
        what: what is loaded, to complete "cannot load {what}".

    Raises:
        ModelError: the files cannot be had or read.
    """
    constants = require("huggingface_hub.constants", purpose="load a pretrained model", extra="export")
    offline = bool(constants.HF_HUB_OFFLINE)
    online = not offline and _reachable(constants.ENDPOINT)
    constants.HF_HUB_OFFLINE = not online
    try:
        with quiet():
            yield
    except Exception as error:
        # The library tokenizers raises nothing more exact than Exception.
        if not isinstance(error, _LOADING_ERRORS) and type(error) is not Exception:
            raise
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        if not online and _is_missing_file(error):
            reason = (
                f"its files are not on this machine and {urlsplit(constants.ENDPOINT).hostname} cannot be reached: "
                "connect to a network, or give a local file or folder"
            )
        raise ModelError(f"cannot load {what}: {reason}") from error
    finally:
        constants.HF_HUB_OFFLINE = offline


def _is_missing_file(error: BaseException | None) -> bool:
    """Whether the error, or one that it was raised from, is about a file that is not there."""
    while error is not None:
        if isinstance(error, OSError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _reachable(endpoint: str) -> bool:
    """Whether a connection to the hub opens; taken for granted behind a proxy."""
    address = urlsplit(endpoint)
    if address.scheme in urllib.request.getproxies():
        return True
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        with socket.create_connection((address.hostname or "", port), timeout=CONNECT_TIMEOUT_S):
            return True
    except OSError:
        return False
