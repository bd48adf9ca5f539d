"""A text such as ``rtsp://camera/1`` or ``video.mp4`` in, numbered and timed RGB frames out.

A new kind of camera: a function in a file of its own, and a line in ``KINDS`` (``open.py``).
"""
