"""Generation by files: requests are written, answered elsewhere as a batch, and their answers read."""
