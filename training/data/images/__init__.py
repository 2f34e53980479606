"""Images from file to batch: sources, the packed cache, prefetching, transforms."""
