"""Linear probes: accuracy of a logistic regression that reads a factor from a feature, on people unseen in its training.

The folds split *people*, not images: a probe that knew the test people could answer by identity. Shapes: N images.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.dummy import DummyClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from threadpoolctl import threadpool_limits

from training.evaluation.disentangle_result import Probe, ProbeAccuracy, Probes, SkippedProbe

FOLDS = 5
SEED = 0
# Inverse strength of the L2 penalty on standardised features, the same for every feature and factor.
C = 0.1
ITERATIONS = 1000


def probe_all(
    features: Mapping[str, np.ndarray],
    factors: Mapping[str, Mapping[str, Sequence[str]]],
    persons: Sequence[int],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Probes:
    """Probes of each factor by its name; `factors` is {"identity": {name: values}, "clothing": ...}, values one word per
    image, `persons` the id of each image.

    dropped: images of values that fewer than FOLDS people have; baseline: always the most frequent value; other_kind:
    from the true factors of the other kind, which correlate with a factor (a dress with a woman). A factor with fewer than
    two values left is skipped. Raises ValueError for fewer than FOLDS people, RuntimeError for a probe that does not
    converge.
    """
    people = len(set(persons))
    if people < FOLDS:
        raise ValueError(f"probes need at least {FOLDS} people to split, got {people}")
    kinds = {"identity": "clothing", "clothing": "identity"}
    inputs = {kind: np.column_stack([factors[other][name] for name in factors[other]]) for kind, other in kinds.items()}
    jobs = [(kind, name, values) for kind in kinds for name, values in factors[kind].items()]
    results: Probes = {}
    # The products are so small that threads wait for each other: 34 s a run with one, 240 s with two on two busy cores.
    with threadpool_limits(limits=1):
        for done, (kind, name, values) in enumerate(jobs, 1):
            results[name] = _probe(kind, features, inputs[kind], np.asarray(values), np.asarray(persons))
            progress(done, len(jobs))
    return results


def mean_score(results: Probes, feature: str, kind: str) -> float | None:
    """Mean score of a feature, or of "other_kind", over the factors of one kind; None when there is none."""
    probes = [r for r in results.values() if r.kind == kind and isinstance(r, Probe)]
    scores = [_score(r.other_kind if feature == "other_kind" else r.features[feature].mean, r.baseline) for r in probes]
    return float(np.mean(scores)) if scores else None


def _probe(
    kind: str, features: Mapping[str, np.ndarray], other: np.ndarray, values: np.ndarray, persons: np.ndarray
) -> Probe | SkippedProbe:
    kept = np.isin(values, [v for v in np.unique(values) if len(set(persons[values == v])) >= FOLDS])
    classes = np.unique(values[kept])
    if len(classes) < 2:
        reason = f"only {len(classes)} of its values are shown by at least {FOLDS} people"
        return SkippedProbe(kind=kind, skipped=reason)
    labels = values[kept]
    splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=SEED)
    splits = list(splitter.split(np.zeros(len(labels)), labels, persons[kept]))
    majority = _folds(lambda: DummyClassifier(strategy="most_frequent"), np.zeros((len(labels), 1)), labels, splits)
    baseline = float(np.mean(majority))
    encoded = OneHotEncoder(sparse_output=False).fit_transform(other[kept])
    accuracies = {name: _folds(_classifier, feature[kept], labels, splits) for name, feature in features.items()}
    return Probe(
        kind=kind,
        classes=classes.tolist(),
        images=int(kept.sum()),
        dropped=int((~kept).sum()),
        baseline=baseline,
        other_kind=float(np.mean(_folds(_classifier, encoded, labels, splits))),
        features={name: _accuracy(folds, baseline) for name, folds in accuracies.items()},
    )


def _accuracy(folds: list[float], baseline: float) -> ProbeAccuracy:
    mean = float(np.mean(folds))
    return ProbeAccuracy(mean=mean, std=float(np.std(folds, ddof=1)), folds=folds, score=_score(mean, baseline))


def _score(accuracy: float, baseline: float) -> float:
    return (accuracy - baseline) / (100.0 - baseline)


def _classifier() -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(C=C, class_weight="balanced", max_iter=ITERATIONS))


def _folds(
    make: Callable[[], Any], x: np.ndarray, labels: np.ndarray, splits: list[tuple[np.ndarray, np.ndarray]]
) -> list[float]:
    """Balanced accuracy in percent on each fold."""
    scores = []
    for train, test in splits:
        with warnings.catch_warnings():
            # A probe that has not converged underestimates the feature.
            warnings.simplefilter("error", ConvergenceWarning)
            # A fold may lack a value; the accuracy is balanced over the values that it has.
            warnings.filterwarnings("ignore", "y_pred contains classes not in y_true")
            try:
                predicted = make().fit(x[train], labels[train]).predict(x[test])
            except ConvergenceWarning as warning:
                raise RuntimeError(f"a linear probe did not converge in {ITERATIONS} iterations") from warning
            scores.append(100.0 * float(balanced_accuracy_score(labels[test], predicted)))
    return scores
