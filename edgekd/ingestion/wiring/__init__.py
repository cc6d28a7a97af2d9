"""What weights do not say of a network: how a chain of layers is wired, and what BatchNorm statistics say of it."""
