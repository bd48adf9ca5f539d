"""A bundle's variant in, an error out if its first inference takes more memory or time than a graph of its size may.

``check_graph`` sees what a graph says; this sees what it does. A process of its own loads it on ONNX Runtime's CPU
provider, whatever engine will run it, and encodes one black image, under limits of the operating system. That is done
once for each graph on a machine: half a second beside the seconds that its proof takes, and nothing at later starts.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from edgeclip.bundle import Bundle
from edgeclip.devices.machine.cpu import usable_cores
from edgeclip.errors import EdgeclipError, EngineError
from edgeclip.files import cache_dir, sha256_json, write_json
from edgeclip.limits import limit

_CHILD = (
    "import sys; sys.path[:] = sys.argv[1].split('\\n'); "
    "from edgeclip.runtime.engines.first_run import main; main(*sys.argv[2:])"
)
# A library holds weights several times while it reads, converts and packs them.
_MEMORY_OF_WEIGHTS = 6
_WEIGHTS_BYTES_A_SECOND = 10 << 20
_TOO_MUCH = 3  # the exit status that says so
_found: dict[str, str | None] = {}


def check_first_run(bundle: Bundle, variant: str) -> None:
    """Try a variant's graph once; nothing is done for one that was tried before on this machine.

    Raises:
        EngineError: it takes more memory or time than ``edgeclip.limits`` allows, or crashes.
        VariantError, IntegrityError: as ``Bundle.variant_path``.
    """
    described, spec = bundle.variant(variant), bundle.manifest.encoder.preprocess
    memory, seconds = limit("first_run_bytes"), limit("first_run_s")
    key = sha256_json((bundle.graph_digests(variant), spec.height, spec.width, memory, seconds))
    kept = cache_dir("first_runs") / f"{key}.json"
    if kept.is_file():
        return
    if key not in _found:
        path = bundle.variant_path(variant)
        weights = sum(bundle.manifest.files[file].size for file in (described.file, *described.data_files))
        memory += _MEMORY_OF_WEIGHTS * weights
        seconds += weights // _WEIGHTS_BYTES_A_SECOND
        _found[key] = _tried(path, spec.height, spec.width, memory=memory, seconds=seconds)
    if reason := _found[key]:
        raise EngineError(f"{variant} of {bundle.path.name} {reason}")
    if reason is None:
        return
    with suppress(EdgeclipError):  # a cache that cannot be written to costs a trial at the next start
        write_json(kept, {"variant": variant})


def _tried(path: Path, height: int, width: int, *, memory: int, seconds: int) -> str | None:
    """Why a graph is refused, to complete "the graph …"; empty if it is not, None if it could not be tried."""
    command = [
        sys.executable,
        "-c",
        _CHILD,
        "\n".join(sys.path),
        str(path),
        *map(str, (height, width, memory, seconds)),
    ]
    what = "for its first inference: do not use it; if you trust it, set EDGECLIP_MAX_FIRST_RUN"
    slow = f"takes more than {seconds} s {what}_S higher"
    large = f"takes more than {memory / 2**30:.1f} GiB {what}_BYTES higher"
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return slow
    except OSError as error:
        raise EngineError(f"cannot start a process to try {path} in ({error.strerror}): free some memory") from error
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):  # the latter where memory has run out
        return slow if done.returncode == -signal.SIGXCPU else large
    if done.returncode == _TOO_MUCH:
        return large
    if done.returncode < 0:
        return f"crashes ONNX Runtime ({signal.Signals(-done.returncode).name}): export it again"
    return None if done.returncode else ""


def main(path: str, height: str, width: str, memory: str, seconds: str) -> None:
    """Load a graph and run it once under limits of memory, bytes, and of a core's time, seconds; then exit.

    What ONNX Runtime cannot run for another reason is no fault of the graph: it may be another engine's.
    """
    import numpy as np
    import onnxruntime as ort

    cores = usable_cores()
    # Data, not address space: a library reserves far more addresses than it uses.
    _limit(resource.RLIMIT_DATA, int(memory))
    _limit(resource.RLIMIT_CPU, int(seconds) * cores)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")  # where memory runs out, this one goes
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = min(cores, 8)
    try:
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        session.run(["embedding"], {"image": np.zeros((1, 3, int(height), int(width)), np.float32)})
    except Exception as error:  # noqa: BLE001 - the binding raises a dozen unrelated types
        too_much = isinstance(error, MemoryError) or "alloc" in str(error).lower()
        os._exit(_TOO_MUCH if too_much else 0)
    os._exit(0)


def _limit(kind: int, most: int) -> None:
    """Set a limit of this process, or keep the one that it was started with if that is lower."""
    hard = resource.getrlimit(kind)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (most, hard))
