"""A bundle and labelled images in, accuracy with its interval out."""
