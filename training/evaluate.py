"""Evaluates the test split of a run once and writes RUN/eval.json: `python -m training.evaluate RUN`.

The clothing weight is the one chosen on validation; results at beta = 0 are printed beside it. A second call prints the
stored results. RUN/eval-queries.npz has the average precision and the R-1 of each query; RUN/oracle.json has the ceiling
on a rendered set, the metrics of an oracle that knows what each image shows. `--protocol` measures another protocol and
writes RUN/eval-PROTOCOL.json; nothing is selected by it. gallery-text reads the identity texts of `--texts` where given,
and writes a file for each such file of texts.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from training.evaluation.protocol_names import DEFAULT_K, Protocol
from training.utils import cli


@dataclass(frozen=True)
class Arguments:
    """Arguments of the command."""

    # Run folder of `python -m training.train`.
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    # Retrieval protocol; dual is the headline.
    protocol: Protocol = "dual"
    # Images of `dual` that rerank scores again.
    k: int = DEFAULT_K
    # Texts of gallery-text, such as OUT/gallery-test.jsonl of training.describe; default: the run's.
    texts: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None


def main(argv: Sequence[str]) -> None:
    """Entry point; raises what `evaluate` raises."""
    arguments = cli.parse(Arguments, argv, "training.evaluate", __doc__)
    # Not at the top: --help need not wait for torch.
    from rich.console import Console

    from training.data.datasets import read_gallery_texts
    from training.evaluation.bounds.oracle_metrics import oracle_bounds
    from training.evaluation.metric_tables import print_protocol, print_table
    from training.evaluation.run_evaluation import evaluate, evaluate_protocol, result_name

    run_dir, console = arguments.run, Console(soft_wrap=True)
    protocol, k = arguments.protocol, arguments.k
    texts = None if arguments.texts is None else read_gallery_texts(arguments.texts)
    name = result_name(protocol, k, texts)
    if protocol == "dual":
        evaluation, new = evaluate(run_dir)
        try:
            print_table(evaluation, console, oracle_bounds(run_dir, evaluation))
        except (OSError, ValueError) as error:
            # A ceiling that cannot be computed is no fault of the run.
            print_table(evaluation, console)
            console.print(f"no rows of an oracle: {error}", highlight=False, markup=False)
    else:
        result, new = evaluate_protocol(run_dir, protocol, k, texts)
        print_protocol(result, console)
    print(f"{run_dir / name}{'' if new else ' (evaluated before; the test split is evaluated once)'}")


if __name__ == "__main__":
    sys.exit(cli.run(main))
