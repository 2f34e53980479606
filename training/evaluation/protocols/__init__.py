"""Retrieval protocols other than `dual`: with fused images, and those that tell identity from clothes."""
