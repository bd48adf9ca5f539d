"""An FP32 graph and images in, an FP16 or BF16 graph out, with what must stay FP32 kept.

A new operator that must stay FP32: ``plan.py``.
"""
