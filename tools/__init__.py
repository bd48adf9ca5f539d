"""What makes what edgeclip ships, and what measures its own structure. Not part of the wheel."""
