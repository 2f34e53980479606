"""Seconds and peak memory of DBSCAN over as many style features as CUHK-PEDES has training captions:

python -m bench.pipeline.styles [--captions 68126] [--dimensions 512] [--eps 0]
"""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass

import numpy as np
import tyro
from sklearn.preprocessing import normalize

from training.describe.styles.clustering import StyleOptions, cluster


@dataclass(frozen=True)
class Arguments:
    """Size of the problem."""

    # Number of captions: by default those of the training split of CUHK-PEDES.
    captions: int = 68126
    # Width of their features.
    dimensions: int = 512
    # Radius; 0: the automatic rule; 2: every pair of captions is in reach, the worst case for neighbour lists.
    eps: float = 0.0


def features(captions: int, dimensions: int, styles: int = 200) -> np.ndarray:
    """Distinct features around the centres of `styles` groups: float32 (captions, dimensions), norm 1."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((styles, dimensions), dtype=np.float32)
    noise = rng.standard_normal((captions, dimensions), dtype=np.float32)
    return normalize(centres[rng.integers(styles, size=captions)] + 0.4 * noise)


def main() -> None:
    """Measures and prints one line."""
    arguments = tyro.cli(Arguments, description=__doc__)
    features_ND = features(arguments.captions, arguments.dimensions)
    started = time.perf_counter()
    found = cluster(features_ND, "dbscan", StyleOptions(eps=arguments.eps, min_share=0.0))
    seconds = time.perf_counter() - started
    # Kilobytes on Linux.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    size = f"{arguments.captions} x {arguments.dimensions}"
    print(
        f"{size}: eps {found.details['eps']:.3f}, {found.details['clusters']} clusters, {seconds:.0f} s, peak {peak:.2f} GB"
    )


if __name__ == "__main__":
    main()
