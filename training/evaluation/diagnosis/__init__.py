"""Diagnosis of a trained run: whether each loss pulls, and whether each part does what it is there for."""
