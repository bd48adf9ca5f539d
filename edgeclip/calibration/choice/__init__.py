"""Footage in; the images that INT8 ranges are measured on, and whether other footage has drifted from it, out.

A new thing to spread images over: a function in ``bins.py``, used in ``choose.py``.
"""
