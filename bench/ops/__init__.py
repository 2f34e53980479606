"""One file an operator: its cases and its peers."""
