"""Seconds and peak memory of DBSCAN over as many style features as CUHK-PEDES has train captions:

    python -m bench.pipeline.styles [--captions 68126] [--dimensions 512] [--eps 0]

eps 0 is the automatic rule; 2 puts every pair of captions within reach, the worst case for whoever keeps neighbours.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np
from sklearn.preprocessing import normalize

from training.describe.styles.clustering import StyleOptions, cluster


def features(captions: int, dimensions: int, styles: int = 200) -> np.ndarray:
    """Features (captions, dimensions) of norm 1, float32, all different, around the centres of `styles` groups."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((styles, dimensions), dtype=np.float32)
    noise = rng.standard_normal((captions, dimensions), dtype=np.float32)
    return normalize(centres[rng.integers(styles, size=captions)] + 0.4 * noise)


def main() -> None:
    """Measures and prints one line."""
    parser = argparse.ArgumentParser("python -m bench.pipeline.styles", description=__doc__)
    parser.add_argument("--captions", type=int, default=68126)
    parser.add_argument("--dimensions", type=int, default=512)
    parser.add_argument("--eps", type=float, default=0.0)
    arguments = parser.parse_args()
    features_ND = features(arguments.captions, arguments.dimensions)
    started = time.perf_counter()
    found = cluster(features_ND, "dbscan", StyleOptions(eps=arguments.eps, min_share=0.0))
    seconds = time.perf_counter() - started
    # Kilobytes on Linux.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    size = f"{arguments.captions} x {arguments.dimensions}"
    print(
        f"{size}: eps {found.found['eps']:.3f}, {found.found['clusters']} clusters, {seconds:.0f} s, peak {peak:.2f} GB"
    )


if __name__ == "__main__":
    main()
