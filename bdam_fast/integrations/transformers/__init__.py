"""Hugging Face transformers on the operators."""
