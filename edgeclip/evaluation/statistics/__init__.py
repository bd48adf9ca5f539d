"""Hits, ranks and times in; shares, differences and their intervals out.

A new figure: a function that gives it with its interval, beside those of its kind.
"""
