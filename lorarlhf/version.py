"""The version, for whoever writes it into a file: the face imports from here too."""

__version__ = "0.1.0"
