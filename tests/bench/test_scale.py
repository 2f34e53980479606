"""Steps of ranks that do not exist: counted work, memory and bytes against real steps, and predictions by hand."""

from __future__ import annotations

import copy
import json
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bdam_fast.nn import Mamba
from bench.pipeline.full_size_step import random_batch
from bench.pipeline.scale import counting, gallery, kills, overlap, sizing
from bench.pipeline.scale.counting import Operation, StepCount, count_step
from bench.pipeline.scale.planned_group import Exchange
from bench.pipeline.scale.prediction import Ceilings, predict
from tests.support.distributed.ranks import Job, Ranks, run_steps, started
from tests.support.pedes_dataset import make_pedes
from tests.support.tiny_run import tiny_config
from training.config import Config
from training.config.recipes import get_recipe
from training.data.datasets import read_dataset
from training.engine.train_step import Stepper
from training.models.model import Model

VOCABULARY = 60


@pytest.fixture(scope="module")
def group() -> Iterator[Ranks]:
    with started() as server:
        yield server


def tiny(root: Path, people: int) -> Config:
    """Without dropout, as in the sizing, and on the kernels."""
    config = tiny_config(root)
    model = replace(
        config.model,
        backend="cpu",
        bdam=replace(config.model.bdam, dropout=0.0),
        fusion=replace(config.model.fusion, dropout=0.0),
    )
    return replace(config, model=model, data=replace(config.data, ids_per_batch=people))


class Everything(nullcontext[None]):
    """One module for all operators."""

    parents = frozenset({"Global"})


def test_a_step_without_content_counts_the_flops_of_a_real_one() -> None:
    config = tiny(Path("none"), 4)
    counted = count_step(config, {}, VOCABULARY)
    data = config.data
    model = Model(config.model, config.loss, data.image_size, VOCABULARY, 0, data.text_length)
    batch = random_batch(config, VOCABULARY, data.ids_per_batch * data.images_per_id)
    stepper = Stepper(config, model.train())
    real = FlopCounterMode(display=False)
    # Modules are followed by hooks, which autograd.grad refuses.
    real.mod_tracker = Everything()  # type: ignore[assignment]
    with real:
        stepper.run(batch, measure=True)
    assert counted.flops == real.get_total_flops() > 1e6
    assert counted.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_the_work_of_ranks_is_that_of_one_process_and_the_losses_once_more_each() -> None:
    config = tiny(Path("none"), 6)
    whole = count_step(config, {}, VOCABULARY)
    more = []
    for size in (2, 3):
        parts = [count_step(config, {}, VOCABULARY, rank=rank, ranks=size) for rank in range(size)]
        for part in ("encoders", "backward encoders"):
            assert sum(count.flops_of(part) for count in parts) == whole.flops_of(part) > 0
        more.append(sum(count.flops for count in parts) - whole.flops)
        assert max(count.peak for count in parts) < whole.peak
    assert more[1] == 2 * more[0] > 0


@pytest.mark.parametrize("options", [{}, {"accumulate": 2, "checkpointing": True}], ids=str)
def test_the_bytes_are_those_that_two_processes_send(options: dict[str, int], group: Ranks, tmp_path: Path) -> None:
    config = tiny(make_pedes(tmp_path / "data"), 3)
    config = replace(config, optim=replace(config.optim, precision="fp32", **options))  # type: ignore[arg-type]
    found = group.run(Job(run_steps, (config, tmp_path, 1), 2, tmp_path / "out"))
    assert found.statuses == [0, 0], found.outputs
    for rank, result in enumerate(found.results):
        vocabulary = len(result["model"]["text.backbone.embeddings.word_embeddings.weight"])
        counted = count_step(config, {}, vocabulary, rank=rank, ranks=2)
        steps, sent = len(result["steps"]), result["sent"]
        assert {step["images"] for step in result["steps"]} == {6} and steps > 1
        for name in ("gradients", "features", "batch statistics", "choice of pairs", "norms"):
            assert sent[name] == steps * counted.sent[name] > 0, name
        assert counted.sent.keys() == {*sent} - {"start"}
        # Which pairs leave their rank depends on the features, and the texts are shorter than the longest.
        assert 0 < sent["wrong pairs"] < 3 * steps * counted.sent["wrong pairs"]
        assert counted.sent["gradients"] == 4 * counted.trained
        assert sum(e.bytes for e in counted.exchanges) == sum(counted.sent.values())


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"checkpointing": True}], ids=str)
def test_sums_of_gradients_begin_before_and_during_the_backward_pass(options: dict[str, int]) -> None:
    config = tiny(Path("none"), 4)
    config = replace(config, optim=replace(config.optim, **options))  # type: ignore[arg-type]
    counted = count_step(config, {}, VOCABULARY, ranks=2)
    behind = [e for e in counted.exchanges if e.behind]
    assert [e.part for e in behind] == ["heads"] + ["backward encoders"] * (len(behind) - 1) and len(behind) > 4
    assert sum(e.bytes for e in behind) == counted.sent["gradients"] > 0
    # Most of the pass is still to come when the second half of the gradients begins to travel.
    begun = [op.begun for op in counted.operations if op.part == "backward encoders"]
    assert {*begun} >= {*range(1, len(behind))}


