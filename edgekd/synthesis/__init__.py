"""The science of data-free distillation in pure torch: no files, no console."""
