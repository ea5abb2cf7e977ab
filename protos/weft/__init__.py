"""Weft: adapters trained, versioned and served over one quantized base model."""

__version__ = "0.1.0"
