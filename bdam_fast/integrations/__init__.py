"""Other libraries' models on the operators."""
