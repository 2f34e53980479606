"""Files that tests read or are answered with: pretrained encoders, files that are damaged, batches of requests."""
