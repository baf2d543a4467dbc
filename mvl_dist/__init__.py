"""Does one frozen language-model block inside a 3D ViT segment better? Train it, settle it."""

__version__ = "0.4.0"
