"""ONNX and INT8: export, graph passes, ranges, quantisation, and the gates that each file must pass."""
