"""A bundle or a checkpoint and a few labelled images in; a prompt table or a checkpoint that knows them out.

A new method of few-shot adaptation: a file like ``linear_probe.py``, and a line in ``METHODS`` (``fewshot.py``).
"""
