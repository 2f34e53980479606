"""Results of an evaluation: the dataclasses of RUN/eval.json and RUN/eval-PROTOCOL.json; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from training.evaluation.audit_guard import refuse_audit
from training.utils.io import Keys, decode, nullable, read_json

# Headings of the retrieval metrics by their keys, in the order of every table.
HEADINGS = {"R1": "R-1", "R5": "R-5", "R10": "R-10", "mAP": "mAP", "mINP": "mINP"}
METRICS = tuple(HEADINGS)

# Values in percent by METRICS.
Metrics = Annotated[dict[str, float], Keys(METRICS)]
# The whole configuration as config.to_dict returns it.
ConfigValues = Annotated[dict[str, Any], Keys(("recipe", "seed", "data"))]

# The end of `EvalConfig.betas`: the identity embedding is then a millionth of the score.
CLOTHING_ALONE = 1e6


def beta_text(beta: float) -> str:
    """A weight of the clothing embedding, as tables and pages show it."""
    return "10⁶, clothing alone" if beta >= CLOTHING_ALONE else f"{beta:g}"


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Size of a split as queries and gallery."""

    queries: int
    gallery: int
    ids: int


@dataclass(frozen=True, kw_only=True)
class RankedImage:
    """An image in the ranking of a query; `correct` if it shows the described person."""

    file_path: str
    id: int
    score: float
    correct: bool


@dataclass(frozen=True, kw_only=True)
class Example:
    """A query, the image that it describes, and its best images, best first."""

    caption: str
    file_path: str
    id: int
    results: list[RankedImage]


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Counts (n) between edges (n + 1), with mean and standard deviation of the values."""

    edges: list[float]
    counts: list[int]
    mean: float
    std: float


@dataclass(frozen=True, kw_only=True)
class DataSummary:
    """A data set: the source of its splits, skipped training images, fingerprint, and sizes by split."""

    name: str
    root: str
    # Not in files of early versions.
    split: str | None = None
    left_out: int | None = None
    fingerprint: str
    # ids, images and captions.
    counts: dict[str, dict[str, int]]


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Numbers of parameters; `trained` are those with a gradient."""

    total: int
    trained: int
    fusion: int


@dataclass(frozen=True, kw_only=True)
class Flops:
    """FLOPs of one image-text pair, a product and a sum counting two."""

    image: int
    text: int
    fusion: int
    total: int


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Items a second: median, 20th and 80th percentile over repetitions on one batch."""

    median: float
    low: float
    high: float
    batch: int
    repetitions: int


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Throughput of Model.embed_images and of Model.fuse; None without a fusion."""

    images: Throughput
    pairs: Throughput | None


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """Cost of a model; flops is None where the kernels are not built."""

    parameters: Parameters
    flops: Flops | None
    speed: Speed


@dataclass(frozen=True, kw_only=True)
class CheckpointInfo:
    """The checkpoint a result was computed from; sha256 of its file."""

    epoch: int
    step: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Protocol `dual` on the test split: the contents of RUN/eval.json. Fields with a default may be missing in a file."""

    # At the clothing weight beta chosen on validation, and at beta = 0.
    metrics: Metrics
    metrics_beta0: Metrics
    beta: float
    chance: Metrics
    ties: bool | None = None
    counts: Counts
    examples: list[Example] = field(default_factory=list)
    # gate_id, gate_clo, fusion_image, fusion_text; null for a part that the model does not have.
    histograms: dict[str, Histogram | None] = field(default_factory=dict)
    # Operator calls of training and evaluation by "op.backend.direction".
    calls: dict[str, int] = field(default_factory=dict)
    data: DataSummary | None = None
    versions: dict[str, str] = field(default_factory=dict)
    config: ConfigValues
    # Peak memory of the evaluation and of the training; null for a training that has not finished.
    memory_mb: float | None = None
    training_memory_mb: float | None = nullable()
    efficiency: Efficiency | None = None
    # training, validation, evaluation.
    seconds: dict[str, float] = field(default_factory=dict)
    checkpoint: CheckpointInfo | None = None


@dataclass(frozen=True, kw_only=True)
class OracleBounds:
    """Ceiling of retrieval on the test split of a rendered set: the contents of RUN/oracle.json."""

    fingerprint: str
    # Metrics by the label of the row.
    rows: dict[str, Metrics]


@dataclass(frozen=True, kw_only=True)
class TextSource:
    """The file of identity texts that gallery-text or identity read."""

    path: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ProtocolEvaluation:
    """A protocol other than `dual` on the test split: the contents of RUN/eval-PROTOCOL.json.

    rerank: `metrics` of the summed scores, `metrics_matching` of the matching head alone. gallery-text and rerank: also
    `metrics_dual`. other-outfit: `metrics` at the beta chosen on validation, also `metrics_beta0`, and the captions left out.
    paired-audit: `audit` and `metrics_audit` only, so that no table takes them for results.
    """

    protocol: str
    parameters: dict[str, float]
    texts: TextSource | None = None
    chance: Metrics
    counts: Counts
    audit: bool | None = None
    metrics: Metrics | None = None
    metrics_matching: Metrics | None = None
    metrics_dual: Metrics | None = None
    metrics_beta0: Metrics | None = None
    metrics_audit: Metrics | None = None
    # Image-text pairs scored by the matching head, and the temperature of the loss.
    pairs: int | None = None
    temperature: float | None = None
    # Queries of people with one outfit, who cannot be found in another one.
    left_out: int | None = None
    ties: bool
    note: str | None = None
    data: DataSummary | None = None
    versions: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    checkpoint: CheckpointInfo | None = None


def read_evaluation(path: Path) -> Evaluation:
    """Reads eval.json. Raises FileNotFoundError, ValueError naming file and field, or for results of paired-audit."""
    values = read_json(path)
    refuse_audit(values, str(path))
    return decode(Evaluation, values, str(path))


def read_protocol(path: Path) -> ProtocolEvaluation:
    """Reads eval-PROTOCOL.json of a protocol for tables. Raises as `read_evaluation`."""
    values = read_json(path)
    refuse_audit(values, str(path))
    return decode(ProtocolEvaluation, values, str(path))


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, keys joined with dots; a tuple becomes a list, as JSON has it."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat
