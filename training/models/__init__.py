"""Encoders, decoupling module, fusion module, and the model that joins them."""
