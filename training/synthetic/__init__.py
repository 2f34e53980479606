"""Synthetic pedestrians: what they are (factors), how they look (drawing) and how people describe them (texts)."""
