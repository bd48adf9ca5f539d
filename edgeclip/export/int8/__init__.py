"""An FP32 graph and calibration images in, INT8 graphs for device compilers and for CPUs out.

A new quantization recipe: a field of ``QuantizationRecipe`` (``quantization.py``), tried in ``search.py``.
"""
