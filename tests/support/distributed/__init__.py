"""Processes that train together, for tests."""
