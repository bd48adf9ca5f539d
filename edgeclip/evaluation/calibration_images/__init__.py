"""Footage in, a folder of chosen calibration images and a page on them out."""
