"""A folder of styles for a miniature data set, and what tests read in the files beside it."""

import json
from pathlib import Path
from typing import Any

TERSE = ["Man; black jacket; blue jeans; white shoes.", "Woman; red coat; black trousers; brown boots; bag."]
LONG = ["The man is wearing a red shirt. The man is wearing black trousers. The man is wearing white shoes."] * 2


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def paths_of(root: Path, split: str) -> set[str]:
    return {r["file_path"] for r in json.loads((root / "reid_raw.json").read_text()) if r["split"] == split}


def write_styles(folder: Path, root: Path) -> Path:
    """Every second training image in a terse style, the others in a repetitive one."""
    folder.mkdir()
    styles = [{"style": i, "size": 5, "examples": text, "markers": []} for i, text in enumerate((TERSE, LONG))]
    (folder / "styles.json").write_text(json.dumps({"method": "dbscan", "styles": styles}))
    rows = [
        {"file_path": path, "caption": caption, "style": (number + caption) % 2}
        for number, path in enumerate(sorted(paths_of(root, "train")))
        for caption in (0, 1)
    ]
    (folder / "styles.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
