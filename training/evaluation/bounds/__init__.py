"""Bounds of retrieval on a data set, whatever the model."""
