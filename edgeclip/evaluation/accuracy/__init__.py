"""A bundle and labelled images in, top-1, retrieval and confusions with intervals out."""
