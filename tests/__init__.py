"""Each of xdist's workers gets its share of the cores, before any library has made its threads.

Thread pools of two processes on the same cores wait for each other by spinning: comparing one model with its graph took
19 s of processor time that way, and takes 4 s on a core of its own.
"""

from __future__ import annotations

import os

CORES = os.sched_getaffinity(0)  # of this run, whatever a worker's share of them

if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    _count, _index = int(os.environ["PYTEST_XDIST_WORKER_COUNT"]), int(worker.removeprefix("gw"))
    os.sched_setaffinity(0, sorted(CORES)[_index % len(CORES) :: _count])
