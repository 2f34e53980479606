"""Makes and checks the data that training reads."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from training.config import MAX_PIXELS
from training.utils import cli

if TYPE_CHECKING:
    from training.data.validation.validate import Validation

COLOURS = {"ok": "green", "note": "", "warning": "yellow", "error": "red"}
DataSet = Annotated[Literal["cuhk-pedes", "icfg-pedes", "rstpreid", "own"], tyro.conf.Positional]
Folder = Annotated[Path, tyro.conf.Positional]


@dataclass(frozen=True)
class Synthetic:
    """Render pedestrians in the layout of CUHK-PEDES."""

    # New or empty folder to write to.
    out: Folder
    # Number of identities, all splits together.
    ids: int
    # Equal seeds give equal data sets.
    seed: int = 0
    # Mean number of images per identity.
    images_per_id: int = 6
    # Identities for validation; a tenth by default.
    val_ids: int | None = None
    # Identities for testing; 15 % by default.
    test_ids: int | None = None
    # Height of the images in pixels, at least 160.
    height: int = 192
    # Width of the images in pixels, at least 64.
    width: int = 96
    # Processes; the data set does not depend on them.
    workers: int = 1


@dataclass(frozen=True)
class IdentityQueries:
    """Add the queries of the protocol `identity` to a set that was rendered before there were any."""

    # Folder of the rendered set.
    root: Folder


@dataclass(frozen=True)
class Pack:
    """Decode and resize all images of a data set into a packed cache, which training reads with --data.cache."""

    # Data set.
    name: DataSet
    # Folder that holds its annotation file and imgs/.
    root: Folder
    # Folder of the cache; new, or to be brought up to date.
    cache: Folder
    # Height and width as in --data.image-size.
    image_size: tuple[int, int] = (224, 224)
    # Processes that decode; 0 for this one.
    workers: int = 0
    # Pixels of the largest image that is decoded.
    max_pixels: int = MAX_PIXELS
    # Read images through symbolic links that lead out of imgs/.
    follow_links: bool = False
    # Read every file and every packed row again instead of trusting size and modification time.
    check: bool = False


@dataclass(frozen=True)
class Validate:
    """Check a data set; exit status 0 if the official protocol can be run, 1 if not, 3 if --no-hash left that open."""

    # Data set.
    name: DataSet
    # Folder that holds its annotation file and imgs/.
    root: Folder
    # Accept a set of another size than the official one, and check all else.
    allow_counts: bool = False
    # Open every image: damage, formats, duplicates. Without it the check takes seconds.
    hash: bool = True
    # Other data sets to look for the same images in, each NAME=ROOT.
    against: tuple[str, ...] = ()
    # File that keeps the findings of the images; ROOT/.bdam-hashes.jsonl by default.
    cache: Path | None = None
    # Threads that read images; as many as there are cores by default.
    workers: int | None = None
    # Page to write; runs/validate-NAME.html by default.
    html: Path | None = None


@dataclass(frozen=True)
class ReidRaw:
    """Write reid_raw.json of CUHK-PEDES from caption_all.json and a file that says the split of each id."""

    # Folder that holds caption_all.json and imgs/.
    root: Folder
    # JSON {"train": [ids], "val": [ids], "test": [ids]}, a JSON list of objects with id and split, or lines ID,SPLIT.
    splits: Folder


@dataclass(frozen=True)
class Template:
    """Write a small data set in the layout of own data, as an example to replace."""

    # New or empty folder to write to.
    out: Folder
    # Annotations as a table (records.csv) or as JSON lines (records.jsonl).
    form: Literal["csv", "jsonl"] = "csv"


def synthetic(arguments: Synthetic) -> None:
    """Renders a data set and prints its counts."""
    from rich.table import Table

    from training.synthetic.dataset import SPLITS, generate
    from training.utils.terminal import make_console, make_progress

    console = make_console(stderr=True)
    with make_progress(console) as bar:
        task = bar.add_task("identities", total=arguments.ids)
        summary = generate(**vars(arguments), progress=lambda done, _: bar.update(task, completed=done))
    table = Table("split", "identities", "images", "captions", title=str(arguments.out))
    for split in SPLITS:
        table.add_row(split, *(str(summary["counts"][split][key]) for key in ("ids", "images", "captions")))
    console.print(table)


def identity_queries(arguments: IdentityQueries) -> None:
    """Writes the queries and prints where they are."""
    from training.synthetic.query_texts import write_identity_queries

    print(write_identity_queries(arguments.root))


def pack(arguments: Pack) -> None:
    """Fills a packed cache and prints how many images were decoded."""
    from training.config import DataConfig
    from training.data.datasets import read_records
    from training.data.images.pack import pack_images
    from training.utils.terminal import make_console

    root, size, cache = str(arguments.root), arguments.image_size, arguments.cache
    config = DataConfig(
        arguments.name,
        root,
        image_size=size,
        cache=str(cache),
        workers=arguments.workers,
        follow_links=arguments.follow_links,
    )
    paths = [record.path for records in read_records(config).values() for record in records]
    counts = pack_images(
        paths, cache, config.image_size, config.workers, check=arguments.check, max_pixels=arguments.max_pixels
    )
    make_console(stderr=True).print(
        f"{cache}: {len(paths)} images of {size[0]}x{size[1]}: {counts.current} current, {counts.renamed} "
        f"known by content, {counts.decoded} decoded",
        highlight=False,
    )


def validate(arguments: Validate) -> None:
    """Checks a data set, prints and writes the findings. Raises SystemExit with the status of the verdict."""
    from rich.progress import TaskID

    from training.data.validation.decode_cache import default_workers
    from training.data.validation.validate import ValidationOptions, validate_dataset
    from training.report.validation_page import verdict, write_validation
    from training.utils.terminal import make_console, make_progress

    name, workers = arguments.name, arguments.workers
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    others = tuple(map(_data_set, arguments.against))
    kept = arguments.allow_counts, arguments.hash, others, arguments.cache
    options = ValidationOptions(*kept, workers or default_workers())
    with make_progress(make_console(stderr=True)) as bar:
        tasks: dict[str, TaskID] = {}

        def advance(title: str, done: int, total: int) -> None:
            if title not in tasks:
                tasks[title] = bar.add_task(f"images of {title}", total=total)
            bar.update(tasks[title], completed=done)

        result = validate_dataset(name, arguments.root, options, advance)
    page = write_validation(result, arguments.html or Path("runs") / f"validate-{name}.html")
    _print_validation(result, verdict(result))
    print(page)
    if result.verdict != "yes":
        raise SystemExit(1 if result.verdict == "no" else 3)


def _data_set(text: str) -> tuple[str, Path]:
    from training.data.readers import LAYOUTS

    name, _, root = text.partition("=")
    if name not in LAYOUTS or not root:
        raise ValueError(f"--against must be NAME=ROOT with a NAME of {', '.join(LAYOUTS)}, got {text!r}")
    return name, Path(root)


def _print_validation(result: Validation, verdict: str) -> None:
    from rich.table import Table
    from rich.text import Text

    from training.utils.terminal import make_console

    console = make_console(soft_wrap=False)
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


def template(arguments: Template) -> None:
    """Writes the example of own data."""
    from training.synthetic.own_data_example import write_example

    write_example(arguments.out, arguments.form)
    print(f"{arguments.out / 'README.txt'} says what is what")


def reid_raw(arguments: ReidRaw) -> None:
    """Writes the file and prints the images of each split."""
    from training.data.split_file import RAW, write_reid_raw

    counts = write_reid_raw(arguments.root, arguments.splits)
    print(f"{arguments.root / RAW}: {', '.join(f'{split} {count:,} images' for split, count in counts.items())}")
    print(f"next: python -m training.prepare validate cuhk-pedes {arguments.root}")


COMMANDS: dict[type, Callable[[Any], None]] = {
    Synthetic: synthetic,
    IdentityQueries: identity_queries,
    Pack: pack,
    Validate: validate,
    ReidRaw: reid_raw,
    Template: template,
}


def main(argv: Sequence[str]) -> None:
    """Runs a sub-command; raises what its function raises."""
    # Nothing heavy is imported at the top: --help, and each process of `synthetic`, need not wait for it.
    kinds = Synthetic | IdentityQueries | Pack | Validate | ReidRaw | Template
    arguments: Any = cli.parse(kinds, argv, "training.prepare", __doc__)  # type: ignore
    COMMANDS[type(arguments)](arguments)


if __name__ == "__main__":
    sys.exit(cli.run(main))
