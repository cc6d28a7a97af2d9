"""Latency: jobs, rows and verdicts, here and on a device at the far end of ssh or of a bundle."""
