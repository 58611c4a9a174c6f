"""Networks for other programs: ONNX, StableHLO, safetensors, and batch norm folded into the convolutions before it."""
