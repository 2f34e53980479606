"""Memory of a training before its first step: one step on fake tensors, which have shapes and no content.

Real are the process so far (weights included), and the sizes of what the step would allocate: every storage that an operator
makes is counted until it is freed, through forward passes, GradNorm's and the encoders' backward passes. The optimiser's moments
are two copies of the trained weights. Peak of a step = weights + moments + the largest sum of activations and gradients.
"""

from __future__ import annotations

import copy
import itertools
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from training.config import Config
from training.data.loader import Batch, TextBatch, TrainLoader
from training.engine.distributed.ranks import ONE_RANK, Ranks
from training.engine.gradnorm import GradNorm
from training.engine.losses import task_names
from training.engine.train_step import DTYPES, Stepper, configure_model
from training.models.model import TEXT_PARTS
from training.models.retrieval_model import RetrievalModel

MB = 2**20
# Share of the rest, and MB on a CPU: without it the estimate was 88 % of the peak of a small model (623 MB) and 83 % of that of a
# middle one with micro-batches and checkpointing (1168 MB).
RESERVE = 0.1, 50.0
aten = torch.ops.aten


@dataclass(frozen=True)
class MemoryEstimate:
    """Peak memory of a training, MB (2^20 bytes), by what it is for. `process`: libraries, data, tokenizer; 0 on a GPU."""

    process: float
    weights: float
    gradients: float
    moments: float
    activations: float
    # Decoded images that are kept while they fit (source.MEMORY_LIMIT).
    images: float
    # What no operator shows: buffers of libraries and holes of the allocator.
    reserve: float = 0.0

    @property
    def total(self) -> float:
        """Sum of all parts."""
        return sum(vars(self).values())

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {value:,.0f}" for name, value in vars(self).items() if value >= 0.5)
        return f"{self.total:,.0f} MB ({parts})"


def estimate_memory(model: RetrievalModel, config: Config, loader: TrainLoader, process_mb: float) -> MemoryEstimate:
    """Estimate for training `model`, which stays as it is, with the batches of `loader`.

    process_mb: resident memory of this process, with the model on the CPU; 0 for a model on a GPU.
    """
    device = next(model.parameters()).device
    weights = sum(p.nbytes for p in itertools.chain(model.parameters(), model.buffers())) / MB
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad) / MB
    averaged = weights if config.optim.ema else 0.0
    peak = _dry_peak(model, config, loader) / MB
    pixels = getattr(loader.images, "pixels", None)
    # Mapped pages of a packed cache are no memory of this process: the system takes them back.
    kept = pixels.nbytes / MB if isinstance(pixels, Tensor) else 0.0
    found = MemoryEstimate(
        process=max(0.0, process_mb - weights - averaged) if device.type == "cpu" else 0.0,
        weights=weights + averaged,
        gradients=trained,
        moments=2 * trained,
        activations=max(0.0, peak - trained),
        images=kept,
    )
    return replace(found, reserve=RESERVE[0] * found.total + (RESERVE[1] if device.type == "cpu" else 0.0))


