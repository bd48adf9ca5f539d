"""Labelled frames in, a live web page behind a token out. What the browser loads is in ``static/``.

A new panel: what it shows in ``state.py``, its address in ``app.py``, its drawing in ``static/``.
"""
