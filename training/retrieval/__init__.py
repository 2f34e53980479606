"""Finding people: an index of a gallery on disk."""
