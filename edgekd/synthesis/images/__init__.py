"""Sources of images beside the generator: procedural ones, and pictures that the user has and may use."""
