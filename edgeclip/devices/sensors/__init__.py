"""Counters of power, clocks, temperature and load in; readings over the time of a measurement out.

A new sensor: a file that subclasses ``SensorSource`` (``base.py``), opened in ``find.py``.
"""