def smaller_steps(config: Config) -> Iterator[Config]:
    """The configuration with more micro-batches and recomputed activations, the cheaper ones first."""
    data, optim = config.data, config.optim
    batch = data.ids_per_batch * data.images_per_id if data.images_per_id else data.batch_size
    parts = optim.accumulate
    while True:
        for checkpointing in (optim.checkpointing, True):
            changed = replace(optim, accumulate=parts, checkpointing=checkpointing)
            if changed != optim and (checkpointing is optim.checkpointing or not optim.checkpointing):
                try:
                    yield replace(config, optim=changed)
                except ValueError:
                    # A plain dual encoder has no layers to recompute.
                    continue
        if parts >= batch:
            return
        parts = min(batch, 2 * parts)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operators make, and answers what a fake tensor cannot: its values.

    integers: answers for `int(tensor)`, in turn; a truth value is True, a float 1.0.
    """

    def __init__(self, known: list[Tensor], integers: Iterator[int]) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.integers = integers
        self.storages = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = self._answer(func, args)
        if result is None:
            result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _answer(self, func: Any, args: Any) -> Any:
        """The result of an operator that depends on values, at its largest; None for all others."""
        if func is aten._local_scalar_dense.default:
            kind = args[0].dtype
            return 1.0 if kind.is_floating_point else True if kind == torch.bool else next(self.integers)
        if func is aten._unique2.default:
            x = args[0]
            counts = x.new_empty(x.numel(), dtype=torch.int64)
            return x.new_empty(x.numel()), x.new_empty(x.shape, dtype=torch.int64), counts
        if func is aten.nonzero.default:
            return args[0].new_empty((args[0].numel(), args[0].ndim), dtype=torch.int64)
        masks = [i for i in args[1] if i is not None and i.dtype == torch.bool] if func is aten.index.Tensor else []
        if masks:
            return args[0].new_empty((masks[0].numel(), *args[0].shape[masks[0].ndim :]))
        return None

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.storages:
            return
        self.storages.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self.storages.discard(key)
        self.live -= size


class DryStepper(Stepper):
    """A training step without the optimiser, whose fused kernel takes no fake tensors."""

    def __init__(self, config: Config, model: RetrievalModel, ranks: Ranks = ONE_RANK) -> None:
        self.config, self.model, self.ranks = config, model, ranks
        self.device = next(model.parameters()).device
        ranks.prepare(model)
        self.dtype = DTYPES.get(config.optim.precision)
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=False)
        self.gradnorm = GradNorm(task_names(config.loss, config.model.fusion.enabled), config.gradnorm)
        self._divide_parameters()
        configure_model(model, replace(config.optim, compile=False))

    def _update(self, scale: float) -> bool:
        return False


def _dry_peak(model: RetrievalModel, config: Config, loader: TrainLoader) -> int:
    """Bytes of activations and gradients at the peak of a step with GradNorm's norms, or of a batch of the evaluation."""
    fake_mode = FakeTensorMode(allow_non_fake_inputs=True)
    memo: dict[int, Any] = {}
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        fake: Any = fake_mode.from_tensor(tensor.detach())
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if is_parameter else fake
    known = [*memo.values()]
    dry, device = copy.deepcopy(model, memo), next(model.parameters()).device
    lengths, batch_size = _lengths(loader, config), _batch_size(config)
    live = LiveBytes(known, itertools.cycle(lengths))
    # Without this the dry step would draw from the generators of the training.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), fake_mode, live:
        batch = plain_batch(batch_size, config, lengths[-1], device)
        DryStepper(config, dry.train()).run(batch, measure=config.gradnorm.enabled)
        del batch
        with torch.no_grad():
            images = torch.zeros(config.eval.batch_size, 3, *config.data.image_size, device=device)
            dry.eval().embed_images(images.to(next(dry.parameters()).dtype))
    return live.peak


def _batch_size(config: Config) -> int:
    data = config.data
    return data.ids_per_batch * data.images_per_id if data.images_per_id else data.batch_size


def _lengths(loader: TrainLoader, config: Config) -> list[int]:
    """Longest text, in tokens, of each part of a batch's texts in the order of their lengths (`Model._encode_texts`)."""
    lengths = loader.table.lengths.float()
    shares = torch.tensor([*(part / TEXT_PARTS for part in range(1, TEXT_PARTS)), 1 - 1 / (4 * _batch_size(config))])
    return [round(value) for value in torch.quantile(lengths[:1_000_000], shares).tolist()]


def plain_batch(size: int, config: Config, length: int, device: torch.device) -> Batch:
    """A batch of `size` images with texts of `length` tokens, all of one person."""
    texts = TextBatch(*(torch.ones(size, length, dtype=torch.int64, device=device) for _ in range(2)))
    ids = torch.zeros(size, dtype=torch.int64, device=device)
    images = torch.zeros(size, 3, *config.data.image_size, device=device)
    return Batch(images, texts, texts, texts, texts, ids, ids, ("",) * size)
