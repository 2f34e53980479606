"""The dual encoder of a run as a folder that needs neither the run nor its data, in the file formats of Hugging Face.

Files: model.safetensors, config.json (configuration, clothing weight beta, digests of the other files), the files of the
tokenizer, preprocessor_config.json (as of a ViTImageProcessor), README.md (the model card). `huggingface_hub` uploads such a
folder: `hf upload NAME FOLDER`.

Shapes: N images or texts, E joint embedding.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.config import Config, EncoderConfig, from_dict, to_dict
from training.data.images import transforms
from training.data.loader import tokenize
from training.data.tokenizer import load_tokenizer
from training.engine.checkpoint import TrainedModel, build_model
from training.models.retrieval_model import RetrievalModel
from training.utils.io import file_digest, naming_full_disk, read_json, write_json

KIND = "bdam-person-search"
WEIGHTS, CONFIG, PREPROCESSING = "model.safetensors", "config.json", "preprocessor_config.json"


@dataclass(frozen=True)
class PersonSearch:
    """A model for search of people by text: the scores of texts and images are the products of their embeddings."""

    config: Config
    tokenizer: Any
    model: RetrievalModel
    # Weight of the clothing embedding in the embedding of an image.
    beta: float

    @classmethod
    def of_run(cls, trained: TrainedModel) -> PersonSearch:
        """The model of a run, without the places of its data and of the folders of its encoders."""
        data = replace(trained.config.data, root="", descriptions="", cache="")
        whole = trained.config.model
        model = replace(whole, visual=_without_folder(whole.visual), text=_without_folder(whole.text))
        config = replace(trained.config, data=data, model=model)
        return cls(config, trained.tokenizer, trained.model, trained.beta)

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> PersonSearch:
        """Loads a folder that `save_pretrained` wrote, on the CPU and in evaluation mode.

        Raises FileNotFoundError for a missing file, ValueError naming one that is not what was written.
        """
        folder = Path(folder)
        stored = read_json(folder / CONFIG)
        if not isinstance(stored, dict) or stored.get("model_type") != KIND:
            raise ValueError(f"{folder / CONFIG} is not the configuration of a {KIND} model")
        for name, digest in stored["files"].items():
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder / name} is missing; copy the whole folder again")
            if file_digest(folder / name) != digest:
                raise ValueError(f"{folder / name} is not the file that was exported; copy the whole folder again")
        config, tokenizer = from_dict(stored["config"]), load_tokenizer(folder)
        model = build_model(config, tokenizer, stored["towers"])
        try:
            model.load_state_dict(load_file(folder / WEIGHTS))
        except (SafetensorError, RuntimeError) as error:
            raise ValueError(f"{folder / WEIGHTS} does not hold the weights of its {CONFIG}: {error}") from error
        return cls(config, tokenizer, model.eval(), stored["beta"])

    def save_pretrained(self, folder: Path | str) -> None:
        """Writes the folder, config.json last, so that one that was cut short is not loaded. Raises OSError."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.detach().cpu().clone().contiguous() for name, value in self.model.state_dict().items()}
        with naming_full_disk(folder):
            (folder / CONFIG).unlink(missing_ok=True)
            save_file(weights, folder / WEIGHTS, {"format": "pt"})
            self.tokenizer.save_pretrained(folder)
            write_json(folder / PREPROCESSING, self._preprocessing())
            # Not the card, which is for people to edit, and no lock.
            files = sorted(p for p in folder.iterdir() if p.is_file() and p.name != "README.md" and p.name[0] != ".")
            digests = {path.name: file_digest(path) for path in files}
            values = {"model_type": KIND, "beta": self.beta, "config": to_dict(self.config), "files": digests}
            towers = {name: _without_origin(text) for name, text in self.model.towers().items()}
            write_json(folder / CONFIG, values | {"towers": towers}, seal=True)

    @torch.inference_mode()
    def embed_images(self, paths: Sequence[Path | str], batch_size: int = 64) -> Tensor:
        """(N, E) float32 of image files: v_id + beta v_clo, whose product with the embedding of a text is the score. Raises
        ValueError or FileNotFoundError naming the images that cannot be read."""
        parts = []
        for start in range(0, len(paths), batch_size):
            chosen = [Path(path) for path in paths[start : start + batch_size]]
            pixels = torch.empty(len(chosen), 3, *self.config.data.image_size, dtype=torch.uint8)
            transforms.decode_into(pixels, range(len(chosen)), chosen, self.config.data.max_pixels)
            image = self.model.embed_images(transforms.normalise(pixels))
            parts.append(image.v_id_BE if image.v_clo_BE is None else image.v_id_BE + self.beta * image.v_clo_BE)
        return torch.cat(parts)

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """(N, E) float32 of unit length."""
        return self.model.embed_texts(tokenize(self.tokenizer, texts, self.config.data.text_length))

    def _preprocessing(self) -> dict[str, Any]:
        height, width = self.config.data.image_size
        return {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "size": {"height": height, "width": width},
            # Bilinear with antialiasing, as Pillow numbers it.
            "resample": 2,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": [transforms.MEAN] * 3,
            "image_std": [transforms.STD] * 3,
        }


def _without_folder(encoder: EncoderConfig) -> EncoderConfig:
    """The configuration of an encoder without the path of a local folder."""
    path = Path(encoder.pretrained)
    local = bool(encoder.pretrained) and (path.is_absolute() or path.is_dir())
    return replace(encoder, pretrained=path.name) if local else encoder


def _without_origin(tower: str) -> str:
    """The description of a pretrained encoder without the folder that it was loaded from."""
    values = json.loads(tower)
    values["config"]["_name_or_path"] = ""
    return json.dumps(values)
