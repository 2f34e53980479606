"""Finds the images that a text describes: `python -m training.search RUN "a man in a red jacket"`.

The embeddings of a split or of a folder are kept in RUN/galleries and brought up to date when the checkpoint or an image has
changed. TEXT - reads one query per line from standard input, so that the model is loaded once; one that cannot be answered does
not end the others.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TextIO

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from training.utils import cli
from training.utils.cli import DataRoot, Device
from training.utils.io import write_bytes

if TYPE_CHECKING:
    from training.retrieval.engines.engine import Filter
    from training.retrieval.finder import Finder
    from training.retrieval.scoring import Query


@dataclass(frozen=True)
class Arguments:
    """Arguments of the command."""

    # Run folder of `python -m training.train`, or folder of `python -m training.export`.
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    # Descriptions of the person; "-" reads one per line of standard input; may be left out with --image.
    text: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="TEXT")] = ()
    # Number of images.
    k: int = 10
    # train, val or test of the run's data set, a folder of images, or a gallery of `python -m training.gallery`.
    gallery: Annotated[str, tyro.conf.arg(metavar="SPLIT|FOLDER|GALLERY")] = "test"
    # Weight of each text, in their order; 1 by default, below 0 for what the person is not.
    weights: tuple[float, ...] = ()
    # Image files of the person, searched for with the texts or alone.
    image: tuple[Path, ...] = ()
    # Weight of clothes: 0 for identity only; chosen on validation by default.
    beta: float | None = None
    # Cameras to search.
    camera: tuple[str, ...] = ()
    # Values of other columns of the metadata, COLUMN=VALUE each.
    where: tuple[str, ...] = ()
    # Earliest time to search, ISO 8601 or seconds.
    start: str = ""
    # Latest time to search, likewise.
    end: str = ""
    # Lowest score of a result.
    least: float | None = None
    # List images also where none scores as the best ones of the validation split do.
    weak: bool = False
    # Number of images of one text that the fusion of the text with each of them orders again; reads their files.
    rerank: int = 0
    # Engine of the search; all but `exact` need the extra `search`, and the last two a server: QDRANT_URL, PGVECTOR_URL.
    engine: Literal["exact", "faiss", "qdrant", "pgvector"] = "exact"
    # Print JSON, one object per query, instead of a table.
    json: bool = False
    # Print CSV instead of a table.
    csv: bool = False
    # Page to write with the images in it.
    html: Path | None = None
    # New or empty folder to copy the images to.
    copy_to: Path | None = None
    data_root: DataRoot = None
    device: Device = "auto"


def main(argv: Sequence[str]) -> None:
    """Entry point: prints the best images of each query. Raises ValueError for arguments that no query can be made of, for lines
    of standard input that are none, after the others, and what `open_finder` and `Finder` raise."""
    arguments = cli.parse(Arguments, argv, "training.search", __doc__)
    _check(arguments)
    # Not at the top: --help need not wait for torch.
    from training.retrieval.finder import Wanted
    from training.retrieval.gallery_search import open_finder
    from training.retrieval.scoring import require_beta

    finder = open_finder(
        arguments.run, arguments.gallery, arguments.engine, _warn, arguments.data_root, arguments.device
    )
    where, beta = _filter(arguments), finder.beta if arguments.beta is None else arguments.beta
    require_beta(beta)
    vectors = [finder.embed_image(path.read_bytes(), str(path)) for path in arguments.image]
    failed = 0
    for line, texts in _queries(arguments.text):
        weights = arguments.weights or (1.0,) * len(texts)
        try:
            query = finder.query(Wanted(tuple(zip(texts, weights, strict=True)), vectors=vectors), beta)
        except ValueError as error:
            if not line:
                raise
            failed += 1
            _refuse(arguments, line, texts, error)
        else:
            _answer(arguments, finder, where, texts, query)
    finder.close()
    if failed:
        raise ValueError(f"lines of standard input that could not be answered: {failed}")


def _check(arguments: Arguments) -> None:
    texts = arguments.text
    if not texts and not arguments.image:
        raise ValueError("expected a TEXT, or --image FILE")
    if texts and not all(text.strip() for text in texts):
        raise ValueError("TEXT is empty, expected a description of a person")
    if arguments.k < 1:
        raise ValueError(f"--k must be at least 1, got {arguments.k}")
    if arguments.rerank and len(texts) != 1:
        raise ValueError(f"--rerank needs one TEXT, got {len(texts)}")
    if arguments.weights and len(arguments.weights) != len(texts):
        raise ValueError(f"--weights needs one number for each of {len(texts)} texts, got {len(arguments.weights)}")
    if arguments.json and arguments.csv:
        raise ValueError("expected --json or --csv, got both")
    if texts == ("-",) and (arguments.html or arguments.copy_to or arguments.csv):
        raise ValueError("--html, --copy-to and --csv hold the results of one query, TEXT - reads many; use --json")


def _queries(texts: tuple[str, ...]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """The texts of each query, and the number of their line of standard input, or 0."""
    if texts != ("-",):
        yield 0, texts
        return
    if isinstance(sys.stdin, TextIOWrapper):
        # Bytes that are not UTF-8 make their own line no query, not all that follow.
        sys.stdin.reconfigure(errors="surrogateescape")
    for number, line in enumerate(sys.stdin, 1):
        if line.strip():
            yield number, (line.strip(),)


def _refuse(arguments: Arguments, line: int, texts: tuple[str, ...], error: ValueError) -> None:
    """Says why a line of standard input has no answer; with --json also in the place of its answer."""
    _warn(f"error: line {line}: {error}")
    if arguments.json:
        # In ASCII: the text may hold what no other encoding has.
        print(json.dumps({"query": list(texts), "notes": [], "results": [], "error": str(error)}), flush=True)


def _filter(arguments: Arguments) -> Filter:
    from training.retrieval.engines.engine import Filter
    from training.retrieval.image_names import parse_time

    values: dict[str, tuple[str, ...]] = {"camera": arguments.camera} if arguments.camera else {}
    for condition in arguments.where:
        name, sign, value = condition.partition("=")
        if not sign or not name:
            raise ValueError(f"--where must be COLUMN=VALUE, got {condition!r}")
        values[name] = (*values.get(name, ()), value)
    return Filter(values, parse_time(arguments.start, "--start"), parse_time(arguments.end, "--end"))


def _answer(arguments: Arguments, finder: Finder, where: Filter, texts: tuple[str, ...], query: Query) -> None:
    """Searches for one query and writes its results in every form that was asked for."""
    from training.retrieval import outputs
    from training.retrieval.finder import nothing_good
    from training.retrieval.reranking import rerank

    results = finder.search(query, max(arguments.k, arguments.rerank), where)
    notes = [note for text in texts for note in finder.embedder.notes(text)]
    least = finder.least(query) if arguments.least is None else None
    if least is not None and results and results[0].score < least:
        notes.append(nothing_good(results[0].score, least))
        results = results if arguments.weak else []
    results = [r for r in results if arguments.least is None or r.score >= arguments.least]
    if arguments.rerank:
        results = rerank(finder.embedder, texts[0], results, arguments.rerank, query.beta)
    results = results[: arguments.k]
    title = " + ".join([*texts, *(path.name for path in arguments.image)])
    if arguments.json:
        answer = {"query": list(texts), "notes": notes, "results": [outputs.as_dict(r) for r in results]}
        print(json.dumps(answer, ensure_ascii=False, allow_nan=False), flush=True)
    elif arguments.csv:
        print(outputs.results_csv(results), end="")
    else:
        for note in notes:
            _warn(f"note: {note}")
        if arguments.text == ("-",):
            print(title)
        print_results([(r.score, r.share, r.image.path) for r in results], sys.stdout)
    if arguments.html:
        subtitle, most = f"{len(results)} images, best first", finder.embedder.max_pixels
        write_bytes(arguments.html, outputs.contact_sheet(title, subtitle, [("", results)], most).encode())
    if arguments.copy_to:
        outputs.copy_images(results, arguments.copy_to)


def _warn(text: str) -> None:
    print(text, file=sys.stderr)


def print_results(results: Sequence[tuple[float, float | None, str]], file: TextIO) -> None:
    """Table of rank, score, share of right images (where it is known) and path, so wide that no path is broken into lines; a line
    where there is none."""
    if not results:
        print("no image fits", file=file)
        return
    calibrated = results[0][1] is not None
    table = Table("rank", "score", *(["right"] if calibrated else []), "path")
    for rank, (score, share, path) in enumerate(results, 1):
        table.add_row(str(rank), f"{score:.4f}", *([f"{share:.0%}"] if calibrated else []), Text(path))
    # 50 columns are more than the rest of the table needs.
    Console(file=file, width=50 + max(len(path) for *_, path in results), soft_wrap=True).print(table)


if __name__ == "__main__":
    sys.exit(cli.run(main))
