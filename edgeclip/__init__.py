"""edgeclip: CLIP-style models on the edge, every variant proved. Importing this loads neither torch nor an engine."""
