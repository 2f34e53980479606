"""Clusters the training captions of a data set by their style: `python -m training.describe styles NAME ROOT --out OUT`.

Attribute words are replaced by neutral ones, by word lists or by a language model; the rest is turned into features and
clustered. Writes OUT/styles.jsonl (style of each caption), OUT/styles.json (each style with its size, example captions and
marker phrases) and OUT/styles.html (with a map). `--method all` runs every method, each in a folder of its own. Where
factors.jsonl records the writers (synthetic sets), the adjusted Rand index against them is printed; nothing else reads them.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from training.config import STYLE_METHODS, StyleMethod
from training.describe.options import confirm
from training.describe.styles.style_options import STYLOMETRIC, NeutraliserOptions, StyleOptions
from training.utils import cli
from training.utils.locks import folder_lock

if TYPE_CHECKING:
    from rich.console import Console

    from training.describe.styles.caption_styles import Captions


@dataclass(frozen=True)
class Arguments:
    """Arguments of the command."""

    # Data set: cuhk-pedes, icfg-pedes, rstpreid or own.
    name: Annotated[str, tyro.conf.Positional]
    # Its folder.
    root: Annotated[Path, tyro.conf.Positional]
    # Folder to write to.
    out: Path
    # Clustering method (Table 4); all: each method in OUT/METHOD.
    method: StyleMethod | Literal["all"] = "dbscan"
    # "stylometric" (offline), or a CLIP or BERT-like text model by Hugging Face name or folder (reading 19).
    encoder: str = STYLOMETRIC
    # Parameters of the methods.
    style: StyleOptions = field(default_factory=StyleOptions)
    # Neutralisation of the captions (reading 20).
    neutral: NeutraliserOptions = field(default_factory=NeutraliserOptions)


def main(argv: Sequence[str]) -> None:
    """Entry point; raises what `read_captions` and `make_styles` raise."""
    arguments = cli.parse(Arguments, argv, "training.describe styles", __doc__)
    # Not at the top: --help need not wait for scikit-learn and torch.
    from training.describe.styles.caption_styles import read_captions
    from training.utils.terminal import make_console

    console = make_console(stderr=True)
    captions = read_captions(arguments.name, arguments.root)
    with folder_lock(arguments.out):
        _make(arguments, captions, console)
    print(arguments.out)


def _make(arguments: Arguments, captions: Captions, console: Console) -> None:
    """Writes and prints the styles."""
    from training.describe.style_page import project_captions, write_style_page
    from training.describe.styles.caption_styles import encode_captions, make_styles
    from training.describe.styles.neutral import neutral_captions
    from training.utils.terminal import make_console

    neutral = neutral_captions(
        captions.texts, arguments.neutral, arguments.out / "neutral", os.environ, console, confirm
    )
    device = arguments.neutral.device
    encoded = encode_captions(neutral, arguments.encoder, arguments.out / "features", console, device)
    all_methods = arguments.method == "all"
    found: dict[str, dict[str, Any]] = {}
    caption_map = project_captions(encoded.features_ND, arguments.style.seed)
    for method in STYLE_METHODS if all_methods else (arguments.method,):
        folder = arguments.out / method if all_methods else arguments.out
        with console.status(f"{method}: {len(captions.texts):,} captions"):
            found[method], clustering = make_styles(captions, encoded, method, arguments.style, folder)
        write_style_page(folder / "styles.html", found[method], clustering, caption_map)
    print_styles(found, make_console())


def print_styles(found: Mapping[str, dict[str, Any]], console: Console) -> None:
    """Prints one row a method; for a single method its styles too."""
    from rich.table import Table

    table = Table("method", "styles", "captions in each", "noise", "ARI", "seconds")
    for method, row in found.items():
        sizes = [style["size"] for style in row["styles"]]
        shown = f"{sizes[-1]:,} to {sizes[0]:,}" if len(sizes) > 1 else f"{sizes[0]:,}"
        ari = "–" if row["ari"] is None else f"{row['ari']:.3f}"
        table.add_row(method, str(len(sizes)), shown, f"{100 * row['noise_share']:.1f} %", ari, f"{row['seconds']:.1f}")
    console.print(table)
    if len(found) > 1:
        return
    for row in found.values():
        styles = Table("style", "captions", "markers", "example", show_lines=True)
        for style in row["styles"]:
            cells = (str(style["style"]), f"{style['size']:,}", " · ".join(style["markers"][:5]), style["examples"][0])
            styles.add_row(*cells)
        console.print(styles, markup=False)
        console.print(f"{row['encoder']}: {json.dumps(row['found'])}", highlight=False, markup=False)


if __name__ == "__main__":
    sys.exit(cli.run(main))
