"""Labelled frames and events in; files, video, MQTT, webhooks, metrics or a terminal's screen out.

A new sink: a file that subclasses ``Sink`` (``base.py``), and a line in ``make.py``.
"""
