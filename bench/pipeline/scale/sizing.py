"""Time, memory and network of a training step on many cards: `python -m bench.pipeline.scale.sizing`.

FLOPs, memory and bytes are counted (`bench.pipeline.scale.counting`) for two pairs of encoders, built by transformers without
weights, at several batches and numbers of ranks. Times are PREDICTED from the ceilings of a card and a network, which are
arguments; no number of them is measured. The tables go to docs/scale.md with --write. It takes some minutes and no GPU.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import transformers
import tyro

from bench.harness.gpu_table import markdown
from bench.pipeline.scale.counting import Operation, StepCount, count_step
from bench.pipeline.scale.planned_group import Exchange
from bench.pipeline.scale.prediction import Ceilings, Prediction, predict
from training.config import Config
from training.config.recipes import get_recipe
from training.engine.memory_estimate import RESERVE
from training.models.pretrained import CLIP, HALF
from training.utils.io import write_bytes

PAGE = Path("docs/scale.md")
MARKERS = ("<!-- sizing -->", "<!-- end of sizing -->")
# Of bert-base-uncased and bert-large-uncased.
VOCABULARY = 30522
# Images of a rank in a micro-batch where a step does not fit as a whole.
MICRO_BATCH = 256
# They leave the heads as they are, which take most of it.
MOST_SAVED = 2.0


class Pair(NamedTuple):
    """Two encoders: their transformers configurations and heads of BDAM that divide the width."""

    name: str
    visual: transformers.PretrainedConfig
    text: transformers.PretrainedConfig
    heads: int

    def towers(self) -> dict[str, str]:
        """Descriptions from which a model builds the encoders without weights."""
        mean, std = CLIP if self.visual.model_type.startswith("clip") else HALF
        pixels = {"visual": (mean, std), "text": ((), ())}
        return {
            kind: json.dumps({"config": getattr(self, kind).to_dict(), "mean": m, "std": s}, default=str)
            for kind, (m, s) in pixels.items()
        }


def pairs() -> list[Pair]:
    """ViT-B/16 with BERT-base, ViT-L/14 (CLIP's) with BERT-large. Without dropout: with it a CPU takes an attention that keeps
    its matrices, which a card does not."""
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    return [
        Pair("ViT-B/16 + BERT-base", transformers.ViTConfig(), transformers.BertConfig(**none), 12),
        Pair(
            "ViT-L/14 + BERT-large",
            transformers.CLIPVisionConfig(**large, patch_size=14, image_size=224, projection_dim=768),
            transformers.BertConfig(**none, **large),
            16,
        ),
    ]


def configuration(pair: Pair, images: int, accumulate: int = 1, checkpointing: bool = False) -> Config:
    """Recipe cuhk-pedes in bf16 with a batch of so many images, GradNorm's norms in every step, without dropout."""
    config = get_recipe("cuhk-pedes")
    model = replace(
        config.model,
        backend="cpu",
        bdam=replace(config.model.bdam, heads=pair.heads, dropout=0.0),
        fusion=replace(config.model.fusion, dropout=0.0),
    )
    size = (pair.visual.image_size, pair.visual.image_size)
    data = replace(config.data, image_size=size, ids_per_batch=images // config.data.images_per_id)
    optim = replace(config.optim, precision="bf16", accumulate=accumulate, checkpointing=checkpointing)
    return replace(config, model=model, data=data, optim=optim)


@dataclass(frozen=True)
class Arguments:
    """Arguments of the command."""

    # Images of a step, on all ranks together.
    batches: tuple[int, ...] = (64, 256, 1024, 4096)
    # Numbers of cards.
    ranks: tuple[int, ...] = (1, 8, 64)
    # Ceilings of a card and its networks.
    ceilings: Ceilings = field(default_factory=Ceilings)
    # JSON file that keeps the counts, so that other ceilings need no new ones.
    counts: Path | None = None
    # Write the tables into docs/scale.md.
    write: bool = False


class Counts:
    """Counts by pair, batch, ranks and options, from a file where they are in it."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.known: dict[str, Any] = json.loads(path.read_text()) if path is not None and path.exists() else {}

    def step(self, pair: Pair, images: int, ranks: int, accumulate: int = 1, checkpointing: bool = False) -> StepCount:
        """The count of a step of the first rank."""
        key = f"{pair.name}|{images}|{ranks}|{accumulate}|{checkpointing}"
        if key not in self.known:
            config = configuration(pair, images, accumulate, checkpointing)
            count = count_step(config, pair.towers(), VOCABULARY, ranks=ranks)
            self.known[key] = asdict(count) | {"operations": [[*op, n] for op, n in count.operations.items()]}
            if self.path is not None:
                write_bytes(self.path, json.dumps(self.known).encode())
            print(f"counted {key}", flush=True)
        values = dict(self.known[key])
        values["operations"] = Counter({Operation(*op): n for *op, n in values["operations"]})
        values["exchanges"] = [Exchange(*exchange) for exchange in values["exchanges"]]
        return StepCount(**values)


class Cell(NamedTuple):
    """A step at one batch and number of ranks, with the first options that fit on a card; `fits` is False where none do."""

    pair: Pair
    images: int
    ranks: int
    options: str
    fits: bool
    count: StepCount
    predicted: Prediction


def memory(count: StepCount) -> float:
    """Bytes of a card at the peak of a step, with the reserve of the project's estimate."""
    return count.memory * (1 + RESERVE[0])


def fitting(counts: Counts, pair: Pair, images: int, ranks: int, ceilings: Ceilings, least: Counter[bool]) -> Cell:
    """The step as it is, else with checkpointing, else in micro-batches too, where these could halve the memory enough.

    least: images of a rank from which a step is known not to fit without and with checkpointing, 0 for unknown; kept up to date.
    """
    rows, parts = images // ranks, -(-images // (ranks * MICRO_BATCH))
    tried = [("", 1, False), ("checkpointing", 1, True), (f"checkpointing, {parts} micro-batches", parts, True)]
    for words, accumulate, checkpointing in tried[: 3 if parts > 1 else 2]:
        if not checkpointing and 0 < least[False] <= rows:
            continue
        options, count = words, counts.step(pair, images, ranks, accumulate, checkpointing)
        fits = memory(count) <= ceilings.memory
        if not fits:
            least[checkpointing] = min(rows, least[checkpointing] or rows)
        if fits or (checkpointing and memory(count) > MOST_SAVED * ceilings.memory):
            break
    return Cell(pair, images, ranks, options, fits, count, predict(count, ranks, ceilings))


def cells(arguments: Arguments) -> Iterator[Cell]:
    """All steps of the tables, in their order."""
    counts = Counts(arguments.counts)
    for pair in pairs():
        least = Counter[bool]()
        for images in arguments.batches:
            for ranks in arguments.ranks:
                if images >= ranks:
                    yield fitting(counts, pair, images, ranks, arguments.ceilings, least)


def counted_table(found: list[Cell]) -> str:
    """FLOPs, memory and bytes of a rank."""
    head = ["batch", "ranks", "options", "TFLOP a rank", "heads", "memory, GB", "gradients, MB", "rest sent, MB"]
    return _tables(found, head, _counted_row)


def predicted_table(found: list[Cell]) -> str:
    """Predicted times of a step, and what bounds them."""
    head = ["batch", "ranks", "step, ms", "products", "memory traffic", "starting", "network, not hidden", "bound by"]
    return _tables([cell for cell in found if cell.fits], [*head, "images/s"], _predicted_row)


def _tables(found: list[Cell], head: list[str], row: Any) -> str:
    names = dict.fromkeys(cell.pair.name for cell in found)
    return "\n\n".join(
        f"{name}:\n\n" + markdown(head, [row(cell) for cell in found if cell.pair.name == name]) for name in names
    )


def _counted_row(cell: Cell) -> list[str]:
    count = cell.count
    gradients = count.sent.get("gradients", 0)
    return [
        str(cell.images),
        str(cell.ranks),
        cell.options or "none",
        f"{count.flops / 1e12:,.1f}",
        f"{count.flops_of('heads') / count.flops:.0%}",
        f"{memory(count) / 1e9:,.0f}" + ("" if cell.fits else ": too much"),
        f"{gradients / 1e6:,.0f}",
        f"{(sum(count.sent.values()) - gradients) / 1e6:,.1f}",
    ]


def _predicted_row(cell: Cell) -> list[str]:
    made = cell.predicted
    times = [made.seconds, made.products, made.traffic, made.starting, made.network]
    numbers = [f"{1000 * seconds:,.0f}" for seconds in times]
    return [str(cell.images), str(cell.ranks), *numbers, made.limiter, f"{cell.images / made.seconds:,.0f}"]


def linear_table(counts: Counts, batches: tuple[int, ...], most: int, ranks: tuple[int, ...] = (2, 4, 8, 64)) -> str:
    """FLOPs of one process over those of all ranks together: 100 % is linear.

    Counted are one process and `most` ranks; the others follow, since every further rank repeats the losses and nothing else.
    """
    rows = []
    for pair in pairs():
        for images in batches:
            whole, part = (counts.step(pair, images, n).flops for n in (1, most))
            losses = (most * part - whole) / (most - 1)
            shares = [f"{whole / (whole + (n - 1) * losses):.2%}" for n in ranks]
            rows.append([pair.name, str(images), f"{whole / 1e12:,.1f}", f"{losses / 1e12:.3f}", *shares])
    head = ["encoders", "batch", "TFLOP, one process", "repeated", *(f"{n} ranks" for n in ranks)]
    return markdown(head, rows)


def sharding_table(found: list[Cell], ceilings: Ceilings) -> str:
    """State of the optimiser on a card, and the size from which it has to be sharded."""
    rows = []
    for name in dict.fromkeys(cell.pair.name for cell in found):
        cell = min((c for c in found if c.pair.name == name), key=lambda c: c.images / c.ranks)
        trained = cell.count.trained
        state = cell.count.weights + 12 * trained
        # The gradients are in the peak of activations; their flat copies in the exchange are the other 4 bytes.
        row_bytes = max(0, cell.count.peak - 8 * trained)
        least = (ceilings.memory / (1 + RESERVE[0]) - row_bytes) / 20
        numbers = (cell.count.parameters / 1e6, state / 1e9, 4 * trained / 1e9, 20 * trained / ceilings.memory * 1.1)
        texts = [f"{numbers[0]:,.0f} M", f"{numbers[1]:.1f}", f"{numbers[2]:.1f}", f"{numbers[3]:.0%}"]
        rows.append([name, *texts, f"{least / 1e9:.1f} G"])
    head = ["encoders", "parameters", "weights, gradients, moments, GB", "sent copy, GB", "of a card", "sharding from"]
    return markdown(head, rows)


def page(arguments: Arguments) -> str:
    """All tables as Markdown."""
    found, counts = list(cells(arguments)), Counts(arguments.counts)
    ends = tuple(dict.fromkeys((arguments.batches[0], arguments.batches[-1])))
    texts = [
        "### Counted",
        counted_table(found),
        'Work of one process over that of all ranks together, without options; "repeated" is what every rank does again, TFLOP:',
        linear_table(counts, ends, max(arguments.ranks)),
        "### Predicted, not measured",
        arguments.ceilings.describe(),
        predicted_table(found),
        sharding_table(found, arguments.ceilings),
    ]
    return "\n\n".join(texts)


def write(text: str) -> None:
    """Puts the tables in their place in docs/scale.md."""
    before, _, rest = PAGE.read_text().partition(MARKERS[0])
    after = rest.partition(MARKERS[1])[2]
    write_bytes(PAGE, f"{before}{MARKERS[0]}\n\n{text}\n\n{MARKERS[1]}{after}".encode())


def main() -> None:
    """Entry point."""
    arguments = tyro.cli(Arguments, description=__doc__)
    text = page(arguments)
    print(text)
    if arguments.write:
        write(text)


if __name__ == "__main__":
    main()
