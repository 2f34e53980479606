"""A group of ranks that `torchrun` started: exchange of tensors, agreement, waiting, and the end of all when one fails.

Tensors travel by NCCL between cards and by gloo between CPUs; words, facts and failures by the key-value store of the launcher,
which needs no rank to be in a collective at the same time.
"""

from __future__ import annotations

import os
import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from training.data.loader import OwnRows
from training.engine.distributed.agreement import differences
from training.engine.distributed.batch_norm import gather_batch_norms
from training.engine.distributed.failures import RankLost, Register
from training.engine.distributed.gradient_sum import BucketedSum
from training.engine.distributed.rank_rows import RankRows, own_rows
from training.engine.distributed.ranks import GradientSum, Ranks
from training.models.batch_rows import BatchRows
from training.models.retrieval_model import RetrievalModel
from training.utils.locks import folder_lock
from training.utils.machine import launched_ranks
from training.utils.preemption import Preempted, Preemption

T = TypeVar("T")

# Seconds after which an exchange of tensors, which all ranks reach within a step, counts as lost.
EXCHANGE_SECONDS = 600.0
# torch 2.13 has a new name for it, and warns of the old one.
ALL_GATHER = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"
# Key of the random numbers of ranks, beside those of the samplers.
PURPOSE = 3


