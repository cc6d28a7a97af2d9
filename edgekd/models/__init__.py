"""Architectures by name, small-image stems, and teachers read from foreign checkpoints."""
