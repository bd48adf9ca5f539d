"""Footage, images and labels in; images to calibrate on, embeddings, and decisions on what scores mean, out."""
