"""Language models: client, limits, responses, stored answers."""
