"""Benchmarks of training, loading, clustering and text generation."""
