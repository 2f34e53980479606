"""Models of finished runs as folders for others: ONNX, or safetensors with a model card."""
