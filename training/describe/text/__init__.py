"""Semantics: styles of captions, prompts for generated texts, their generation, and the checks on them."""
