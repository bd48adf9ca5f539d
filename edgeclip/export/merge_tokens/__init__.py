"""A vision transformer in, one that merges alike tokens in each block out (ToMe)."""
