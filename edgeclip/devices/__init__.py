"""This machine or the name of another in; what it is, what its sensors read and what to expect of it, out."""
