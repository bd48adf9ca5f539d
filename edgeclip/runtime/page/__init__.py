"""Labelled frames in, a live web page behind a token out. What the browser loads is in ``static/``."""
