"""Labelled images, class names and templates in; which of them are worth having out.

A new finding: its figures in a file like ``confused_names.py``, gathered in ``study.py``, shown in ``report.py``.
"""
