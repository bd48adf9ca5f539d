"""Names of image and text towers in; the networks, trained or new, with how they preprocess, out.

A new tower: a line in ``build.py``. A new model family: a file beside ``open_clip.py``, named in ``training/load.py``.
"""
