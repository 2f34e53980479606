"""`python -m training.prepare`: make or check the data that training reads."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table
from rich.text import Text

from training.config import DataConfig
from training.data.datasets import read_records
from training.data.images.pack import pack_images
from training.data.readers import LAYOUTS
from training.data.validation.decode_cache import default_workers
from training.data.validation.validate import Validation, ValidationOptions, validate_dataset
from training.synthetic.dataset import SPLITS, generate
from training.synthetic.own_data_example import write_example
from training.utils import cli

COLOURS = {"ok": "green", "note": "", "warning": "yellow", "error": "red"}
DataSet = Literal["cuhk-pedes", "icfg-pedes", "rstpreid", "own"]
app = tyro.extras.SubcommandApp()


@app.command
def synthetic(
    out: Annotated[Path, tyro.conf.Positional],
    ids: int,
    seed: int = 0,
    images_per_id: int = 6,
    val_ids: int | None = None,
    test_ids: int | None = None,
    height: int = 192,
    width: int = 96,
    workers: int = 1,
) -> None:
    """Render pedestrians in the layout of CUHK-PEDES.

    Args:
        out: New or empty folder to write to.
        ids: Number of identities, all splits together.
        seed: Equal seeds give equal data sets.
        images_per_id: Mean number of images per identity.
        val_ids: Identities for validation; a tenth by default.
        test_ids: Identities for testing; 15 % by default.
        height: Height of the images in pixels, at least 160.
        width: Width of the images in pixels, at least 64.
        workers: Processes; the data set does not depend on them.
    """
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("identities", total=ids)
        summary = generate(
            out,
            ids,
            seed,
            images_per_id,
            val_ids,
            test_ids,
            height,
            width,
            workers,
            progress=lambda done, _: bar.update(task, completed=done),
        )
    table = Table("split", "identities", "images", "captions", title=str(out))
    for split in SPLITS:
        table.add_row(split, *(str(summary["counts"][split][key]) for key in ("ids", "images", "captions")))
    console.print(table)


@app.command
def pack(
    name: Annotated[DataSet, tyro.conf.Positional],
    root: Annotated[Path, tyro.conf.Positional],
    cache: Annotated[Path, tyro.conf.Positional],
    image_size: tuple[int, int] = (224, 224),
    workers: int = 0,
    check: bool = False,
) -> None:
    """Decode and resize all images of a data set into a packed cache, which training reads with --data.cache.

    Args:
        name: Data set.
        root: Folder that holds its annotation file and imgs/.
        cache: Folder of the cache; new, or to be brought up to date.
        image_size: Height and width as in --data.image-size.
        workers: Processes that decode; 0 for this one.
        check: Read every file and every packed row again instead of believing size and time of change.
    """
    config = DataConfig(dataset=name, root=str(root), image_size=image_size, cache=str(cache), workers=workers)
    paths = [record.path for records in read_records(config).values() for record in records]
    counts = pack_images(paths, cache, config.image_size, config.workers, check=check)
    Console(stderr=True).print(
        f"{cache}: {len(paths)} images of {image_size[0]}x{image_size[1]}: {counts.current} current, {counts.renamed} "
        f"known by content, {counts.decoded} decoded",
        highlight=False,
    )


@app.command
def validate(
    name: Annotated[DataSet, tyro.conf.Positional],
    root: Annotated[Path, tyro.conf.Positional],
    allow_counts: bool = False,
    hash: bool = True,
    against: tuple[str, ...] = (),
    cache: Path | None = None,
    workers: int | None = None,
    html: Path | None = None,
) -> None:
    """Check a data set; exit status 0 if the official protocol can be run, 1 if not, 3 if --no-hash left that open.

    Args:
        name: Data set.
        root: Folder that holds its annotation file and imgs/.
        allow_counts: Accept a set of another size than the official one, and check all else.
        hash: Open every image: damage, formats, duplicates. Without it the check takes seconds.
        against: Other data sets to look for the same images in, each NAME=ROOT.
        cache: File that keeps what was found in the images; ROOT/.bdam-hashes.jsonl by default.
        workers: Threads that read images; as many as there are cores by default.
        html: Page to write; runs/validate-NAME.html by default.
    """
    # Matplotlib comes with it: two seconds that the other commands, and each process of `synthetic`, need not wait.
    from training.report.validation_page import verdict, write_validation

    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    others = tuple(map(_data_set, against))
    options = ValidationOptions(allow_counts, hash, others, cache, workers or default_workers())
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks: dict[str, TaskID] = {}

        def advance(title: str, done: int, total: int) -> None:
            if title not in tasks:
                tasks[title] = bar.add_task(f"images of {title}", total=total)
            bar.update(tasks[title], completed=done)

        result = validate_dataset(name, root, options, advance)
    page = write_validation(result, html or Path("runs") / f"validate-{name}.html")
    _print_validation(result, verdict(result))
    print(page)
    if result.verdict != "yes":
        raise SystemExit(1 if result.verdict == "no" else 3)


def _data_set(text: str) -> tuple[str, Path]:
    name, _, root = text.partition("=")
    if name not in LAYOUTS or not root:
        raise ValueError(f"--against must be NAME=ROOT with a NAME of {', '.join(LAYOUTS)}, got {text!r}")
    return name, Path(root)


def _print_validation(result: Validation, verdict: str) -> None:
    console = Console()
    table = Table("split", "identities", "images", "captions", title=f"{result.title}: {result.file}")
    for split, counts in result.counts.items():
        table.add_row(split, *(f"{value:,}" for value in counts))
    console.print(table)
    table = Table("", "check", "finding")
    for finding in result.findings:
        colour = COLOURS[finding.level]
        table.add_row(Text(finding.level, colour), Text(finding.check), Text(finding.text))
    console.print(table)
    console.print(Text(verdict, COLOURS[{"yes": "ok", "no": "error", "open": "note"}[result.verdict]]))


@app.command
def template(out: Annotated[Path, tyro.conf.Positional], form: Literal["csv", "jsonl"] = "csv") -> None:
    """Write a small data set in the layout of own data, to be looked at and overwritten.

    Args:
        out: New or empty folder to write to.
        form: Annotations as a table (records.csv) or as JSON lines (records.jsonl).
    """
    write_example(out, form)
    print(f"{out / 'README.txt'} says what is what")


def main(argv: Sequence[str]) -> None:
    """Run a subcommand with these arguments."""
    app.cli(prog="python -m training.prepare", args=argv)


if __name__ == "__main__":
    sys.exit(cli.run(main))
