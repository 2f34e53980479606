"""Names of the retrieval protocols, and the parameter of `rerank`; imports nothing heavy."""

from typing import Literal, get_args

Protocol = Literal["dual", "rerank", "gallery-text", "paired-audit"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
# Images of `dual` that `rerank` scores again.
DEFAULT_K = 128
