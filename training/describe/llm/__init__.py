"""Requests to language models: client, limits, providers, responses, execution, stored answers."""
