"""What a model costs and a device in; which variants run there, in how much memory and time, out."""
