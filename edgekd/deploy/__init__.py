"""What leaves the house: ONNX graphs, quantisation, runtimes and the agent that measures them."""
