"""Identity texts that are queries of the protocol `identity`, for the images of val and test. Training reads none of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from training.data.checks import examples
from training.data.datasets import Record, TextFile, TextsMissing, text_lines

IDENTITY_QUERIES = "identity_queries.jsonl"
_HINT = (
    f"for a rendered set `python -m training.prepare identity-queries ROOT` writes ROOT/{IDENTITY_QUERIES}; for another one "
    "--texts names a file of generated texts of the split"
)


def read_identity_queries(root: Path | str) -> TextFile:
    """ROOT/identity_queries.jsonl for `query_texts`. Raises FileNotFoundError that says how to make it."""
    path = Path(root) / IDENTITY_QUERIES
    if not path.is_file():
        raise FileNotFoundError(f"protocol identity asks with identity texts, but there is no {path}; {_HINT}")
    return TextFile(path, path.read_bytes())


def query_texts(file: TextFile, records: Sequence[Record]) -> list[str]:
    """The identity text of each record: lines {"file_path", "identity"}, of which those with another status than "ok" do not
    count. Raises ValueError for a broken line, TextsMissing when a record has no text: every image of a split is described."""
    texts: dict[str, str] = {}
    for _, row in text_lines(file.content, file.path, ("file_path", "identity")):
        if row.get("status", "ok") == "ok" and row["identity"].strip():
            texts[row["file_path"]] = row["identity"].strip()
    without = [record.file_path for record in records if record.file_path not in texts]
    if without:
        raise TextsMissing(f"protocol identity: {file.path} has no identity text of {examples(without)}; {_HINT}")
    return [texts[record.file_path] for record in records]
