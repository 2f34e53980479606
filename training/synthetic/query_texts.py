"""Identity texts of the rendered people of val and test, from their true factors: queries of the protocol `identity` only."""

from __future__ import annotations

import json
from pathlib import Path

from training.data.ground_truth import FACTORS, read_factor_rows
from training.data.identity_queries import IDENTITY_QUERIES
from training.synthetic.attributes import Identity, Pose
from training.synthetic.rng import KeyedRng
from training.synthetic.text.descriptions import STYLES, identity_text
from training.utils.io import write_bytes


def write_identity_queries(root: Path) -> Path:
    """Writes ROOT/identity_queries.jsonl, a line {"file_path", "identity"} for each image of val and test, and returns its path.

    The form of a text is drawn anew: most differ from the one in descriptions.jsonl. Equal factors give equal bytes, so a set
    that was rendered before gets the file of a new one. Raises FileNotFoundError for a folder that holds no rendered set.
    """
    root, annotations = Path(root), Path(root) / "reid_raw.json"
    if not annotations.is_file() or not (root / FACTORS).is_file():
        raise FileNotFoundError(f"{root} holds no rendered set: expected reid_raw.json and {FACTORS} in it")
    records = json.loads(annotations.read_text(encoding="utf-8"))
    held_out = [record["file_path"] for record in records if record["split"] != "train"]
    lines = []
    for row in read_factor_rows(root, held_out, "only rendered sets have one"):
        style = KeyedRng("identity query", row["file_path"]).integer(0, STYLES - 1)
        text = identity_text(Identity(**row["identity"]), Pose(**row["pose"]), style)
        lines.append(json.dumps({"file_path": row["file_path"], "identity": text}) + "\n")
    return write_bytes(root / IDENTITY_QUERIES, "".join(lines).encode())
