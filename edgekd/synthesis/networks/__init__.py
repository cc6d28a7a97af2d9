"""The networks that make images: the generator and the VAE."""
