"""Scores and who was right in; probabilities, thresholds and what is unknown, out."""
