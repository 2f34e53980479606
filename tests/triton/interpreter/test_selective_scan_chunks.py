"""selective_scan in Triton, interpreted: long sequences of few channels, which are cut in chunks."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from bdam_fast.ops.selective_scan import triton_arguments, triton_cut
from tests.support.operators import leaves, same_bits
from tests.support.operators.selective_scan import (
    check_growing_state,
    check_scan,
    run_scan,
    scan_problem,
    without_softplus,
)

pytestmark = pytest.mark.usefixtures("poison")
check = partial(check_scan, backend="triton")
USUAL = {"LONG": triton_cut.LONG, "SHORTEST": triton_cut.SHORTEST}


def run(problem: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
    """Output, last state and every gradient."""
    return run_scan(leaves(problem), backend="triton", **kwargs)


@pytest.fixture(autouse=True)
def chunks(monkeypatch):
    """Sequences are cut as if they were 32 times as long: in chunks of one tile at least, from 16 steps on."""
    for name, value in {"LONG": 16, "SHORTEST": 8}.items():
        monkeypatch.setattr(triton_cut, name, value)


def chunks_of(problem):
    return triton_cut.cut_of(*(problem[name] for name in ("u", "A", "B", "C"))).chunks


@pytest.mark.parametrize(("length", "count"), [(15, 1), (16, 2), (33, 3), (60, 4)])
@pytest.mark.parametrize(("order", "reverse"), [("bld", False), ("bdl", True)])
def test_chunks_of_a_long_sequence(length, count, order, reverse):
    """All streams and both states; 33 steps are 5 tiles, which makes chunks of 2, 2 and 1."""
    problem = scan_problem(1 + (length == 33), 5, length, 3, order=order)
    assert chunks_of(problem) == count
    check(problem, reverse=reverse)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("order", ["bld", "bdl"])
def test_chunks_of_other_dtypes(dtype, order):
    """Tiles in accesses of 16 bytes, and states that are read by fours."""
    problem = scan_problem(1, 20, 24, 16, dtype=dtype, order=order)
    assert chunks_of(problem) == 3 and triton_arguments.tiling(problem["u"])[0] == (8 if order == "bdl" else 1)
    check(problem, reverse=dtype == torch.float16)


@pytest.mark.parametrize("groups", [(2, 1), (None, 1), (1, None), (None, None)], ids=str)
def test_chunks_with_groups_and_constant_projections(groups):
    check(scan_problem(1, 6, 24, 5, groups=groups))


@pytest.mark.parametrize("absent", [(), ("D", "z", "delta_bias", "initial_state")], ids=["all", "bare"])
@pytest.mark.parametrize("softplus", [False, True])
def test_chunks_without_optional_arguments(softplus, absent):
    problem = scan_problem(1, 4, 24, 3, absent=absent)
    problem = problem if softplus else without_softplus(problem)
    check(problem, delta_softplus=softplus, return_last_state=softplus)


@pytest.mark.parametrize("reverse", [False, True])
def test_sequences_that_begin_and_end_in_chunks(reverse):
    """One over three chunks, one at a chunk's first step, one in a chunk's middle; one chunk is all padding."""
    problem = scan_problem(2, 2, 40, 3, order="bdl" if reverse else "bld")
    index = torch.zeros(2, 40, dtype=torch.int32)
    index[:, 5:22], index[:, 22:32], index[:, 32:39], index[:, 39:] = 5, -1, 2, -1
    index[1, 13:] = 7
    assert chunks_of(problem) == 5
    check(problem, seq_idx=index, reverse=reverse)


@pytest.mark.parametrize("groups", [(2, 1), (2, 2)], ids=str)
def test_groups_and_states_that_lie_far_apart(monkeypatch, groups):
    """They are copied; their gradients have the memory order of the inputs all the same."""
    problem = scan_problem(1, 6, 24, 5, groups=groups, order="bdl")
    monkeypatch.setattr(triton_arguments, "LARGEST_OFFSET", 4)
    copied, (_, group, states, _) = triton_arguments.projection(problem["B"])
    assert (group, states) == (5, 1) and copied.data_ptr() != problem["B"].data_ptr()
    check(problem)


def test_the_order_of_programs_does_not_matter(programs_from_the_last):
    problem = scan_problem(2, 4, 24, 3)
    forwards = run(problem)
    programs_from_the_last()
    assert [name for name, value in run(problem).items() if not same_bits(value, forwards[name])] == []


@pytest.mark.parametrize("name", ["initial_state", "u"])
def test_a_sequence_that_is_no_number_ends_at_the_next(name):
    """NaN enters the chunk in which the next sequence begins, and nothing of it may come through."""
    problem = scan_problem(1, 4, 32, 3)
    index = torch.zeros(1, 32, dtype=torch.int32)
    index[:, 12:] = 1
    broken = problem | {name: problem[name].clone()}
    broken[name][:, :, 0] = float("nan")
    clean, got = run(problem, seq_idx=index), run(broken, seq_idx=index)
    assert got["out"][:, :, :12].isnan().all() and same_bits(got["out"][:, :, 12:], clean["out"][:, :, 12:])
    for gradient in ("du", "dz", "dC"):
        assert same_bits(got[gradient][:, :, 12:], clean[gradient][:, :, 12:]), gradient


@pytest.mark.filterwarnings("ignore:(overflow|invalid value):RuntimeWarning")
@pytest.mark.parametrize("reverse", [False, True])
def test_a_state_of_zero_stays_zero_where_the_decay_overflows(monkeypatch, reverse):
    """Four chunks of 16 steps."""
    monkeypatch.setattr(triton_cut, "SHORTEST", 16)
    check_growing_state("triton", 64, "bld", reverse)


@pytest.mark.parametrize(
    ("programs", "length", "tiles"),
    [
        (351, 512, 22), (352, 512, 64), (1, 511, 64), (1, 512, 16), (96, 2048, 24), (96, 8192, 94), (1, 10**6, 119),
        (0, 4096, 512), (1, 0, 1), (1, 5, 1),
    ],
)  # fmt: skip
def test_how_long_a_chunk_is(monkeypatch, programs, length, tiles):
    for name, value in USUAL.items():
        monkeypatch.setattr(triton_cut, name, value)
    assert triton_cut.chunk_tiles(programs, length) == tiles
