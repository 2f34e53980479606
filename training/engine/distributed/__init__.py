"""Training by several processes (ranks) that share every batch: the same numbers as one process."""
