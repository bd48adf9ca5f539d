"""Images in bad light, weather, focus and compression in; what accuracy is left out.

A new corruption: a function in ``optics.py`` or ``sensor.py`` and a row of levels in ``corruptions.py``.
"""
