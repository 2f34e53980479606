"""The layout of a checkout, the rules that it keeps, and both in numbers: `python -m tests.support.house [CHECKOUT ...]`."""
