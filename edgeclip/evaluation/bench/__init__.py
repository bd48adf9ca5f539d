"""Bundles and settings in; latency, throughput, memory and energy, measured in turns, out.

Another stage is a name in ``records.Stage`` and what it runs in ``bench._runner``; another column of the table is a
line in ``card.py``.
"""
