"""Styles of captions: neutral captions, style features, clustering, and the command."""
