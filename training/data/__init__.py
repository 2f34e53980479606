"""Data sets: readers, validation, images, batches, and the ground truth of rendered sets."""
