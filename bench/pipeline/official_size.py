"""The first commands of a researcher with CUHK-PEDES and folders of pretrained encoders, on a rendered set of its official
numbers: `python -m bench.pipeline.official_size FOLDER`.

Renders FOLDER/CUHK-PEDES (40,206 images of 13,003 people, 160 x 64 pixels, captions and nothing else), lets transformers save a
small ViT and a small BERT beside it, runs each command as a user would and prints its time and peak memory. What exists is
kept, so that an interrupted call continues.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro
from rich.progress import Progress

from training.utils.io import read_json, write_json

IDS, HELD_OUT = 13_003, 1_000
# Images and captions by split.
OFFICIAL = {"train": (34_054, 68_126), "val": (3_078, 6_158), "test": (3_074, 6_156)}
# A small pretrained encoder: the sizes that ViT and BERT have in common.
SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}
QUERY = "a woman in a red coat with a backpack"


@dataclass(frozen=True)
class Arguments:
    """Arguments of the command."""

    # Folder of the set, the encoders, the cache and the run; made if it does not exist.
    folder: Annotated[Path, tyro.conf.Positional]
    # Processes that render.
    workers: int = 2


class Cost(NamedTuple):
    """Cost of a command: seconds by the clock, CPU seconds and peak memory of its processes."""

    command: str
    clock: float
    cpu: float
    peak_mb: float


def render(root: Path, workers: int) -> None:
    """Writes a set of the official numbers to `root`, which appears complete or not at all."""
    from training.synthetic.dataset import generate

    parent = root.with_name("rendered")
    shutil.rmtree(parent, ignore_errors=True)
    with Progress() as bar:
        task = bar.add_task("rendering", total=IDS)
        generate(
            parent,
            IDS,
            images_per_id=4,
            val_ids=HELD_OUT,
            test_ids=HELD_OUT,
            height=160,
            width=64,
            workers=workers,
            progress=lambda done, total: bar.update(task, completed=done),
        )
    write_json(parent / "reid_raw.json", official(read_json(parent / "reid_raw.json")))
    for name in ("descriptions.jsonl", "factors.jsonl", "identity_queries.jsonl", "synthetic.json"):
        (parent / name).unlink()
    os.replace(parent, root)


def official(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As many of the records of each split as CUHK-PEDES has, of every person at least one; the first of a split get a third
    caption, another image's of the person, until the number of captions is right. Raises ValueError for too few records."""
    result = []
    for split, (images, captions) in OFFICIAL.items():
        people: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for record in records:
            if record["split"] == split:
                people[record["id"]].append(record)
        # The first image of every person, then their second ones, and so on.
        ordered = sorted((number, i) for i, own in people.items() for number in range(len(own)))
        if len(ordered) < images:
            raise ValueError(f"{split}: {len(ordered)} images were rendered, expected at least {images}")
        kept = [(people[i][number], people[i][number - 1]) for number, i in ordered[:images]]
        missing = captions - sum(len(record["captions"]) for record, _ in kept)
        for place, (record, other) in enumerate(kept):
            extra = other["captions"][:1] if place < missing else []
            fields = {name: record[name] for name in ("split", "file_path", "id", "processed_tokens")}
            result.append(fields | {"captions": [*record["captions"], *extra]})
    return result


def save_encoders(folder: Path, root: Path) -> None:
    """Writes a ViT and a BERT with random weights and a tokenizer of the training captions, as transformers saves them."""
    import torch
    import transformers

    from training.config import EncoderConfig
    from training.data.tokenizer import build_tokenizer

    texts = [text for record in read_json(root / "reid_raw.json") for text in record["captions"]]
    tokenizer = build_tokenizer(EncoderConfig(), texts)
    torch.manual_seed(0)
    vit = transformers.ViTConfig(**SMALL, image_size=(64, 32), patch_size=8)
    transformers.ViTModel(vit).save_pretrained(folder / "vit")
    transformers.ViTImageProcessor(size={"height": 64, "width": 32}).save_pretrained(folder / "vit")
    transformers.BertModel(transformers.BertConfig(**SMALL, vocab_size=len(tokenizer))).save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")


def build(folder: Path, workers: int) -> None:
    """Makes the set and the encoders, as far as they do not exist."""
    if not (root := folder / "CUHK-PEDES").exists():
        render(root, workers)
    if not (folder / "bert" / "config.json").exists():
        save_encoders(folder, root)


def commands(folder: Path) -> list[list[str]]:
    """Words of `python -m training` of each command, in order."""
    root, cache, run = str(folder / "CUHK-PEDES"), str(folder / "cache"), str(folder / "run")
    encoders = ["--model.visual.pretrained", str(folder / "vit"), "--model.text.pretrained", str(folder / "bert")]
    size = ["64", "32"]
    # The heads of the recipe are made for encoders of width 768 on GPUs.
    small = (
        "--model.bdam.heads 4 --model.bdam.self-layers 1 --model.bdam.cross-layers 1 --model.fusion.width 48".split()
    )
    small += "--model.fusion.layers 1 --model.fusion.state 8".split()
    return [
        ["prepare", "validate", "cuhk-pedes", root, "--html", str(folder / "validate.html")],
        ["prepare", "pack", "cuhk-pedes", root, cache, "--image-size", *size, "--workers", "2"],
        ["train", "cuhk-pedes-captions", "--data.root", root, "--data.cache", cache, *encoders, *small]
        + ["--data.image-size", *size, "--optim.epochs", "1", "--optim.warmup-epochs", "0", "--out", run],
        ["evaluate", run],
        ["search", run, QUERY],
    ]


def measure(words: list[str], log: Path) -> Cost:
    """Runs a command and returns its cost. Raises RuntimeError with the end of its output where it fails."""
    started, before = time.perf_counter(), os.times()
    with log.open("w") as out:
        process = subprocess.Popen([sys.executable, "-m", "training", *words], stdout=out, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
    clock, after = time.perf_counter() - started, os.times()
    if code := os.waitstatus_to_exitcode(status):
        raise RuntimeError(f"{' '.join(words)} failed with status {code}: {log.read_text()[-2000:]}")
    cpu = sum(after[2:4]) - sum(before[2:4])
    # ru_maxrss is in KiB on Linux, of the command's own process or the largest of its children.
    return Cost(" ".join(words[:2]) if words[0] == "prepare" else words[0], clock, cpu, used.ru_maxrss / 1024)


def main() -> None:
    """Entry point; raises what the parts raise."""
    arguments = tyro.cli(Arguments, description=__doc__)
    folder = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    # In a process of its own: the system counts the memory of a process from before it runs a command as the command's.
    builder = multiprocessing.get_context("spawn").Process(target=build, args=(folder, arguments.workers))
    builder.start()
    builder.join()
    if builder.exitcode:
        raise SystemExit(builder.exitcode)
    root = folder / "CUHK-PEDES"
    for name in ("cache", "run"):
        shutil.rmtree(folder / name, ignore_errors=True)
    (root / ".bdam-hashes.jsonl").unlink(missing_ok=True)
    print("| command | seconds | CPU seconds | peak memory, MB |\n|---|---|---|---|", flush=True)
    for number, words in enumerate(commands(folder)):
        cost = measure(words, folder / f"{number}.log")
        print(f"| `{cost.command}` | {cost.clock:.1f} | {cost.cpu:.1f} | {cost.peak_mb:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
