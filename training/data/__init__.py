"""Data sets: readers, validation, loading, and the synthetic pedestrians."""
