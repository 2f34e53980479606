"""Offline substitute for a multimodal model on a synthetic set: reads the contents of an image from factors.jsonl.

The texts of a style are written by the caption writer whose captions are most similar to the style's examples.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path

from training.data.ground_truth import FACTORS, read_factor_rows
from training.describe.llm.answer_store import Answer
from training.describe.llm.providers import Request
from training.describe.template_writer import nearest_writer, write_texts
from training.describe.text.schema import KINDS
from training.synthetic.attributes import Identity, Outfit, Pose
from training.synthetic.rng import KeyedRng
from training.synthetic.text.captions import STYLES

Scene = tuple[Identity, Outfit, Pose]


def read_scenes(root: Path, file_paths: Collection[str]) -> dict[str, Scene]:
    """Reads the contents (identity, outfit, pose) of these images.

    Raises what `read_factor_rows` raises, and ValueError for an image whose attributes are not those of the renderer.
    """
    scenes: dict[str, Scene] = {}
    for row in read_factor_rows(root, file_paths, "the provider template describes synthetic sets only"):
        try:
            scenes[row["file_path"]] = Identity(**row["identity"]), Outfit(**row["outfit"]), Pose(**row["pose"])
        except (TypeError, KeyError) as error:
            raise ValueError(
                f"{Path(root) / FACTORS} does not have the attributes of the renderer for {row['file_path']}: {error}"
            ) from error
    return scenes


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
        rng = KeyedRng("template", request.seed, request.file_path)
        texts: dict[str, str] = dict(
            zip(KINDS, write_texts(identity, outfit, pose, rng, self._writers[request.style]), strict=True)
        )
        return Answer(json.dumps({request.kind: texts[request.kind]}))
