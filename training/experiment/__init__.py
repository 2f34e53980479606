"""The rows of the paper's tables, trained and compared."""
