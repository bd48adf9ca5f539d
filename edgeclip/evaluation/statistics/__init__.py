"""Hits, ranks and times in; shares, differences and their intervals out."""
