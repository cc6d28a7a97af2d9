"""edgekd: data-free distillation of an image classifier into an edge-ready student."""

__version__ = "0.1.0"
