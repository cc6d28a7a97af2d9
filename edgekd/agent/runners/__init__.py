"""The runtimes a model is measured in, one file each, and what is known of TensorRT."""
