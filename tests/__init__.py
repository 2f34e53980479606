"""The tests; helpers are in tests.support."""
