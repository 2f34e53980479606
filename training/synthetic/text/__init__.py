"""Captions and descriptions of synthetic pedestrians."""
