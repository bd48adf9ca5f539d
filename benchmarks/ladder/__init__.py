"""Parts of ``benchmarks/gate.py``: models and images in, embeddings of damaged variants of known names out."""
