"""Offline stand-in for a multimodal model on a synthetic set: it reads what an image shows from factors.jsonl.

The texts of a style are written by the caption writer whose captions are most like the style's examples.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path

from training.data.ground_truth import FACTORS, read_factor_rows
from training.describe.llm.answer_store import Answer
from training.describe.llm.providers import Ask
from training.describe.template_writer import imitate, nearest_writer
from training.describe.text.schema import KINDS
from training.synthetic.attributes import Identity, Outfit, Pose
from training.synthetic.rng import KeyedRng
from training.synthetic.text.captions import STYLES

Scene = tuple[Identity, Outfit, Pose]


def read_scenes(root: Path, wanted: Collection[str]) -> dict[str, Scene]:
    """The true attributes of the wanted images.

    Raises what `read_factor_rows` does, and ValueError for an image whose attributes are not those of the renderer.
    """
    scenes: dict[str, Scene] = {}
    for row in read_factor_rows(root, wanted, "the provider template describes synthetic sets only"):
        try:
            scenes[row["file_path"]] = Identity(**row["identity"]), Outfit(**row["outfit"]), Pose(**row["pose"])
        except (TypeError, KeyError) as error:
            raise ValueError(
                f"{Path(root) / FACTORS} does not have the attributes of the renderer for {row['file_path']}: {error}"
            ) from error
    return scenes


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
