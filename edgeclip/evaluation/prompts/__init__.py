"""Labelled images, class names and templates in; which of them are worth having out."""
