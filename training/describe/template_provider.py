"""Offline substitute for a multimodal model on a synthetic set: reads the contents of an image from factors.jsonl.

The texts of a style are written by the caption writer whose captions are most similar to the style's examples.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from training.describe.llm.answer_store import Answer
from training.describe.llm.providers import Request
from training.describe.template_writer import nearest_writer, write_texts
from training.describe.text.schema import KINDS
from training.synthetic.attributes import Identity, Outfit, Pose
from training.synthetic.rng import Dice
from training.synthetic.text.captions import STYLES

Scene = tuple[Identity, Outfit, Pose]


def read_scenes(root: Path, file_paths: Collection[str]) -> dict[str, Scene]:
    """Reads the contents (identity, outfit, pose) of these images.

    Raises FileNotFoundError for data that is not synthetic, ValueError for a malformed line or a missing image.
    """
    path, names = Path(root) / "factors.jsonl", set(file_paths)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: the provider template describes synthetic sets only")
    scenes: dict[str, Scene] = {}
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                if row["file_path"] in names:
                    scenes[row["file_path"]] = _scene(row)
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"{path}, line {number} lacks the factors of an image: {error}") from error
    missing = sorted(names - set(scenes))
    if missing:
        raise ValueError(
            f"{path} lacks the factors of these images: {', '.join(missing[:5])} ({len(missing)} in total)"
        )
    return scenes


def _scene(row: dict[str, Any]) -> Scene:
    return Identity(**row["identity"]), Outfit(**row["outfit"]), Pose(**row["pose"])


class TemplateProvider:
    """Answers in JSON, as a model would; equal requests get equal answers."""

    items_in_flight = 4

    def __init__(self, scenes: Mapping[str, Scene], examples: Mapping[int, tuple[str, ...]]) -> None:
        """examples: style -> example captions; a style without any is written by the writer of its number."""
        self._scenes = scenes
        self._writers = {
            style: nearest_writer(captions) if captions else style % len(STYLES) for style, captions in examples.items()
        }

    async def answer(self, request: Request) -> Answer:
        """Writes the text of the requested kind."""
        identity, outfit, pose = self._scenes[request.file_path]
        dice = Dice("template", request.seed, request.file_path)
        texts: dict[str, str] = dict(
            zip(KINDS, write_texts(identity, outfit, pose, dice, self._writers[request.style]), strict=True)
        )
        return Answer(json.dumps({request.kind: texts[request.kind]}))
