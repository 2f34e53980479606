"""Images of synthetic pedestrians."""
