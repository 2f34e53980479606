"""Measures of disentanglement: the dataclass of RUN/disentangle.json; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from training.evaluation.result import CheckpointInfo, Metrics
from training.utils.io import Keys

RESULT, ARRAYS = "disentangle.json", "disentangle.npz"
# Measures of dependence between two features.
MEASURES = {
    "hsic": "unbiased HSIC, RBF kernels of median width",
    "hsic_normalised": "the same over the geometric mean of each feature's HSIC with itself",
    "cka": "linear CKA, biased: grows with width over number of images, whatever the features",
    "cka_debiased": "linear CKA of unbiased HSIC, 0 for independent features",
}
GALLERIES = ("other", "same")


@dataclass(frozen=True, kw_only=True)
class ProbeAccuracy:
    """Balanced accuracy of a probe over the folds, percent; score = (mean - baseline) / (100 - baseline)."""

    mean: float
    std: float
    folds: list[float]
    score: float


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Linear probes of one factor: images used and dropped, the majority baseline, the accuracy from the true factors of
    the other kind, and the accuracy from each feature."""

    kind: str
    classes: list[str]
    images: int
    dropped: int
    baseline: float
    other_kind: float
    features: dict[str, ProbeAccuracy]


@dataclass(frozen=True, kw_only=True)
class SkippedProbe:
    """A factor that was not probed, and the reason."""

    kind: str
    skipped: str


Probes = dict[str, Probe | SkippedProbe]


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A measure of dependence: over all images, over one image a person, and its distribution under permutations."""

    value: float
    sample: float
    null_mean: float
    null_95: float
    p: float


@dataclass(frozen=True, kw_only=True)
class Dependence:
    """MEASURES between f_id and f_clo."""

    images: int
    people: int
    permutations: int
    hsic: Measure
    hsic_normalised: Measure
    cka: Measure
    cka_debiased: Measure

    def measure(self, name: str) -> Measure:
        """The measure of a name of MEASURES."""
        measure: Measure = getattr(self, name)
        return measure


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """Image-to-image retrieval with one feature: metrics in percent, 95 % intervals of R1 and mAP over people."""

    R1: float
    R5: float
    R10: float
    mAP: float
    mINP: float
    interval: Annotated[dict[str, list[float]], Keys(("R1", "mAP"))]

    def metric(self, key: str) -> float:
        """The value of a key of METRICS."""
        value: float = getattr(self, key)
        return value


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Image-to-image retrieval in one gallery: queries with and without a match, chance, results by feature."""

    queries: int
    without_match: int
    chance: Metrics | None
    features: dict[str, Retrieval]


Galleries = Annotated[dict[str, Gallery], Keys(GALLERIES)]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The factors that colour the t-SNE plots, and the parameters of the t-SNE."""

    identity_factor: str
    clothing_factor: str
    perplexity: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class ImageCounts:
    """Images and people of the measured split."""

    images: int
    ids: int


@dataclass(frozen=True, kw_only=True)
class Disentanglement:
    """Contents of RUN/disentangle.json. Without ground truth probes, summary, retrieval and tsne are null."""

    probes: Probes | None
    # Mean score of each feature by kind of factor.
    summary: dict[str, dict[str, float | None]] | None
    retrieval: Galleries | None
    tsne: Layout | None
    dependence: Dependence
    # Descriptions of the features and of MEASURES.
    features: dict[str, str]
    measures: dict[str, str] = field(default_factory=dict)
    config: Annotated[dict[str, Any], Keys(("seed",))]
    fingerprint: str
    counts: ImageCounts
    seconds: float
    checkpoint: CheckpointInfo | None = None
