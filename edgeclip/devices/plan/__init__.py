"""What a model costs and a device in; which variants run there, in how much memory and time, out.

A new kind of advice: a function in ``advice.py``; what a plan says stands in ``records.py``.
"""
