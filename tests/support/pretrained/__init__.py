"""Models with random weights in folders, as transformers writes them."""
