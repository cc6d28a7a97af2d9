"""The measurements behind the numbers, one folder each; see README.md."""
