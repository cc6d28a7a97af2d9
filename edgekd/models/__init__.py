"""The zoo: architectures by name, small-image stems, and what a run holds of them."""
