"""Image–text pairs, or a model from open_clip or transformers, in; a ContrastiveModel out."""
