"""The version, where every room may read it: asking the installed package costs a tenth of an import."""

__version__ = "0.1.0"
