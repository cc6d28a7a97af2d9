"""The networks that edgekd builds with its own code, and what it changes of torchvision's."""
