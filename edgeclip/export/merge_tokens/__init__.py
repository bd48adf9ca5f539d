"""A vision transformer in, one that merges alike tokens in each block out (ToMe).

A new family of transformer: its block in ``blocks.py``.
"""
