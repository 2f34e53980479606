"""Validation of a data set before training."""
