"""Work, memory and bytes of one training step of a rank, counted on tensors that have shapes and no content.

The step is that of the training (`train_step.Stepper`) on the rows of one rank (`planned_group.PlannedGroup`). So any number of
ranks and any model can be counted on one small machine.
"""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, register_flop_formula, sdpa_backward_flop_count, sdpa_flop_count

from bdam_fast.flops import register_flop_formulas
from bench.pipeline.scale.planned_group import Exchange, PlannedGroup, Progress
from training.config import Config
from training.data.loader import Batch, Labels
from training.engine.device import CPU
from training.engine.distributed.rank_rows import own_rows
from training.engine.distributed.ranks import ONE_RANK, Ranks
from training.engine.memory_estimate import DryStepper, LiveBytes, plain_batch
from training.models.model import Model
from training.models.model_outputs import EncoderOutput

aten = torch.ops.aten
HALF = (torch.float16, torch.bfloat16)
# Operators that make a tensor without content, give it another shape, or read one number: no work of a card.
FREE = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "_local_scalar_dense")


class Operation(NamedTuple):
    """Work of one call of an operator: the part of the step, its precision (True: 16 bits), FLOPs, bytes read and written, and
    the number of exchanges that have begun behind the step before it."""

    part: str
    half: bool
    flops: int
    bytes: int
    begun: int = 0


@dataclass(frozen=True)
class StepCount:
    """One training step of one rank."""

    operations: Counter[Operation]
    exchanges: list[Exchange]
    # Bytes sent by purpose, as a rank of a training counts them.
    sent: dict[str, int]
    # Numbers of weights, and of those that are trained.
    parameters: int
    trained: int
    # Bytes of weights and buffers, and largest sum of activations and gradients.
    weights: int
    peak: int

    @property
    def flops(self) -> int:
        """FLOPs of the whole step; a multiplication and an addition are two."""
        return sum(count * op.flops for op, count in self.operations.items())

    def flops_of(self, part: str) -> int:
        """FLOPs of a part: "encoders", "heads" or "backward encoders"."""
        return sum(count * op.flops for op, count in self.operations.items() if op.part == part)

    @property
    def calls(self) -> int:
        """Calls of operators, each of which starts at least one kernel on a card."""
        return sum(self.operations.values())

    @property
    def memory(self) -> int:
        """Bytes that a training needs at its peak: weights, Adam's two moments of 4 bytes, activations and gradients."""
        return self.weights + 8 * self.trained + self.peak


class Work(TorchDispatchMode):
    """Notes the work of every operator that computes; a view, and what only makes a tensor, is none."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self.progress, self.operations = progress, Counter[Operation]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:
            # Four of five calls: autograd asks.
            return CPU
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        packet = func._overloadpacket
        if func.is_view or packet.__name__ in FREE:
            return result
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
        formula = flop_registry.get(packet)
        flops = int(formula(*args, **kwargs, out_val=result)) if formula else 0
        half = any(x.dtype in HALF for x in tensors)
        # A broadcast tensor is read from less than its shape says.
        moved = sum(min(x.nbytes, x.untyped_storage().nbytes()) for x in tensors)
        self.operations[Operation(self.progress.part, half, flops, moved, self.progress.begun)] += 1
        return result


class HalvedLiveBytes(LiveBytes):
    """Counts the bytes of storages where every mask that picks rows picks half of them: the people that the adversary's reader is
    fitted on, and the right pairs of the matching head."""

    def _answer(self, func: Any, args: Any) -> Any:
        if func is aten.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1]):
            return args[0].new_empty((len(args[0]) // 2, *args[0].shape[1:]))
        return super()._answer(func, args)


class PlannedStep(DryStepper):
    """A training step without content that says which part of it runs."""

    def __init__(self, config: Config, model: Model, ranks: Ranks, progress: Progress) -> None:
        super().__init__(config, model, ranks)
        self.progress = progress

    def _encode(self, parts: list[Batch]) -> tuple[EncoderOutput, list[list[Tensor]]]:
        self.progress.part = "encoders"
        result = super()._encode(parts)
        self.progress.part = "heads"
        return result

    def _backward(self, *args: Any) -> None:
        self.progress.part = "backward encoders"
        super()._backward(*args)
        self.progress.part = "exchange of gradients"


def count_step(
    config: Config,
    towers: dict[str, str],
    vocabulary: int,
    *,
    rank: int = 0,
    ranks: int = 1,
) -> StepCount:
    """Counts one step, with GradNorm's norms where it is on, of a model that is built without content.

    towers: descriptions of pretrained encoders (`RetrievalModel.towers`), or {}. The batch is the configuration's, every text has
    its full length. Raises ValueError for a batch that is too small for the ranks.
    """
    register_formulas()
    data, progress = config.data, Progress()
    images, length = data.ids_per_batch * data.images_per_id, data.text_length
    group = PlannedGroup(rank, ranks, progress) if ranks > 1 else ONE_RANK
    own = own_rows(images, config.optim.accumulate, rank, ranks)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        with torch.device("meta"):
            empty = Model(config.model, config.loss, data.image_size, vocabulary, 0, length, towers).train()
        stack.enter_context(fake)
        model = _without_content(empty)
        stepper = PlannedStep(config, model, group, progress)
        known = [*model.parameters(), *model.buffers()]
        live = stack.enter_context(HalvedLiveBytes(known, itertools.repeat(length)))
        work = stack.enter_context(Work(progress))
        stepper.run(_own_batch(config, images, len(own)), measure=config.gradnorm.enabled)
    sent = dict(group.sent) if isinstance(group, PlannedGroup) else {}
    exchanges = group.library.exchanges if isinstance(group, PlannedGroup) else []
    return StepCount(
        operations=work.operations,
        exchanges=exchanges,
        sent=sent,
        parameters=sum(p.numel() for p in model.parameters()),
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        weights=sum(x.nbytes for x in known),
        peak=live.peak,
    )


def _without_content(model: Model) -> Model:
    """The model on fake tensors of a CPU: those of the device "meta" cannot be told from others by a dispatch mode."""
    memo: dict[int, Any] = {}
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        made = torch.empty(tensor.shape, dtype=tensor.dtype, device=CPU)
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(made, tensor.requires_grad) if is_parameter else made
    return copy.deepcopy(model, memo)


def _own_batch(config: Config, images: int, own: int) -> Batch:
    """The rows of a rank in a batch of `images`."""
    batch = plain_batch(own, config, config.data.text_length, CPU)
    ids = torch.zeros(images, dtype=torch.int64)
    return replace(batch, whole=Labels(ids, ids, ("",) * images))


def register_formulas() -> None:
    """Teaches the counter the operators of bdam_fast, the attention of a CPU and the solution of linear equations."""
    register_flop_formulas()
    own: list[tuple[Any, Any]] = [
        (aten._scaled_dot_product_flash_attention_for_cpu, _attention),
        (aten._scaled_dot_product_flash_attention_for_cpu_backward, _attention_backward),
        (aten._linalg_solve_ex, _solve),
        (aten.linalg_lu_solve, _solve_again),
    ]
    for target, formula in own:
        if target not in flop_registry:
            register_flop_formula(target)(formula)


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


def _solve(left: Any, right: Any, *_: Any, **__: Any) -> int:
    """LU decomposition, 2/3 n^3, and two triangular solutions."""
    return 2 * left[-1] ** 3 // 3 + 2 * left[-1] * right[-2] * right[-1]


def _solve_again(factors: Any, pivots: Any, right: Any, *_: Any, **__: Any) -> int:
    return 2 * factors[-1] * right[-2] * right[-1]
