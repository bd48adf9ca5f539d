"""Scores and who was right in; probabilities, thresholds and what is unknown, out.

A new feature of the fit: ``confidence.py``; a new guarantee: beside ``precision_bound.py``.
"""
