"""A recipe and batches in, a trained checkpoint out: steps, schedule, losses, processes, resuming.

A new kind of training: a ``Task`` in ``task.py``.
"""
