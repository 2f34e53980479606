"""Styles of captions, generated descriptions, their checks, and a page to inspect them: `python -m training.describe`."""
