"""Evaluates the test split of a run once and writes RUN/eval.json: `python -m training.evaluate RUN`.

The clothing weight is the one chosen on validation; beta = 0 stands beside it. A second call prints what the first one
wrote. RUN/eval-queries.npz has the average precision and the R-1 of each query. `--protocol` measures another protocol and
writes RUN/eval-PROTOCOL.json; nothing is ever selected by it. gallery-text reads the identity texts of `--texts` where it is
given, and writes a file for each such file of texts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from training.data.datasets import read_gallery_texts
from training.evaluation import protocols
from training.evaluation.metric_tables import print_protocol, print_table
from training.evaluation.run_evaluation import evaluate, evaluate_protocol, result_name
from training.utils import cli


def main(argv: Sequence[str]) -> None:
    """Entry point; raises what `evaluate` raises."""
    parser = argparse.ArgumentParser("python -m training.evaluate", description=__doc__, allow_abbrev=False)
    parser.add_argument("run", metavar="RUN", help="run folder that `python -m training.train` has filled")
    parser.add_argument("--protocol", choices=protocols.PROTOCOLS, default="dual", help="default: dual, the headline")
    help_k = f"images of `dual` that rerank scores again (default {protocols.DEFAULT_K})"
    parser.add_argument("--k", type=int, default=protocols.DEFAULT_K, help=help_k)
    help_texts = "texts of gallery-text, such as OUT/gallery-test.jsonl of training.describe (default: the run's)"
    parser.add_argument("--texts", metavar="FILE", help=help_texts)
    arguments = parser.parse_args(argv)
    run_dir, console = Path(arguments.run), Console(soft_wrap=True)
    protocol, k = arguments.protocol, arguments.k
    texts = None if arguments.texts is None else read_gallery_texts(Path(arguments.texts))
    name = result_name(protocol, k, texts)
    if protocol == "dual":
        evaluation, new = evaluate(run_dir)
        print_table(evaluation, console)
    else:
        evaluation, new = evaluate_protocol(run_dir, protocol, k, texts)
        print_protocol(evaluation, console)
    print(f"{run_dir / name}{'' if new else ' (evaluated before; the test split is evaluated once)'}")


if __name__ == "__main__":
    sys.exit(cli.run(main))
