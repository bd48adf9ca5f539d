"""Folders, shards and tables of labelled images in, items with digests and class names out.

A new set with usual class names: nothing where the names' file has it; a new layout of folders: ``shift_sets.py``.
"""
