"""Checkpoints from elsewhere: safe reading, and which network their weights belong to."""
