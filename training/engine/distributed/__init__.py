"""Training by several processes (ranks) that share every batch, and evaluation by ranks that take batches in turn: the same
numbers as one process."""
