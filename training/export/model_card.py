"""The model card of an exported model: data, protocol, numbers, intended use and limits."""

from __future__ import annotations

from training.config import Config
from training.engine.checkpoint import TrainedModel
from training.evaluation.result import HEADINGS, METRICS, Evaluation

CARD = """---
library_name: bdam_fast
pipeline_tag: feature-extraction
tags: [person-search, text-to-image-retrieval, person-re-identification]
---

# {recipe}

A dual encoder for text-to-image person search: it scores how well an image of a person fits a description. {architecture}

```python
from training.export.person_search import PersonSearch

model = PersonSearch.from_pretrained("FOLDER")
scores = model.embed_texts(["a man in a red jacket"]) @ model.embed_images(["a.jpg", "b.jpg"]).T
```

## Training data

{data}; texts of at most {text_length} tokens, images of {height} x {width} pixels, seed {seed}, {epoch} epochs ({step} steps).
Fingerprint of the data: `{fingerprint}`. The images were taken by few cameras in few places; people of other places, seasons and
cameras will be found less well.

## Evaluation

{evaluation}

## Intended use

Research on retrieval, and search in image collections whose people have agreed to it. The model has learned from {training_size}
only; numbers above do not carry over to other cameras.

## Limits and risks

* A high score is no identification: the model always ranks some image first, also where the person is not in the gallery. A
  human must look at the images, and no decision about a person may rest on a rank.
* It describes what people wear at one moment. Clothes change; sex, age and build are guessed from looks, with the errors and
  biases of the annotators of its data.
* Tracking people without their knowledge is against the law in many places and against the purpose of this model.
"""


def model_card(trained: TrainedModel, evaluation: Evaluation | None) -> str:
    """The card in Markdown, with the numbers of the test split where the run was evaluated."""
    config, data = trained.config, evaluation.data if evaluation else None
    counts = data.counts["train"] if data else None
    size = (
        f"{counts['images']:,} images of {counts['ids']:,} people" if counts else f"the data set {config.data.dataset}"
    )
    return CARD.format(
        recipe=config.recipe,
        architecture=_architecture(config),
        data=f"{config.data.dataset}: {size}" if counts else size,
        text_length=config.data.text_length,
        height=config.data.image_size[0],
        width=config.data.image_size[1],
        seed=config.seed,
        epoch=trained.epoch,
        step=trained.step,
        fingerprint=trained.fingerprint,
        evaluation=_numbers(evaluation),
        training_size=size,
    )


def _architecture(config: Config) -> str:
    if config.model.architecture == "dual-encoder":
        return "A plain dual encoder without decoupling."
    return "An image has an embedding of identity and one of clothing, which a score weighs by beta."


def _numbers(evaluation: Evaluation | None) -> str:
    if evaluation is None:
        return "Not evaluated."
    rows = {f"beta {evaluation.beta:g}": evaluation.metrics, "chance": evaluation.chance}
    head = f"| test split, percent | {' | '.join(HEADINGS[name] for name in METRICS)} |"
    lines = [head, "|---" * (1 + len(METRICS)) + "|"]
    lines += [f"| {name} | {' | '.join(f'{row[m]:.2f}' for m in METRICS)} |" for name, row in rows.items()]
    counts = evaluation.counts
    text = (
        f"Protocol `dual`: {counts.queries:,} captions as queries, {counts.gallery:,} images of {counts.ids:,} people as "
        "gallery, every image scored; the checkpoint and beta were chosen on the validation split."
    )
    return text + "\n\n" + "\n".join(lines)
