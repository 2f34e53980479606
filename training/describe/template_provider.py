"""Offline stand-in for a multimodal model on a synthetic set: it reads what an image shows from factors.jsonl.

The texts of a style are written by the caption writer whose captions are most like the style's examples.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from training.describe.llm.answer_store import Answer
from training.describe.llm.providers import Ask
from training.describe.template_writer import imitate, nearest_writer
from training.describe.text.schema import KINDS
from training.synthetic.attributes import Identity, Outfit, Pose
from training.synthetic.rng import KeyedRng
from training.synthetic.text.captions import STYLES

Scene = tuple[Identity, Outfit, Pose]


def read_scenes(root: Path, wanted: Collection[str]) -> dict[str, Scene]:
    """What the wanted images show.

    Raises FileNotFoundError for data that is not synthetic, ValueError for a broken line or an image that has none.
    """
    path, names = Path(root) / "factors.jsonl", set(wanted)
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: the provider template describes synthetic sets only")
    scenes: dict[str, Scene] = {}
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                if row["file_path"] in names:
                    scenes[row["file_path"]] = _scene(row)
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"{path}, line {number} does not say what an image shows: {error}") from error
    without = sorted(names - set(scenes))
    if without:
        raise ValueError(
            f"{path} does not say what these images show: {', '.join(without[:5])} ({len(without)} in all)"
        )
    return scenes


def _scene(row: dict[str, Any]) -> Scene:
    return Identity(**row["identity"]), Outfit(**row["outfit"]), Pose(**row["pose"])


class TemplateProvider:
    """Answers in JSON, as a model would; the same ask gets the same answer."""

    window = 4

    def __init__(self, scenes: Mapping[str, Scene], examples: Mapping[int, tuple[str, ...]]) -> None:
        """examples: captions that show each style; a style without any has the writer of its number."""
        self._scenes = scenes
        self._writers = {
            style: nearest_writer(shown) if shown else style % len(STYLES) for style, shown in examples.items()
        }

    async def answer(self, ask: Ask) -> Answer:
        """The text of one kind."""
        identity, outfit, pose = self._scenes[ask.file_path]
        rng = KeyedRng("template", ask.seed, ask.file_path)
        texts: dict[str, str] = dict(
            zip(KINDS, imitate(identity, outfit, pose, rng, self._writers[ask.style]), strict=True)
        )
        return Answer(json.dumps({ask.kind: texts[ask.kind]}))
