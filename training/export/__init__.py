"""Export of a trained model to ONNX, and the use of it without PyTorch."""
