"""Values of fields that a configuration without generated texts must have."""

from typing import Any

# Losses that read identity or clothing texts.
CAPTIONS_ONLY: dict[str, Any] = {
    "loss.info_nce_texts": "caption",
    "loss.clothing_matching": False,
    "loss.adversarial": False,
}
