"""Exact retrieval metrics, the protocols, and what is compared with what."""
