"""Any shape, stride, dtype and flag: each operator against its float64 reference, by hypothesis."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.operators import packed_index
from tests.support.operators.causal_conv1d import check_conv, conv_problem
from tests.support.operators.selective_scan import check_scan, scan_problem
from tests.support.operators.updates import check_step, check_update, row, step_problem, update_problem

pytestmark = pytest.mark.usefixtures("kernels")
# The fixture that poisons memory holds for all examples of a test; derandomize: the same examples at every run.
BOUNDED = settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
ORDERS = ["bdl", "bld", "strided"]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
integers, choose = st.integers, st.sampled_from


def subset(*names: str):
    """Any of `names` to leave out."""
    return st.sets(choose(names)).map(lambda s: tuple(sorted(s)))


@BOUNDED
@given(
    batch=integers(0, 3),
    channels=integers(1, 40),
    length=integers(0, 70),
    states=choose([1, 2, 3, 4, 5, 8, 16, 17, 20]),
    order=choose(ORDERS),
    dtype=choose(DTYPES),
    grouped=st.tuples(choose(["constant", "shared", "each"]), choose(["constant", "shared", "each"])),
    absent=subset("D", "z", "delta_bias", "initial_state"),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    seed=integers(0, 9),
)
def test_selective_scan(batch, channels, length, states, order, dtype, grouped, absent, flags, seed):
    torch.manual_seed(seed)
    groups = tuple({"constant": None, "shared": 1, "each": channels}[g] for g in grouped)
    softplus, reverse, packed = flags
    problem = scan_problem(batch, channels, length, states, dtype=dtype, order=order, groups=groups, absent=absent)
    if not softplus:  # a negative step with a negative A grows without bound
        problem["delta"] = problem["delta"].abs() / 4
        problem.pop("delta_bias", None)
    index = packed_index(batch, length) if packed else None
    check_scan(problem, delta_softplus=softplus, reverse=reverse, seq_idx=index)


@BOUNDED
@given(
    batch=integers(0, 3),
    channels=integers(1, 40),
    length=integers(0, 70),
    width=integers(1, 8),
    order=choose(ORDERS),
    dout=choose(ORDERS),
    dtype=choose(DTYPES),
    absent=subset("bias", "initial_states"),
    flags=st.tuples(st.booleans(), st.booleans()),
    activation=choose([None, "silu", "swish"]),
    seed=integers(0, 9),
)
def test_causal_conv1d(batch, channels, length, width, order, dout, dtype, absent, flags, activation, seed):
    torch.manual_seed(seed)
    reverse, packed = flags
    problem = conv_problem(batch, channels, length, width, dtype=dtype, order=order, absent=absent)
    index = packed_index(batch, length) if packed else None
    check_conv(problem, order=dout, reverse=reverse, seq_idx=index, activation=activation)


@BOUNDED
@given(
    batch=integers(0, 3),
    channels=integers(1, 70),
    states=integers(1, 40),
    dtype=choose(DTYPES),
    state_dtype=choose(DTYPES),
    state=choose(["bdn", "bnd", "strided"]),
    order=choose(["rows", "strided"]),
    groups=choose(["none", "one", "each"]),
    absent=subset("D", "z", "dt_bias"),
    softplus=st.booleans(),
    seed=integers(0, 9),
)
def test_selective_state_update(
    batch, channels, states, dtype, state_dtype, state, order, groups, absent, softplus, seed
):
    torch.manual_seed(seed)
    count = {"none": 0, "one": 1, "each": channels}[groups]
    problem = step_problem(batch, channels, states, dtype=dtype, state=state, order=order, groups=count, absent=absent)
    if not softplus:
        problem["dt"] = row(batch, channels, dtype, order).abs() / 4
        problem.pop("dt_bias", None)
    problem["state"] = problem["state"].to(state_dtype)
    check_step(problem, dt_softplus=softplus)


@BOUNDED
@given(
    batch=integers(0, 3),
    channels=integers(1, 70),
    length=integers(0, 40),
    width=integers(1, 8),
    more=integers(0, 5),
    order=choose(ORDERS),
    dtype=choose(DTYPES),
    state_dtype=choose(DTYPES),
    absent=subset("bias"),
    activation=choose([None, "silu", "swish"]),
    seed=integers(0, 9),
)
def test_causal_conv1d_update(
    batch, channels, length, width, more, order, dtype, state_dtype, absent, activation, seed
):
    torch.manual_seed(seed)
    entries = width - 1 + more
    problem = update_problem(batch, channels, length, width, entries, dtype=dtype, order=order, absent=absent)
    problem["conv_state"] = problem["conv_state"].to(state_dtype)
    check_update(problem, activation=activation)
