"""Time of a training step PREDICTED from its counts and from the ceilings of a card and its networks; never a measurement."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from bench.pipeline.scale.counting import StepCount
from bench.pipeline.scale.planned_group import Exchange

# Bytes that clipping and Adam move for each trained weight: the gradient twice, weight and both moments read and written.
OPTIMISER_BYTES = 4 * (2 + 2 * 3)


@dataclass(frozen=True)
class Ceilings:
    """Ceilings of a card and its networks: those of a data sheet, times shares that are assumed. Defaults: H100 SXM."""

    # FLOP/s of dense bf16 products (data sheet: 1,979 TFLOPS with sparsity, half without).
    half: float = 989e12
    # FLOP/s of fp32 outside tensor cores.
    single: float = 67e12
    # Bytes/s of the card's memory.
    bandwidth: float = 3.35e12
    # Size of the card's memory, bytes.
    memory: float = 80e9
    # Bytes/s that a card sends to another of its machine (NVLink 4: 900 GB/s in both directions together).
    inside: float = 450e9
    # Bytes/s that a card sends to one of another machine (one port of 400 Gb/s a card).
    outside: float = 50e9
    # Cards of a machine.
    machine: int = 8
    # Share of the products' peak that is reached. Assumed.
    products_share: float = 0.5
    # Share of the memory's peak that is reached. Assumed.
    memory_share: float = 0.8
    # Share of the networks' peaks that is reached. Assumed.
    network_share: float = 0.8
    # Seconds of the host for each operator, Python and autograd included. Assumed.
    start: float = 8e-6
    # Seconds of an exchange without bytes. Assumed.
    latency: float = 30e-6

    def describe(self) -> str:
        """One sentence with all of them."""
        return (
            f"Ceilings: {self.half / 1e12:,.0f} TFLOP/s in bf16 and {self.single / 1e12:,.0f} in fp32, memory of "
            f"{self.memory / 1e9:,.0f} GB at {self.bandwidth / 1e12:.2f} TB/s, {self.inside / 1e9:,.0f} GB/s to a card of the "
            f"same machine ({self.machine} cards) and {self.outside / 1e9:,.0f} GB/s to one of another. Assumed: "
            f"{self.products_share:.0%} of the products' peak, {self.memory_share:.0%} of the memory's and "
            f"{self.network_share:.0%} of the network's are reached; an operator costs the host {self.start * 1e6:g} µs, an "
            f"exchange {self.latency * 1e6:g} µs before its first byte."
        )


class Prediction(NamedTuple):
    """Predicted seconds of a step. `products` and `traffic`: operators that arithmetic or memory bounds, added up; `starting`:
    the host's time for all operators, beside which the card computes; `network`: exchanges that nothing hides."""

    products: float
    traffic: float
    starting: float
    network: float

    @property
    def seconds(self) -> float:
        """Time of the step."""
        return max(self.products + self.traffic, self.starting) + self.network

    @property
    def limiter(self) -> str:
        """The largest of the terms."""
        card, host = self.products + self.traffic, self.starting
        if self.network > max(card, host):
            return "network"
        if host > card:
            return "starting operators"
        return "products" if self.products > self.traffic else "memory traffic"


def predict(count: StepCount, ranks: int, ceilings: Ceilings) -> Prediction:
    """Seconds of one step of a rank among so many."""
    bandwidth = ceilings.bandwidth * ceilings.memory_share
    products = traffic = 0.0
    # Seconds of the backward pass of the encoders after so many sums of gradients have begun: of the card, of the host.
    card, host = Counter[int](), Counter[int]()
    for op, number in count.operations.items():
        peak = (ceilings.half if op.half else ceilings.single) * ceilings.products_share
        arithmetic, moving = op.flops / peak, op.bytes / bandwidth
        if arithmetic > moving:
            products += number * arithmetic
        else:
            traffic += number * moving
        if op.part == "backward encoders":
            card[op.begun] += number * max(arithmetic, moving)
            host[op.begun] += number * ceilings.start
    traffic += OPTIMISER_BYTES * count.trained / bandwidth
    starting = count.calls * ceilings.start
    waiting = sum(exchange_seconds(e, ranks, ceilings) for e in count.exchanges if not e.behind)
    behind = [exchange_seconds(e, ranks, ceilings) for e in count.exchanges if e.behind]
    network = waiting + _left(behind, host if starting > products + traffic else card)
    return Prediction(products, traffic, starting, network)


def _left(sums: list[float], backward: Mapping[int, float]) -> float:
    """Seconds that sums, one after another, need after a backward pass; backward: its seconds after so many have begun."""
    clock = end = 0.0
    for number, seconds in enumerate(sums, 1):
        end = max(end, clock) + seconds
        clock += backward.get(number, 0.0)
    return max(0.0, end - clock)


def exchange_seconds(exchange: Exchange, ranks: int, ceilings: Ceilings) -> float:
    """Seconds of one exchange in a ring that is as fast as its slowest link."""
    link = (ceilings.inside if ranks <= ceilings.machine else ceilings.outside) * ceilings.network_share
    passes = {"all_reduce": 2 * (ranks - 1) / ranks, "all_gather": ranks - 1, "all_to_all": 1}[exchange.kind]
    return ceilings.latency + passes * exchange.bytes / link
