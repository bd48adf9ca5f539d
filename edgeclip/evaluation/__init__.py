"""Bundles and labelled images in; accuracy, robustness, time, what prompts are worth, what to ship, out."""
