"""Disentanglement of identity and clothing in a trained run: linear probes, dependence, retrieval in other clothes."""
