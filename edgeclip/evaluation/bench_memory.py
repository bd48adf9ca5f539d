"""A bundle's variant and an engine in, the memory that they take in a process of their own out."""

from __future__ import annotations

import subprocess
import sys

from edgeclip.bundle import Bundle

_CODE = """
import sys
import numpy as np
from edgeclip.bundle import Bundle
from edgeclip.runtime.encoder import ImageEncoder
bundle = Bundle.open(sys.argv[1])
spec = bundle.manifest.encoder.preprocess
images = np.zeros((int(sys.argv[4]), 3, spec.height, spec.width), np.float32)
if sys.argv[3] != "none":
    with ImageEncoder(bundle, sys.argv[2], engine=sys.argv[3]) as encoder:
        for _ in range(2):
            encoder.encode_preprocessed(images)
with open("/proc/self/status") as status:
    print(next(line.split()[1] for line in status if line.startswith("VmHWM")))
"""


def memory_mb(bundle: Bundle, variant: str, engine: str, *, batch: int) -> float | None:
    """Peak resident memory of loading the engine and running two batches, less a process without it, MB.

    The engine's library is in it, memory of a GPU of its own is not.

    Returns:
        None where the process failed.
    """
    peaks = [_peak_kib(bundle, variant, name, batch) for name in (engine, "none")]
    if None in peaks:
        return None
    with_engine, without = (peak for peak in peaks if peak is not None)
    return round((with_engine - without) * 1024 / 1e6, 1)


def _peak_kib(bundle: Bundle, variant: str, engine: str, batch: int) -> int | None:
    """What Linux calls VmHWM: unlike ``ru_maxrss``, it does not begin with what the parent had taken."""
    command = [sys.executable, "-c", _CODE, str(bundle.path), variant, engine, str(batch)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return int(done.stdout.split()[-1]) if done.returncode == 0 else None
