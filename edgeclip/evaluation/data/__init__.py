"""Folders, shards and tables of labelled images in, items with digests and class names out."""
