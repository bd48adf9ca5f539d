"""RGB frames and a ``PreprocessSpec`` in, the encoder's input out, exact or, where it agrees, fast.

A new resampler: beside ``fast.py``; ``choose.py`` says on which machines it is used.
"""
