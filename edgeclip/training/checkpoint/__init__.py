"""A trained model in, a folder of weights and their description out, and back again.

``files.py`` knows structs and weights and builds nothing; ``checkpoint.py`` makes models of them.

A new format: a reader like ``v1.py``; what is written stands in ``files.py``.
"""
