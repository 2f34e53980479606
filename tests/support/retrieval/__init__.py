"""Galleries, a served page and a browser for the tests of retrieval."""
