"""A bundle and labelled images in, top-1, retrieval and confusions with intervals out.

A new kind of accuracy: a file like ``retrieval.py``, called in ``evaluate.py`` and shown in ``report.py``.
"""