class RankGroup(Ranks):
    """Ranks of a command in several processes. local_rank: number of this rank on its `machine`.

    `sent` counts the bytes that this rank has put into exchanges, by purpose, whatever the library makes of them.
    """

    # What exchanges the tensors of a step: a count of a step on ranks that do not exist has one that sends nothing.
    library: Any = dist

    def __init__(self, register: Register, device: torch.device, local_rank: int, machine: str) -> None:
        self.rank, self.size = register.rank, register.size
        self.turns = slice(self.rank, None, self.size)
        self.register, self.device, self.local_rank, self.machine = register, device, local_rank, machine
        self.sent: Counter[str] = Counter()
        self._rows: dict[tuple[int, int], BatchRows] = {}
        self._shared = self._turns = self._barriers = self._facts = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> RankGroup:
        """The same group: a copy of a model has the same ranks."""
        return self

    def describe(self) -> str:
        """Words for the line that names the device."""
        return f"; {self.size} ranks share every batch ({dist.get_backend()})"

    def own_rows(self, parts: int) -> OwnRows | None:
        """Positions in a batch of the rows of this process, of `parts` micro-batches; None for all."""
        return lambda count: own_rows(count, parts, self.rank, self.size)

    def rows(self, count: int, parts: int) -> BatchRows:
        """The rows of this process in a batch of so many, in `parts` micro-batches."""
        key = count, min(parts, count)
        if key not in self._rows:
            self._rows[key] = RankRows(self, *key)
        return self._rows[key]

    def prepare(self, model: RetrievalModel) -> None:
        """Makes batch statistics those of the whole batch, before the optimiser is built."""
        gather_batch_norms(model, self)

    @torch.no_grad()
    def share_weights(self, model: nn.Module) -> None:
        """Gives every process the weights and buffers of the first one."""
        for value in model.state_dict().values():
            with self._exchanging("start", value):
                dist.broadcast(value, src=0)

    def seed_step(self, seed: int, step: int) -> None:
        """Sets torch's generators from the seed, the step and this rank."""
        words = np.random.SeedSequence([seed % 2**64, PURPOSE, step, self.rank]).generate_state(1, np.uint64)
        torch.manual_seed(int(words[0]) >> 1)

    def norms(self, norms: dict[str, float]) -> dict[str, float]:
        """L2 norms of gradients from those of the rows of each process."""
        squares = torch.tensor([value**2 for value in norms.values()], dtype=torch.float64, device=self.device)
        return dict(zip(norms, self.all_reduce(squares, "norms").sqrt().tolist(), strict=True)) if norms else norms

    def gradient_sum(self, parameters: Sequence[nn.Parameter], buckets: int = 1) -> GradientSum:
        """Sum over all processes of the gradients of these parameters, in so many parts at most."""
        return BucketedSum(parameters, buckets, self._begin_sum)

    def _begin_sum(self, flat: Tensor) -> Callable[[], None]:
        with self._exchanging("gradients", flat):
            work: Any = self.library.all_reduce(flat, async_op=True)

        def wait() -> None:
            with self._exchanging("gradients"):
                work.wait()

        return wait

    def largest(self, values: Mapping[str, float]) -> dict[str, float]:
        """The largest of each value in any process."""
        found = torch.tensor([*values.values()], dtype=torch.float64, device=self.device)
        with self._exchanging("log", found):
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return dict(zip(values, found.tolist(), strict=True))

    def any(self, flag: bool) -> bool:
        """True if the flag is set in any process."""
        return bool(self.largest({"flag": float(flag)})["flag"])

    def share(self, make: Callable[[], T]) -> T:
        """The result of `make`, which the first process calls; what it raises ends all."""
        self._shared += 1
        key = f"shared/{self._shared}"
        if self.first:
            try:
                value = make()
            except Preempted as stopped:
                self.register.store.set(key, pickle.dumps(stopped))
                raise
            self.register.store.set(key, pickle.dumps(value))
            return value
        value = pickle.loads(self.register.wait(key))
        if isinstance(value, Preempted):
            raise value
        return value

    def gather(self, value: T) -> list[T]:
        """The value of each process, by rank; it is pickled, tensors on the CPU."""
        found: list[Any] = [None] * self.size
        self.sent["results"] += len(pickle.dumps(value))
        with self._exchanging("results"):
            dist.all_gather_object(found, value)
        return found

    def in_order(self, parts: list[T]) -> list[T]:
        """The results of all batches in their order, from those that each process has of its `turns`."""
        by_rank = self.gather(parts)
        return [by_rank[i % self.size][i // self.size] for i in range(sum(map(len, by_rank)))]

    def require_rows(self, batches: Iterable[Sequence[int]], parts: int) -> None:
        """Raises ValueError where a batch of an epoch is too small for all processes."""
        self.rows(min(map(len, batches)), parts)

    def require_equal(self, facts: Callable[[], Mapping[str, Any]]) -> None:
        """Raises ValueError naming a process whose facts are not those of the first one."""
        register, self._facts = self.register, self._facts + 1
        register.store.set(f"facts/{self._facts}/{self.rank}", pickle.dumps(dict(facts())))
        first, *others = (pickle.loads(register.wait(f"facts/{self._facts}/{rank}")) for rank in range(self.size))
        for rank, found in enumerate(others, 1):
            if different := differences(first, found):
                raise ValueError(
                    f"{register.name(rank)} differs from {register.name(0)} in {'; '.join(different)}: all ranks need the same"
                )

    def wait_for_all(self) -> None:
        """Waits until every process has come here."""
        self._barriers += 1
        self.register.store.set(f"barrier/{self._barriers}/{self.rank}", "")
        for rank in range(self.size):
            self.register.wait(f"barrier/{self._barriers}/{rank}")

    def leave(self) -> None:
        """Ends the group, the rank that may keep the store last."""
        self.wait_for_all()
        if self.rank:
            self.register.store.set(f"done/{self.rank}", "")
        else:
            for rank in range(1, self.size):
                self.register.wait(f"done/{rank}")
        dist.destroy_process_group()

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """A block that the first process of each machine runs before the others, which find what it has left in caches."""
        self._turns += 1
        key = f"turn/{self._turns}/{self.machine}"
        if self.local_rank:
            self.register.wait(key)
        yield
        if not self.local_rank:
            self.register.store.set(key, "")

    @contextmanager
    def lock(self, folder: Path) -> Iterator[None]:
        """`folder_lock`, held by the first process for all."""
        if not self.first:
            yield
            return
        with folder_lock(folder):
            yield

    def all_gather(self, x: Tensor, what: str) -> Tensor:
        """(size, *x.shape): tensors of one shape, by rank."""
        out = x.new_empty(self.size, *x.shape)
        with self._exchanging(what, x):
            getattr(self.library, ALL_GATHER)(out.flatten(), x.contiguous().flatten())
        return out

    def all_reduce(self, x: Tensor, what: str) -> Tensor:
        """Sum over the ranks, written to x."""
        with self._exchanging(what, x):
            self.library.all_reduce(x)
        return x

    def all_to_all(self, x: Tensor, received: list[int], sent: list[int], what: str) -> Tensor:
        """Rows from every rank, by rank; `sent` counts the rows of x for each, `received` those from each."""
        out = x.new_empty(sum(received), *x.shape[1:])
        with self._exchanging(what):
            self.library.all_to_all_single(out, x.contiguous(), received, sent)
        self.sent[what] += (len(x) - sent[self.rank]) * (x[:1].nbytes if len(x) else 0)
        return out

    @contextmanager
    def _exchanging(self, what: str, x: Tensor | None = None) -> Iterator[None]:
        """Counts the bytes of x; an error of the library means that another rank is gone or does not answer."""
        self.sent[what] += 0 if x is None else x.nbytes
        try:
            yield
        except RuntimeError as error:
            raise RankLost(str(error)) from error


@contextmanager
def joined(
    device_of: Callable[[int | None], torch.device], signals: Preemption, seconds: float = EXCHANGE_SECONDS
) -> Iterator[tuple[Ranks, torch.device]]:
    """(the ranks that torchrun started together, device of this one); without torchrun, or with one process, a single rank.

    device_of: the device by the number of the process on its machine; None for a single process. seconds: after which an exchange
    counts as lost. Ends quietly on the other ranks when one reports what has ended the work.
    """
    if (size := launched_ranks()) == 1:
        yield Ranks(), device_of(None)
        return
    rank, local_rank = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    store, _, _ = next(rendezvous("env://", rank, size, timeout=timedelta(seconds=300)))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        # It outlives a restart, and would give the addresses and failures of those that have ended.
        store = dist.PrefixStore(f"start/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    register = Register(store, rank, size, signals)
    with register.reporting():
        device = device_of(local_rank)
        backend, patience = ("nccl" if device.type == "cuda" else "gloo"), timedelta(seconds=seconds)
        register.enter()
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=patience)
        group = RankGroup(register, device, local_rank, os.environ.get("GROUP_RANK", "0"))
        yield group, device
        group.leave()
