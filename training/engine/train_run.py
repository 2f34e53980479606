"""A run from its configuration to its folder: data, tokenizer, model, training, and the files beside the checkpoints."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from training.config import Config, complete, to_dict, without_places
from training.data.datasets import Dataset, read_dataset
from training.data.image_digests import ImageDigests, read_digests, require_unchanged, write_digests
from training.data.images.readable import require_readable
from training.data.loader import TrainLoader
from training.data.suitability import require_other_texts, training_warnings
from training.data.tokenizer import TOKENIZER, build_tokenizer, save_tokenizer, tokenizer_digests
from training.engine import checkpoint
from training.engine.checkpoint import RunProgress
from training.engine.device import CPU, describe_device, machine_facts, rank_device, select_device
from training.engine.distributed.agreement import versions
from training.engine.distributed.group import joined
from training.engine.distributed.ranks import ONE_RANK, Ranks
from training.engine.initial_weights import load_initial_weights
from training.engine.memory import Resources, peak_memory_mb
from training.engine.memory_fit import fitting_config
from training.engine.train_step import learning_rate_factor, micro_batch_warnings
from training.engine.trainer import Trainer
from training.models.pretrained import with_image_size
from training.utils.io import file_digest, read_json, read_record, write_json, write_record
from training.utils.machine import machine_name
from training.utils.preemption import preemption
from training.utils.terminal import make_console, make_progress

# Called with (model, records=, tokenizer=, config=): the metrics that select a checkpoint, such as dual.validate.
ValidateSplit = Callable[..., dict[str, float]]


@dataclass(frozen=True)
class RunOptions:
    """Start and reports of a run; no part of its configuration, so that none of it changes a number of a whole run."""

    # Continue a run that has begun; `extend`: to more epochs than it was begun with.
    resume: bool = False
    extend: bool = False
    # Run folder whose weights a new run starts from.
    init: Path | None = None
    # Estimate the memory before the first step, and refuse what does not fit; `fit`: take more micro-batches and recomputed
    # activations instead.
    check_memory: bool = False
    fit: bool = False
    # Seconds between two lines about the progress where the output is no terminal; 0: none.
    log_seconds: float = 30.0
    # As in `select_device`: a run goes on on any device.
    device: str = "auto"


def train_run(config: Config, run_dir: Path, validate: ValidateSplit, options: RunOptions | None = None) -> RunProgress:
    """Trains `config` into `run_dir`: config.json, tokenizer/, images.json, what `Trainer` writes, and resources.json (peak
    memory, machine).

    Raises RuntimeError for a run folder that another process uses, FileExistsError for one that is not empty, ValueError for
    one to resume of another configuration and for a device that does not exist, all before the data is read; then what the
    stages raise. Nothing is written before
    every check has passed: data read, model built, last.pt and the images compared.
    """
    options = options or RunOptions()
    if run_dir.exists() and not run_dir.is_dir():
        raise FileExistsError(f"--out {run_dir} is a file, expected a new or empty folder")
    started = time.perf_counter()
    with preemption() as signals, joined(partial(_device, options), signals) as (ranks, device), ranks.lock(run_dir):
        console = make_console(quiet=not ranks.first)
        config = with_image_size(config)
        ranks.require_equal(lambda: _command(config, options))
        _require_possible(config, options, ranks)
        reporting = {"console": console, "log_seconds": options.log_seconds, "preemption": signals, "ranks": ranks}
        trainer, dataset = _prepare(config, run_dir, validate, options, device, reporting)
        warnings = training_warnings(config, dataset, trainer.loader)
        for warning in warnings + micro_batch_warnings(trainer.model, trainer.config.optim):
            console.print(warning)
        if config.data.captions_only:
            console.print(captions_only_line(config))
        parameters = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad) / 1e6
        console.print(
            f"{config.recipe}, seed {config.seed}: {describe(dataset)}; {parameters:.2f} M parameters, "
            f"{len(trainer.loader)} steps an epoch, {torch.get_num_threads()} threads; "
            f"{time.perf_counter() - started:.1f} s to start"
        )
        console.print(describe_device(options.device, device, trainer.stepper.precision) + ranks.describe())
        progress = trainer.fit()
        peak = ranks.largest({"memory": peak_memory_mb(device)})["memory"]
        if ranks.first:
            _write_resources(run_dir / "resources.json", device, peak)
    console.print(
        f"{run_dir}: {progress.epoch} epochs, {time.perf_counter() - started:.1f} s; best validation "
        f"{config.eval.select_by} {progress.best:.2f} in epoch {progress.best_epoch}, beta {progress.beta:g}"
    )
    return progress


def _prepare(
    config: Config,
    run_dir: Path,
    validate: ValidateSplit,
    options: RunOptions,
    device: torch.device,
    reporting: dict[str, Any],
) -> tuple[Trainer, Dataset]:
    """(trainer at its first step, data) after all checks; then writes the files that do not change during training.

    reporting: `console`, `log_seconds`, `preemption` and `ranks` of the Trainer.
    """
    console, ranks = reporting["console"], reporting["ranks"]
    if options.resume and options.fit:
        config = _fitted_before(config, run_dir)
    continued = ranks.share(lambda: _check_folder(config, run_dir, options))
    begun = ranks.share(lambda: (run_dir / "last.pt").exists())
    dataset = read_dataset(config.data)
    require_other_texts(config, dataset)
    with ranks.in_turn():
        known, images = read_digests(run_dir), _check_images(dataset, config.data.max_pixels)
    trainer, tokenizer = build_trainer(config, dataset, run_dir, validate, images.digest, device, **reporting)
    ranks.require_rows(trainer.loader.sampler, config.optim.accumulate)
    ranks.require_equal(lambda: _inputs(dataset, images, run_dir, options))
    if (options.check_memory or options.fit) and ranks.size == 1:
        fitting = fitting_config(trainer.model, config, trainer.loader, console.print, fit=options.fit)
        if fitting != config:
            config = fitting
            trainer, tokenizer = build_trainer(config, dataset, run_dir, validate, images.digest, device, **reporting)
    if options.init is not None and not begun:
        console.print(load_initial_weights(trainer.model, tokenizer, options.init))
    if continued:
        require = partial(require_unchanged, dataset.root, known, images)
        epochs = trainer.resume(extend=options.extend, require_images=require)
        if epochs < config.optim.epochs:
            console.print(_extension(trainer, epochs))
    elif options.resume:
        console.print(f"{run_dir} holds nothing to continue: the run starts")
    ranks.wait_for_all()
    if not ranks.first:
        return trainer, dataset
    write_json(run_dir / "config.json", to_dict(config), seal=True)
    if not begun or tokenizer_digests(run_dir / TOKENIZER) != trainer.tokenizer_files:
        save_tokenizer(tokenizer, run_dir / TOKENIZER)
        trainer.tokenizer_files = tokenizer_digests(run_dir / TOKENIZER)
    write_digests(run_dir, images)
    return trainer, dataset


def build_trainer(
    config: Config,
    dataset: Dataset,
    run_dir: Path,
    validate: ValidateSplit,
    images: str = "",
    device: torch.device = CPU,
    **reporting: Any,
) -> tuple[Trainer, Any]:
    """(trainer of a new model on a device, tokenizer) for a configuration and its data, seeded by the configuration: its weights
    are drawn on the CPU, the same for every device. images: digest of the images; reporting: `console`, `log_seconds`,
    `preemption` and `ranks` of the Trainer."""
    torch.manual_seed(config.seed)
    config = with_image_size(config)
    tokenizer = build_tokenizer(config.model.text, dataset.train_texts())
    model = checkpoint.build_model(config, tokenizer).to(device)
    own = reporting.get("ranks", ONE_RANK).own_rows(config.optim.accumulate)
    loader = TrainLoader(dataset, tokenizer, config.data, config.seed, own)
    validation = partial(validate, records=dataset.splits["val"], tokenizer=tokenizer, config=config)
    inputs = checkpoint.Inputs(dataset.fingerprint, images)
    return Trainer(config, model, loader, run_dir, validation, inputs=inputs, **reporting), tokenizer


def _device(options: RunOptions, local_rank: int | None) -> torch.device:
    """The device of a process; of several on a machine each has its own card."""
    return select_device(options.device if local_rank is None else rank_device(options.device, local_rank))


def _require_possible(config: Config, options: RunOptions, ranks: Ranks) -> None:
    """Raises ValueError for what several ranks cannot do."""
    if options.fit and ranks.size > 1:
        raise ValueError("--fit cannot be used by several ranks: leave it out, or train in one process")


def _command(config: Config, options: RunOptions) -> dict[str, Any]:
    """Facts that the ranks of a run need to have in common before they read anything."""
    begin = {"resume": options.resume, "extend": options.extend}
    return {"configuration": to_dict(config), "options": begin, "versions": versions()}


def _inputs(dataset: Dataset, images: ImageDigests, run_dir: Path, options: RunOptions) -> dict[str, Any]:
    """Digests of what the ranks of a run have read."""
    files = {"last.pt": run_dir / "last.pt"}
    if options.init is not None:
        files["best.pt of --init"] = options.init / "best.pt"
    return {
        "data": {"annotations and texts": dataset.fingerprint, "images": images.digest},
        "files": {name: file_digest(path)[:12] if path.exists() else "missing" for name, path in files.items()},
    }


def captions_only_line(config: Config) -> str:
    """The losses that are off where a run has no generated texts."""
    loss = config.loss
    names = {
        "clothing_matching": loss.clothing_matching,
        "adversarial": loss.adversarial,
        "decoupling": loss.decoupling,
    }
    off = ", ".join(name for name, on in names.items() if not on)
    return f"captions only, without generated texts: InfoNCE reads captions; off: {off}"


def describe(dataset: Dataset) -> str:
    """One line about a data set."""
    splits = dataset.splits.items()
    text = ", ".join(f"{name} {len({r.id for r in records})} ids / {len(records)} images" for name, records in splits)
    if not (skipped := dataset.skipped_images):
        return text
    images, whose = ("image", "its") if skipped == 1 else ("images", "their")
    return f"{text}; {skipped} training {images} skipped: {whose} generated texts were rejected"


def _fitted_before(config: Config, run_dir: Path) -> Config:
    """The configuration with the micro-batches that --fit gave the run when it began."""
    if not (run_dir / "config.json").exists():
        return config
    stored = complete(read_json(run_dir / "config.json"))["optim"]
    kept = {name: stored[name] for name in ("accumulate", "checkpointing")}
    return replace(config, optim=replace(config.optim, **kept))


def _check_images(dataset: Dataset, max_pixels: int) -> ImageDigests:
    """Digests of the images of the data set, all of which can be read; with a bar on a terminal while files are."""
    with make_progress(make_console(stderr=True)) as bar:
        task = bar.add_task("reading images", total=None)
        return require_readable(
            dataset.root,
            dataset.splits,
            max_pixels,
            lambda done, total: bar.update(task, completed=done, total=total),
        )


def _extension(trainer: Trainer, before: int) -> str:
    """Sentence about what more epochs do to the schedule."""
    optim, steps, done = trainer.config.optim, len(trainer.loader), trainer.progress.step
    warmup = optim.warmup_epochs * steps
    old = learning_rate_factor(min(done, before * steps), warmup, before * steps) * optim.lr
    new = learning_rate_factor(done, warmup, optim.epochs * steps) * optim.lr
    return (
        f"extended from {before} to {optim.epochs} epochs: the learning rate, {old:.2e} by the schedule so far, goes on at "
        f"{new:.2e} and falls to 0 in epoch {optim.epochs}; a run of {optim.epochs} epochs from the start would give other "
        "weights"
    )


def _write_resources(path: Path, device: torch.device, peak_mb: float) -> None:
    before = read_record(path, Resources) if path.exists() else Resources(memory_mb=0.0)
    here = machine_name(machine_facts(device))
    machines = list(dict.fromkeys([*(before.machines or []), here]))
    write_record(path, Resources(memory_mb=max(before.memory_mb, peak_mb), machines=machines))


def _check_folder(config: Config, run_dir: Path, options: RunOptions) -> bool:
    """True if `run_dir` holds a run to continue. Raises as `train_run`."""
    if options.extend and not options.resume:
        raise ValueError("--extend continues a run: give it with --resume")
    names = {path.name for path in run_dir.iterdir()} - {path.name for path in checkpoint.leftovers(run_dir)}
    if not names:
        return False
    if not options.resume:
        shown = ", ".join(sorted(names)[:5]) + (", ..." if len(names) > 5 else "")
        raise FileExistsError(
            f"run folder {run_dir} is already used ({shown}); continue it with --resume or choose another --out"
        )
    stored, ours = complete(read_json(run_dir / "config.json")), json.loads(json.dumps(to_dict(config)))
    epochs = stored["optim"]["epochs"], ours["optim"]["epochs"]
    if options.extend and epochs[0] < epochs[1]:
        stored = {**stored, "optim": {**stored["optim"], "epochs": epochs[1]}}
    # The fingerprint says whether data elsewhere are the same.
    if without_places(stored) != without_places(ours):
        different = ", ".join(_differences(stored, ours)) or "fields of another version"
        hint = "; more epochs need --extend" if epochs[0] < epochs[1] else ""
        raise ValueError(f"cannot resume {run_dir}: its config.json differs from the command in {different}{hint}")
    return True


def _differences(stored: object, ours: object, name: str = "") -> list[str]:
    if not (isinstance(stored, dict) and isinstance(ours, dict)):
        return [] if stored == ours else [f"{name} ({stored!r}, now {ours!r})"]
    keys = [key for key in ours if key in stored]
    return [text for key in keys for text in _differences(stored[key], ours[key], f"{name}.{key}".lstrip("."))]
