"""edgekd: data-free distillation of an image classifier into an edge-ready student."""

import os

__version__ = "0.1.0"

# ONNX Runtime (1.29 and newer) reports to its maker and keeps a device id and a queue in the user's home, unless it
# is told not to before it is imported; the hub client that timm brings counts its uses. Child processes inherit this,
# and the agent that travels to a device brings this file along.
os.environ.update(ORT_DISABLE_TELEMETRY="1", HF_HUB_DISABLE_TELEMETRY="1", DO_NOT_TRACK="1")
