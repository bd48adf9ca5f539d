"""Footage in; the images that INT8 ranges are measured on, and whether other footage has drifted from it, out."""
