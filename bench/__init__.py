"""Benchmarks: `python -m bench.run --op NAME`. Never part of the test suite."""
