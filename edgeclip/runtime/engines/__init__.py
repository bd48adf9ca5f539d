"""A variant's ONNX graph in, a loaded engine that gives embeddings out; builds of engines are kept in a cache.

A new engine: a file that subclasses ``Engine`` (``base.py``), and an entry in ``edgeclip/engine_list.py``.
"""
