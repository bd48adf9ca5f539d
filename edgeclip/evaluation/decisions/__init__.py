"""A bundle, a table and labelled images in; decisions in the table, and a page on how far they hold, out.

A new way to come by labels: a reader in ``data.py``.
"""
