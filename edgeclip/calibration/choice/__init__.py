"""Footage in; the images that INT8 ranges are measured on, and whether they cover other footage, out."""
