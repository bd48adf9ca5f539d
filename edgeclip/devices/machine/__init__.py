"""This machine's files and libraries in; what it is, and which libraries load, out.

Everything is read through a ``Tree`` (``tree.py``), so that a recorded machine can be read as this one.

A new fact of a machine: a reader in a file of its own, gathered in ``machine.py``.
"""
