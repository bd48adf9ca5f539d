"""A machine in; what is wrong with it for this use, and the command that mends it, out.

A new check: a function in the file of its subject that returns ``Finding``s, called in ``examine.py``.
"""
