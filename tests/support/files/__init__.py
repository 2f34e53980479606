"""Files that tests read: pretrained encoders, and files that are damaged."""
