"""Accuracies and times of variants in, the one to ship and the evidence out.

Another axis to compare points by is a verdict in ``measure.compare_runs``; another rule is a change to ``decide.py``
alone, as the page looks up what it answers.
"""
