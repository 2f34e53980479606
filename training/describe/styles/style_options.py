"""Options of the clustering of captions; imports nothing heavy."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from training.config.fields import Stage, Within
from training.describe.llm.executor import Sampling
from training.describe.llm.limits import Budget
from training.describe.llm.service import Service

# Name of the encoder that needs no model.
STYLOMETRIC = "stylometric"


@dataclass(frozen=True)
class StyleOptions(Stage):
    """Options of the clustering (readings 19 and 20)."""

    # Neighbours, itself included, that make a caption a core point (dbscan, hdbscan).
    min_samples: Annotated[int, Within(2)] = 20
    # Radius (dbscan), a distance between features of norm 1; 0: the knee of the k-distance curve, k = min_samples.
    eps: Annotated[float, Within(0, 2)] = 0.0
    # Clusters with a smaller share of the captions are merged into the nearest (dbscan, hdbscan).
    min_share: Annotated[float, Within(0, 0.5)] = 0.05
    # Number of styles (random, kmeans, gmm, agglomerative); 0: the one from 2 to 20 with the largest mean
    # silhouette of K-means.
    clusters: Annotated[int, Within(0)] = 0
    # Seed of random, of the initialisations of kmeans and gmm, and of the samples.
    seed: Annotated[int, Within(0)] = 0


@dataclass(frozen=True)
class NeutraliserOptions(Stage):
    """Options of the neutralisation, which takes the content out of captions."""

    # Word lists (offline); an OpenAI-compatible server; or a local vision-language model of transformers.
    neutraliser: Literal["lexicon", "openai", "transformers"] = "lexicon"
    # Model name on the server, or name or folder for transformers.
    model: str = ""
    # Requests for a caption until an answer passes the checks; after that the word lists are used.
    attempts: Annotated[int, Within(1, 20)] = 2
    # Longest answer in tokens.
    max_tokens: Annotated[int, Within(16)] = 300
    # Spend without asking for confirmation.
    yes: bool = False
    # Batch size of transformers.
    batch: Annotated[int, Within(1, 1024)] = 1
    # Device of transformers: auto (the first CUDA device where there is one, else the CPU), cpu, cuda or cuda:N.
    device: str = "auto"
    # Server, rate limits, timeouts and retries.
    service: Service = field(default_factory=Service)
    # Prices and spending limits.
    budget: Budget = field(default_factory=Budget)

    def check(self) -> None:
        given = self.neutraliser != "lexicon"
        self.require(bool(self.model) == given, "model", f"{'given' if given else 'empty'} for {self.neutraliser}")

    @property
    def sampling(self) -> Sampling:
        """Greedy decoding first, sampling for further attempts."""
        return Sampling(0.0, 0.3, 0, self.max_tokens, self.attempts)

    @property
    def params(self) -> dict[str, Any]:
        """Everything that the answers depend on beside the model and the caption."""
        return {"provider": self.neutraliser} | asdict(self.sampling)
