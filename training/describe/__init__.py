"""Styles of captions, generated descriptions, and the page to check them by eye: `python -m training.describe`."""
