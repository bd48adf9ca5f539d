"""An ONNX graph in, what a device compiler would refuse or slow down out.

A new rule: a function in ``operators.py`` or ``qdq.py``.
"""