def test_a_batch_that_is_too_small_is_an_error() -> None:
    with pytest.raises(ValueError, match="a batch of 8 images cannot be shared by 9 ranks in 1 micro-batches"):
        count_step(tiny(Path("none"), 4), {}, VOCABULARY, ranks=9)


def step(operations: dict[Operation, int], exchanges: list[Exchange]) -> StepCount:
    return StepCount(Counter(operations), exchanges, {}, 1000, 1000, 4000, 0)


CARD = Ceilings(
    half=1e12,
    single=1e11,
    bandwidth=1e11,
    inside=1e9,
    outside=1e8,
    machine=2,
    products_share=1.0,
    memory_share=1.0,
    network_share=1.0,
    start=1e-3,
    latency=0.0,
)


def test_prediction_by_hand() -> None:
    """Adam moves 32 bytes a weight: 1000 weights are 0.32 microseconds."""
    products = step({Operation("encoders", True, 10**12, 10**9): 2, Operation("heads", False, 10**11, 0): 1}, [])
    made = predict(products, 1, CARD)
    assert made.products == pytest.approx(3.0) and made.traffic == pytest.approx(3.2e-7)
    assert made.limiter == "products" and made.seconds == pytest.approx(3.0) and made.starting == pytest.approx(3e-3)
    traffic = predict(step({Operation("encoders", True, 10, 10**11): 1}, []), 1, CARD)
    assert traffic.limiter == "memory traffic" and traffic.seconds == pytest.approx(1.0)
    small = predict(step({Operation("encoders", True, 10, 10): 5000}, []), 1, CARD)
    assert small.limiter == "starting operators" and small.seconds == pytest.approx(5.0)


def test_what_the_backward_pass_of_the_encoders_hides_costs_nothing() -> None:
    exchanges = [
        Exchange("heads", "all_gather", 10**8),
        Exchange("heads", "all_reduce", 10**8, True),
        Exchange("backward encoders", "all_reduce", 10**9, True),
        Exchange("backward encoders", "all_reduce", 10**8, True),
    ]
    # 0.3 s of the pass after the heads' sum has begun, 0.4 s after the first one of the encoders', none after the last.
    backward = {
        Operation("backward encoders", True, 3 * 10**11, 0, 1): 1,
        Operation("backward encoders", True, 4 * 10**11, 0, 2): 1,
    }
    # Of two ranks: a gather sends once, a sum once in all. Sums end after 0.1 s, 0.3 + 1 s and 1.3 + 0.1 s, the pass after 0.7.
    made = predict(step(backward, exchanges), 2, CARD)
    assert made.network == pytest.approx(0.1 + 0.7) and made.limiter == "network"
    # Of four on two machines: the gather sends 3 times, the sum 1.5 times, ten times as slow; the heads' ends after 1.5 s.
    assert predict(step(backward, exchanges), 4, CARD).network == pytest.approx(3.0 + 1.5 + 15.0 + 1.5 - 0.7)
    # A host that needs 1 s for each operator is the slower one: the pass ends after 2 s, the sums after 1 + 1 and 2 + 0.1 s.
    slow = predict(step(backward, exchanges), 2, replace(CARD, start=1.0))
    assert slow.network == pytest.approx(0.1 + 0.1) and slow.seconds == pytest.approx(2.2)


def test_the_encoders_of_the_tables_have_the_published_sizes() -> None:
    sizes = {}
    for pair in sizing.pairs():
        config = sizing.configuration(pair, 64)
        with torch.device("meta"):
            model = Model(config.model, config.loss, config.data.image_size, 30522, 0, 64, pair.towers())
        sizes[pair.name] = tuple(
            sum(p.numel() for p in part.parameters()) // 10**6 for part in (model.visual, model.text)
        )
    # ViT-B/16 86 M, BERT-base 109 M without its pooler; CLIP's ViT-L/14 303 M, BERT-large 334 M.
    assert sizes == {"ViT-B/16 + BERT-base": (85, 108), "ViT-L/14 + BERT-large": (303, 334)}


