"""Engines, many clients and the quality of searches of galleries."""
