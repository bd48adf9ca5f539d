"""Folders, tables or shards of images and texts in, batches out, resumable at the sample.

A new form of data: a ``PairSource`` in a file of its own, and a line in ``FORMS`` (``pairs.py``).
"""
