"""Texts about images: styles of captions, prompts, and descriptions from a multimodal model."""
