"""Models of earlier versions: their parameters have the same names and shapes, so that their checkpoints load."""

import json
from pathlib import Path

import pytest

from training.config import from_dict
from training.engine.checkpoint import build_model

# Configurations and parameter shapes that version 0.1.0 wrote and built: the default, the paper's readings, gradient reversal.
STORED = json.loads(Path(__file__).with_name("models-0.1.0.json").read_text())


class Words:
    """Vocabulary of 40 words."""

    pad_token_id = 0

    def __len__(self) -> int:
        return 40


@pytest.mark.parametrize("name", STORED)
def test_parameters_of_a_stored_configuration_keep_their_names_and_shapes(name: str) -> None:
    model = build_model(from_dict(STORED[name]["config"]), Words())
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == STORED[name]["shapes"]
