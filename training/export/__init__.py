"""Models of finished runs as folders for others: safetensors, configuration, tokenizer, preprocessing, model card."""