def test_tables_of_tiny_steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Counts come from the file where it has them; steps that do not fit get options, then "too much"."""
    config = tiny(Path("none"), 4)
    asked = []

    def configuration(pair: sizing.Pair, images: int, accumulate: int = 1, checkpointing: bool = False) -> Config:
        asked.append((images, accumulate, checkpointing))
        return replace(config, data=replace(config.data, ids_per_batch=images // 2))

    monkeypatch.setattr(sizing, "configuration", configuration)
    pair = sizing.pairs()[0]._replace(name="tiny")
    monkeypatch.setattr(sizing, "pairs", lambda: [pair])
    monkeypatch.setattr(sizing.Pair, "towers", lambda self: {})
    arguments = sizing.Arguments(batches=(8,), ranks=(1, 2, 16), counts=tmp_path / "counts.json")
    first = list(sizing.cells(arguments))
    assert [(cell.ranks, cell.options, cell.fits) for cell in first] == [(1, "", True), (2, "", True)]
    counted = len(asked)
    assert [cell.count.flops for cell in sizing.cells(arguments)] == [cell.count.flops for cell in first]
    assert len(asked) == counted == 2
    small = replace(arguments, ceilings=Ceilings(memory=1.0))
    cells = list(sizing.cells(small))
    assert [(cell.options, cell.fits) for cell in cells] == [("checkpointing", False)] * 2
    text = sizing.counted_table(cells) + sizing.predicted_table(first)
    assert text.count(": too much") == 2 and "images/s" in text
    assert "100.00%" not in (text := sizing.linear_table(sizing.Counts(arguments.counts), (8,), 2))
    assert counting.StepCount.memory.fget(first[0].count) > 16 * first[0].count.trained and "tiny" in text


def event(name: str, start: float, duration: float, numbers: int = 0) -> dict[str, object]:
    return {"ph": "X", "name": name, "ts": start, "dur": duration, "args": {"Input Dims": [[numbers]]}}


def test_shares_of_a_trace_by_hand(tmp_path: Path) -> None:
    """A sum of the heads from 0 to 30 beside a backward pass from 5 to 25, sums of the encoders from 15 to 45 and 20 to 65."""
    path = tmp_path / "rank0.json"
    sums = [event(overlap.SUM, 0, 30, 1000), event(overlap.SUM, 15, 30, 2000), event(overlap.SUM, 20, 45, 1000)]
    # Batch statistics, and the mark of a thread's name.
    events = [event(overlap.BACKWARD, 5, 20), *sums, event(overlap.SUM, 6, 1, 2), {"ph": "M", "name": "thread_name"}]
    path.write_text(json.dumps({"traceEvents": events}))
    found = overlap.shares(path)
    assert found == (0.25, pytest.approx(20 / 65), pytest.approx(10 / 50))
    path.write_text(json.dumps({"traceEvents": events[:1]}))
    with pytest.raises(ValueError, match="1 backward passes and 0 sums of gradients, expected both"):
        overlap.shares(path)


def test_ranks_say_in_their_traces_what_they_sum(group: Ranks, tmp_path: Path) -> None:
    arguments = overlap.Arguments(images=8, steps=1, out=str(tmp_path))
    found = group.run(Job(overlap.work, (arguments,), 2, tmp_path / "out"))
    assert found.statuses == [0, 0], found.outputs
    for rank in range(2):
        shares = overlap.shares(tmp_path / f"rank{rank}.json")
        assert 0 <= shares.hidden <= 1 and 0 < shares.encoders_hidden <= 1 and 0.05 < shares.heads < 0.95


def test_a_job_that_ends_leaves_nobody_to_kill(tmp_path: Path) -> None:
    process = kills.torchrun("--standalone", "--nproc-per-node", "0", "-m", "training.train")
    with pytest.raises(RuntimeError, match="no ranks to kill after step 1"):
        kills.kill_after(process, tmp_path, 1, 2, random.Random(0))


def test_a_large_gallery_has_as_many_images_as_asked_for(tmp_path: Path) -> None:
    gallery.make_set(tmp_path, 40, 0)
    config = get_recipe("synthetic-captions")
    found = read_dataset(replace(config.data, root=str(tmp_path)))
    assert {name: len(records) for name, records in found.splits.items()} == {"train": 24, "val": 12, "test": 40}


def gradients(block: Mamba, x_BLC: torch.Tensor, weight_BLC: torch.Tensor) -> dict[str, torch.Tensor]:
    output = block(x_BLC)
    (output * weight_BLC).sum().backward()
    return {"output": output.detach(), **{name: p.grad for name, p in block.named_parameters() if p.grad is not None}}


def test_decay_skip_and_step_bias_lose_digits_in_bf16_that_float32_keeps() -> None:
    """Each alone, in a float64 block with weights off their first values: docs/scale.md says what sharding must not round."""
    block = Mamba(64, backend="cpu").double()
    with torch.no_grad():
        for parameter in (block.A_log, block.D):
            parameter.add_(0.3 * torch.randn_like(parameter))
    x_BLC, weight_BLC = torch.randn(2, 2, 60, 64, dtype=torch.float64)
    exact = gradients(copy.deepcopy(block), x_BLC, weight_BLC)
    for name in ("A_log", "D", "dt_proj.bias"):
        errors = {}
        for kind in (torch.bfloat16, torch.float32):
            rounded = copy.deepcopy(block)
            with torch.no_grad():
                parameter = rounded.get_parameter(name)
                parameter.copy_(parameter.to(kind).double())
            found = gradients(rounded, x_BLC, weight_BLC)
            errors[kind] = max(float((found[key] - exact[key]).norm() / exact[key].norm()) for key in exact)
        assert 1e-3 < errors[torch.bfloat16] < 1e-2 and errors[torch.float32] < 1e-7, (name, errors)
