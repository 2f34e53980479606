"""Styles of captions: features, clusters, captions without their content."""
