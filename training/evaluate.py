"""Evaluates the test split of a run once and writes RUN/eval.json: `python -m training.evaluate RUN`.

The clothing weight is the one chosen on validation; results at beta = 0 are printed beside it. A second call prints the
stored results. RUN/eval-queries.npz has the average precision and the R-1 of each query; RUN/oracle.json has the ceiling
on a rendered set, the metrics of an oracle that knows what each image shows; RUN/diagnosis.json what each loss and each part of
the model does on validation images. `--protocol` measures another protocol and writes RUN/eval-PROTOCOL.json and the values of
its queries; nothing is selected by it. Of several protocols, those that the model or the data cannot have are named and left
out. gallery-text and identity read the identity texts of `--texts` where given, and write a file for each such file of texts.
Under torchrun the processes encode batches in turn, to the same numbers.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from training.evaluation.protocols.protocol_names import DEFAULT_K, RESULTS, WITH_TEXTS, NotMeasurable, Protocol
from training.utils import cli
from training.utils.cli import DataRoot, Device

if TYPE_CHECKING:
    from rich.console import Console

    from training.data.datasets import TextFile
    from training.evaluation.result import Evaluation


@dataclass(frozen=True)
class Arguments:
    """Arguments of the command."""

    # Run folder of `python -m training.train`.
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    # Retrieval protocol, or "all" (but paired-audit); by default dual, which gives the headline number.
    protocol: Annotated[tuple[Protocol | Literal["all"], ...], tyro.conf.UseAppendAction] = ()
    # Images of `dual` that rerank scores again.
    k: int = DEFAULT_K
    # Texts of gallery-text and identity, such as OUT/gallery-test.jsonl of training.describe; default: the run's, the data's.
    texts: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    data_root: DataRoot = None
    device: Device = "auto"


def main(argv: Sequence[str]) -> None:
    """Entry point; raises what `evaluate` raises, and NotMeasurable for a protocol asked for alone."""
    arguments = cli.parse(Arguments, argv, "training.evaluate", __doc__, shared=True)
    # Not at the top: --help need not wait for torch.
    from training.engine.distributed.shared_work import shared_work

    with shared_work(arguments.device) as (ranks, device):
        _evaluate_all(arguments, data_root=arguments.data_root, device=device, ranks=ranks)


def _evaluate_all(arguments: Arguments, **options: Any) -> None:
    """Every protocol that is asked for; options: of `evaluate`."""
    from training.data.datasets import read_gallery_texts

    named = tuple(dict.fromkeys(name for name in arguments.protocol if name != "all"))
    asked: tuple[Protocol, ...] = RESULTS if "all" in arguments.protocol else named or ("dual",)
    texts = None if arguments.texts is None else read_gallery_texts(arguments.texts)
    for protocol in asked:
        # Texts that no protocol reads are an error of the first one.
        mine = texts if protocol in WITH_TEXTS or not {*asked} & {*WITH_TEXTS} else None
        try:
            _evaluate(arguments.run, protocol, arguments.k, mine, **options)
        except NotMeasurable as reason:
            if len(asked) == 1:
                raise
            print(f"{protocol} is left out: {reason}")


def _evaluate(run_dir: Path, protocol: Protocol, k: int, texts: TextFile | None, **options: Any) -> None:
    """Prints the results of a protocol and the path of its file."""
    from training.evaluation.metric_tables import print_protocol
    from training.evaluation.run_evaluation import evaluate, evaluate_protocol, result_name
    from training.utils.terminal import make_console

    console, name = make_console(), result_name(protocol, k, texts)
    if protocol == "dual":
        evaluation, new = evaluate(run_dir, **options)
        if options.pop("ranks").first:
            _print_dual(run_dir, evaluation, console, **options)
    else:
        result, new = evaluate_protocol(run_dir, protocol, k, texts, **options)
        print_protocol(result, console)
    print(f"{run_dir / name}{'' if new else ' (evaluated before; the test split is evaluated once)'}")


def _print_dual(run_dir: Path, evaluation: Evaluation, console: Console, **options: Any) -> None:
    """Prints the metrics, beside those of an oracle, and the diagnosis; both files are written if they do not exist."""
    from training.evaluation.bounds.oracle_metrics import oracle_bounds
    from training.evaluation.diagnosis.diagnose import diagnose
    from training.evaluation.metric_tables import print_diagnosis, print_table

    try:
        print_table(evaluation, console, oracle_bounds(run_dir, evaluation, options["data_root"]))
    except (OSError, ValueError) as error:
        # A ceiling that cannot be computed is no fault of the run.
        print_table(evaluation, console)
        console.print(f"no rows of an oracle: {error}", highlight=False, markup=False)
    try:
        print_diagnosis(diagnose(run_dir, **options)[0], console)
    except RuntimeError as error:
        # It compares with the pretrained weights, which the run does not hold.
        console.print(f"no diagnosis: {error}", highlight=False, markup=False)


if __name__ == "__main__":
    sys.exit(cli.run(main))
