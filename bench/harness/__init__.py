"""Timing, rows on disk, tables."""
