"""Diagnosis of a run: the dataclass of RUN/diagnosis.json, and the bounds of its values; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from training.evaluation.result import CheckpointInfo

DIAGNOSIS = "diagnosis.json"
# Times chance that captions fused with a wrong image may find themselves, where chance alone is above the bound.
CHANCES = 1.5


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Images that were looked at: the first ones of a split, with generated texts where `texts` is the file of these."""

    split: str
    images: int
    ids: int
    texts: str | None = None


@dataclass(frozen=True, kw_only=True)
class TaskGradient:
    """A loss on the sample and the norm of its gradient on the visual tokens, unweighted, with new weights and with trained
    ones; its task weight at the end of training, None for a loss of fixed weight, which the numbers include."""

    loss_start: float
    loss_end: float
    norm_start: float
    norm_end: float
    weight: float | None = None

    @property
    def at_its_bound(self) -> bool:
        """True for a loss of 0 without a gradient, such as an adversary that finds nothing to read: it has done its work."""
        return self.loss_end == 0.0 and self.norm_end == 0.0


@dataclass(frozen=True, kw_only=True)
class OwnCaption:
    """Share of captions, percent, that their f_final finds first among all of the sample: fused with the image that they
    describe, with that of another person, and by chance."""

    right_image: float
    wrong_image: float
    chance: float


@dataclass(frozen=True, kw_only=True)
class MatchingHead:
    """AUC of the matching head: right pairs against captions with the image of any other person, and with the most similar
    such image."""

    auc_random: float
    auc_hard: float


@dataclass(frozen=True, kw_only=True)
class TextSearch:
    """R-1 in percent of generated texts as queries for images of their person, and its chance. clothing_v_clo is None for a model
    without clothing embedding."""

    identity_v_id: float
    clothing_v_id: float
    clothing_v_clo: float | None = None
    chance: float


@dataclass(frozen=True, kw_only=True)
class InfoNce:
    """InfoNCE of captions and the summed embeddings, batch by batch at the trained temperature, and its value for embeddings
    that tell nothing."""

    loss: float
    chance: float


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """Contents of RUN/diagnosis.json; a part that the model does not have is null."""

    sample: Sample
    # Of the gradients and of the generated texts, which val images have on rendered sets only.
    described: Sample
    tasks: dict[str, TaskGradient] = field(default_factory=dict)
    own_caption: OwnCaption | None = None
    matching: MatchingHead | None = None
    search: TextSearch | None = None
    info_nce: InfoNce
    seconds: float
    checkpoint: CheckpointInfo | None = None

    def shares(self) -> dict[str, float]:
        """Part of each task in the sum of weight times norm at the end, percent, without those at their bound; {} where all are
        zero or no weight is known."""
        tasks = {name: task for name, task in self.tasks.items() if not task.at_its_bound}
        pulls = {name: task.weight * task.norm_end for name, task in tasks.items() if task.weight is not None}
        total = sum(pulls.values())
        return {name: 100.0 * pull / total for name, pull in pulls.items()} if total > 0 else {}

    def bounds(self) -> tuple[Bound, ...]:
        """BOUNDS; of few captions more find themselves by chance than BOUNDS allows: the bound is then CHANCES times chance."""
        chance = 0.0 if self.own_caption is None else self.own_caption.chance
        return tuple(
            bound._replace(high=CHANCES * chance)
            if bound.key == "own_caption" and bound.high is not None and chance > bound.high
            else bound
            for bound in BOUNDS
        )

    def values(self) -> dict[str, float]:
        """Values of BOUNDS by key, as far as the run has them."""
        shares, values = self.shares(), dict[str, float]()
        if self.info_nce.chance > 0:
            values["info_nce"] = self.info_nce.loss / self.info_nce.chance
        if shares:
            # A task without any gradient would make the spread infinite.
            floor = max(min(shares.values()), 1e-6)
            values |= {"spread": max(shares.values()) / floor, "smallest_share": min(shares.values())}
        if self.own_caption is not None:
            values["own_caption"] = self.own_caption.wrong_image
        if self.matching is not None:
            values |= {"matching": self.matching.auc_random, "matching_hard": self.matching.auc_hard}
        if self.search is not None:
            values["identity_text"] = self.search.identity_v_id / self.search.chance
            if self.search.clothing_v_clo is not None:
                # Found less often than by chance counts as chance: the ratio stays finite.
                values["clothing_text"] = self.search.clothing_v_clo / max(
                    self.search.clothing_v_id, self.search.chance
                )
        return values


class Bound(NamedTuple):
    """Limits of a value of `Diagnosis.values`, None where there is none, its name, its unit, and why it matters."""

    key: str
    name: str
    low: float | None
    high: float | None
    unit: str
    reason: str

    def holds(self, value: float) -> bool:
        """True for a value within the limits."""
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)

    def limits(self) -> str:
        """The limits in words."""
        words = (("at least", self.low), ("at most", self.high))
        return " and ".join(f"{word} {limit:.3g}{self.unit}" for word, limit in words if limit is not None)


BOUNDS = (
    Bound(
        "spread",
        "largest over smallest weight × norm of the tasks",
        None,
        4.0,
        "×",
        "The weights are there to make the tasks pull alike; one that pulls far less than another is there in name only.",
    ),
    Bound(
        "smallest_share",
        "smallest task's part of all weight × norm",
        5.0,
        None,
        " %",
        "A row without a task that has no part in the gradient cannot differ from the full model.",
    ),
    Bound(
        "info_nce",
        "InfoNCE of captions over its value at chance",
        None,
        0.8,
        "",
        "A model at chance has not begun to learn, and nothing that is compared on it says anything.",
    ),
    Bound(
        "matching",
        "AUC of the matching head, random wrong images",
        0.9,
        None,
        "",
        "Re-ranking orders images by this head; 0.5 is a coin.",
    ),
    Bound(
        "matching_hard",
        "AUC of the matching head, most similar wrong images",
        0.6,
        None,
        "",
        "The candidates of a re-ranking are all similar: only here can the head add to the embeddings.",
    ),
    Bound(
        "own_caption",
        "fused with a wrong image, a caption finds itself",
        None,
        5.0,
        " %",
        "A fusion that copies its caption does not look at the image.",
    ),
    Bound(
        "identity_text",
        "identity text → v_id, R-1 over chance",
        10.0,
        None,
        "×",
        "The identity embedding has to know the person by the words that stay when clothes change.",
    ),
    Bound(
        "clothing_text",
        "clothing text → v_clo over clothing text → v_id, R-1",
        10.0,
        None,
        "×",
        "Decoupled embeddings keep clothes in one place: the other one must not find people by them.",
    ),
)
