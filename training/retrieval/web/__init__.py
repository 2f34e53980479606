"""Page and JSON API of a gallery."""
