"""Training, loading and text generation."""
