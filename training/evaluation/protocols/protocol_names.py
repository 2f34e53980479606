"""Names of the retrieval protocols, and the parameter of `rerank`; imports nothing heavy."""

from typing import Literal, get_args

Protocol = Literal["dual", "rerank", "gallery-text", "identity", "other-outfit", "paired-audit"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
# Protocols whose results may stand in one table, and those that read a file of texts.
RESULTS = PROTOCOLS[:-1]
WITH_TEXTS: tuple[Protocol, ...] = ("gallery-text", "identity")
# Protocols whose results stand beside those of dual on every page.
BESIDE_DUAL: tuple[Protocol, ...] = ("rerank", "identity", "other-outfit")
# Images of `dual` that `rerank` scores again.
DEFAULT_K = 128


class NotMeasurable(ValueError):
    """Raised for a protocol that needs a part that the model, or a file that the data set, does not have."""
