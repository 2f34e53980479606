"""A validation split for a data set that has none: ICFG-PEDES (reading 23)."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence

from training.data.readers import Row

# Share of the training identities, and the seed that chooses them.
HELD_OUT, SEED = 0.1, 0


def hold_out(rows: Sequence[Row]) -> tuple[list[Row], str]:
    """(rows in which a tenth of the training identities has the split "val", a sentence about it).

    The identities are those whose SHA-256 of "SEED/id" is smallest, so they depend on the set of training identities
    only: not on the order of the file, a library or a machine. Raises ValueError where a tenth of them is none.
    """
    ids = sorted({row["id"] for row in rows if row["split"] == "train"}, key=_rank)
    chosen = frozenset(ids[: round(HELD_OUT * len(ids))])
    if not chosen:
        enough = next(count for count in itertools.count(1) if round(HELD_OUT * count))
        raise ValueError(
            f"no record has the split val, and of {len(ids)} training ids none is held out for it: at least {enough} are needed"
        )
    held = [row | {"split": "val"} if row["split"] == "train" and row["id"] in chosen else row for row in rows]
    digest = hashlib.sha256(",".join(map(str, sorted(chosen))).encode()).hexdigest()[:12]
    return held, (
        f"val: {len(chosen)} of {len(ids)} training ids held out (seed {SEED}, ids {digest}), the set has no such split"
    )


def _rank(id: int) -> str:
    return hashlib.sha256(f"{SEED}/{id}".encode()).hexdigest()
