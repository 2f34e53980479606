"""A run from its configuration to its folder: data, tokenizer, model, training, and the files beside the checkpoints."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from training.config import Config, to_dict
from training.data.datasets import Dataset, read_dataset
from training.data.loader import TrainLoader
from training.data.tokenizer import build_tokenizer, save_tokenizer
from training.engine import checkpoint
from training.engine.device import CPU, describe_device, machine_facts, select_device
from training.engine.memory import Resources, peak_memory_mb
from training.engine.trainer import RunProgress, Trainer
from training.utils.io import read_json, read_record, write_json, write_record
from training.utils.machine import machine_name

# Called with (model, records=, tokenizer=, config=): the metrics that select a checkpoint, such as dual.validate.
ValidateSplit = Callable[..., dict[str, float]]


def train_run(
    config: Config, run_dir: Path, validate: ValidateSplit, *, resume: bool = False, device: str = "auto"
) -> RunProgress:
    """Trains `config` into `run_dir`: config.json, tokenizer/, what `Trainer` writes, and resources.json (peak memory,
    machine). device: as in `select_device`; a run continues on another device too.

    Raises FileExistsError for a run folder that is in use, ValueError for one to resume of another configuration,
    FileNotFoundError for one to resume that does not exist, ValueError for a device that does not, all before the data is read;
    then what the stages raise.
    Nothing is written before the data has been read and the model built.
    """
    started, console = time.perf_counter(), Console(soft_wrap=True)
    place = select_device(device)
    _check_folder(config, run_dir, resume)
    dataset = read_dataset(config.data)
    trainer, tokenizer = build_trainer(config, dataset, run_dir, validate, console, place)
    run_dir.mkdir(parents=True, exist_ok=True)
    write_json(run_dir / "config.json", to_dict(config))
    save_tokenizer(tokenizer, run_dir / "tokenizer")
    if resume:
        trainer.resume()
    parameters = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad) / 1e6
    console.print(
        f"{config.recipe}, seed {config.seed}: {describe(dataset)}; {parameters:.2f} M parameters, {len(trainer.loader)} "
        f"steps an epoch, {torch.get_num_threads()} threads; {time.perf_counter() - started:.1f} s to start",
        highlight=False,
    )
    console.print(describe_device(device, place, trainer.stepper.precision), highlight=False)
    progress = trainer.fit()
    _write_resources(run_dir / "resources.json", place)
    console.print(
        f"{run_dir}: {progress.epoch} epochs, {time.perf_counter() - started:.1f} s; best validation "
        f"{config.eval.select_by} {progress.best:.2f} in epoch {progress.best_epoch}, beta {progress.beta:g}",
        highlight=False,
    )
    return progress


def build_trainer(
    config: Config,
    dataset: Dataset,
    run_dir: Path,
    validate: ValidateSplit,
    console: Console | None = None,
    device: torch.device = CPU,
) -> tuple[Trainer, Any]:
    """(trainer of a new model on a device, tokenizer) for a configuration and its data, seeded by the configuration: the
    weights are drawn on the CPU, so that they are the same on every device."""
    torch.manual_seed(config.seed)
    tokenizer = build_tokenizer(config.model.text, dataset.train_texts())
    model = checkpoint.build_model(config, tokenizer).to(device)
    loader = TrainLoader(dataset, tokenizer, config.data, config.seed)
    validation = partial(validate, records=dataset.splits["val"], tokenizer=tokenizer, config=config)
    fingerprint = dataset.fingerprint
    return Trainer(config, model, loader, run_dir, validation, fingerprint=fingerprint, console=console), tokenizer


def describe(dataset: Dataset) -> str:
    """One line about a data set."""
    splits = dataset.splits.items()
    text = ", ".join(f"{name} {len({r.id for r in records})} ids / {len(records)} images" for name, records in splits)
    if not (skipped := dataset.skipped_images):
        return text
    images, whose = ("image", "its") if skipped == 1 else ("images", "their")
    return f"{text}; {skipped} training {images} skipped: {whose} generated texts were rejected"


def _write_resources(path: Path, device: torch.device) -> None:
    before = read_record(path, Resources) if path.exists() else Resources(memory_mb=0.0)
    here = machine_name(machine_facts(device))
    machines = list(dict.fromkeys([*(before.machines or []), here]))
    write_record(path, Resources(memory_mb=max(before.memory_mb, peak_memory_mb(device)), machines=machines))


def _check_folder(config: Config, run_dir: Path, resume: bool) -> None:
    if run_dir.exists() and not run_dir.is_dir():
        raise FileExistsError(f"--out {run_dir} is a file, expected a new or empty folder")
    if not resume:
        there = set(run_dir.iterdir()) - set(checkpoint.leftovers(run_dir)) if run_dir.exists() else ()
        used = sorted(path.name for path in there)
        if used:
            shown = ", ".join(used[:5]) + (", ..." if len(used) > 5 else "")
            raise FileExistsError(
                f"run folder {run_dir} is already used ({shown}); continue it with --resume or choose another --out"
            )
        return
    stored, ours = read_json(run_dir / "config.json"), json.loads(json.dumps(to_dict(config)))
    if stored != ours:
        different = ", ".join(_differences(stored, ours)) or "fields of another version"
        raise ValueError(f"cannot resume {run_dir}: its config.json differs from the command in {different}")


def _differences(stored: object, ours: object, name: str = "") -> list[str]:
    if not (isinstance(stored, dict) and isinstance(ours, dict)):
        return [] if stored == ours else [f"{name} ({stored!r}, now {ours!r})"]
    keys = [key for key in ours if key in stored]
    return [text for key in keys for text in _differences(stored[key], ours[key], f"{name}.{key}".lstrip("."))]
