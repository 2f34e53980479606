"""Synthetic pedestrians: their true attributes, their images (render) and their texts (text)."""
