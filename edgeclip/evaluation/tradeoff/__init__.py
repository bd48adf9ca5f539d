"""Accuracies and times of variants in, the one to ship and the evidence out."""
