"""Objects of libraries with threads in; in a process that is forked off they are kept as they are until it ends.

Such a process has none of its parent's threads. A library that is asked to release something, also by Python's own
collector or at the end, waits for them for ever; connections and half-written files are the parent's besides.
"""

from __future__ import annotations

import ctypes
import os
import weakref

_LEFT_ALONE: weakref.WeakValueDictionary[int, object] = weakref.WeakValueDictionary()


def leave_alone_in_child(thing: object) -> None:
    """Never release this object, and what its attributes hold, in a process that is forked off while it is there."""
    _LEFT_ALONE[id(thing)] = thing


def keep_for_ever(thing: object) -> None:
    """Do not release an object, not even at the end of the process."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _leave_alone() -> None:
    for thing in list(_LEFT_ALONE.values()):
        keep_for_ever(thing)


os.register_at_fork(after_in_child=_leave_alone)
