"""An engine and the bundle's golden images in; whether it computes what FP32 does, how fast, and which to run, out.

A new reason to refuse an engine: a limit in ``parity.py``, held in ``proof.py``.
"""
