"""selective_scan: what its options mean, and what extreme and broken values do."""

import math

import pytest
import torch

import bdam_fast
from tests.support.operators import leaves, packed_index, same_bits
from tests.support.operators.selective_scan import EXTREMES, check_scan, run_scan, scan_problem

pytestmark = pytest.mark.usefixtures("kernels")
BACKENDS = ["cpu", "reference"]


def test_two_steps_by_hand():
    """One channel, one state: h1 = exp(-d1) h0 + d1 b1 u1 and so on, with the numbers written out."""
    u, delta, z = (torch.tensor([[pair]]) for pair in ([2.0, -1.0], [0.5, 1.0], [1.0, -2.0]))
    A, B, C = torch.tensor([[-1.0]]), torch.tensor([[[3.0, 0.5]]]), torch.tensor([[[2.0, -1.0]]])
    h1 = math.exp(-0.5) * 4 + 0.5 * 3 * 2
    h2 = math.exp(-1.0) * h1 + 1.0 * 0.5 * -1
    silu = [x / (1 + math.exp(-x)) for x in (1.0, -2.0)]
    expected = [(2 * h1 + 10 * 2) * silu[0], (-h2 + 10 * -1) * silu[1]]
    for backend in BACKENDS:
        out, last = bdam_fast.selective_scan(
            *(u, delta, A, B, C, torch.tensor([10.0]), z),
            return_last_state=True,
            initial_state=torch.tensor([[[4.0]]]),
            backend=backend,
        )
        torch.testing.assert_close(out, torch.tensor([[expected]]))
        torch.testing.assert_close(last, torch.tensor([[[h2]]]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_reverse_is_the_flipped_scan(backend):
    problem = scan_problem(2, 9, 45, 3)
    index = packed_index(2, 45)
    flipped = {n: v.flip(-1) if n in ("u", "delta", "B", "C", "z") else v for n, v in problem.items()}
    kwargs = {"delta_softplus": True, "return_last_state": True, "backend": backend}
    out, last = bdam_fast.selective_scan(**problem, **kwargs, reverse=True, seq_idx=index)
    expected, expected_last = bdam_fast.selective_scan(**flipped, **kwargs, seq_idx=index.flip(-1))
    torch.testing.assert_close(out, expected.flip(-1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(last, expected_last, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reverse", [False, True])
def test_two_halves_are_the_whole(backend, reverse):
    problem = scan_problem(2, 9, 70, 3, groups=(1, None))
    kwargs = {"delta_softplus": True, "return_last_state": True, "reverse": reverse, "backend": backend}

    def part(a: int, b: int, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        cut = {n: v[..., a:b] if n in ("u", "delta", "B", "z") else v for n, v in problem.items()}
        return bdam_fast.selective_scan(**{**cut, "initial_state": state}, **kwargs)

    spans = [(0, 33), (33, 70)] if not reverse else [(33, 70), (0, 33)]
    first, state = part(*spans[0], problem["initial_state"])
    second, state = part(*spans[1], state)
    whole, last = bdam_fast.selective_scan(**problem, **kwargs)
    joined = torch.cat([first, second] if not reverse else [second, first], dim=-1)
    torch.testing.assert_close(joined, whole, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(state, last, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_packed_sequences_are_the_sequences_one_by_one(backend):
    """Sequences of 5, 40 and 20 steps with padding before, between, within and after them."""
    problem = scan_problem(1, 6, 80, 3, absent=("initial_state",))
    pieces = {0: range(3, 8), 1: range(10, 50), 2: range(55, 75)}
    index = torch.full((1, 80), -1, dtype=torch.int32)
    for number, steps in pieces.items():
        index[0, list(steps)] = number
    index[0, 20:24] = -1  # padding inside sequence 1, which carries on behind it
    for name in ("u", "delta", "z", "B", "C"):  # what stands in padded steps must not be read
        problem[name] = problem[name].masked_fill((index < 0)[:, None], float("nan"))
    kwargs = {"delta_softplus": True, "return_last_state": True, "backend": backend}
    packed = leaves(problem)
    out, last = bdam_fast.selective_scan(**packed, **kwargs, seq_idx=index)
    assert out[:, :, index[0] < 0].abs().sum() == 0
    (out.square().sum() + last.sum()).backward()
    parameters = {n: torch.zeros_like(problem[n]) for n in ("A", "D", "delta_bias")}
    for number in pieces:
        own = (index[0] == number).nonzero().squeeze(1)
        single = leaves({n: v[..., own] if n in ("u", "delta", "B", "C", "z") else v for n, v in problem.items()})
        expected, state = bdam_fast.selective_scan(**single, **kwargs)
        torch.testing.assert_close(out[..., own], expected, rtol=1e-5, atol=1e-6)
        (expected.square().sum() + (state.sum() if number == 2 else 0)).backward()
        for name in ("u", "delta", "z", "B", "C"):
            torch.testing.assert_close(packed[name].grad[..., own], single[name].grad, rtol=1e-4, atol=1e-5)
        for name, total in parameters.items():
            total += single[name].grad
    torch.testing.assert_close(last, state)
    for name, total in parameters.items():
        torch.testing.assert_close(packed[name].grad, total, rtol=1e-4, atol=1e-4)
    for name in ("u", "delta", "z", "B", "C"):
        assert packed[name].grad[..., index[0] < 0].abs().sum() == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_padding_passes_the_state_through(backend):
    problem = leaves(scan_problem(2, 5, 40, 3))
    index = torch.full((2, 40), -7, dtype=torch.int32)
    out, last = bdam_fast.selective_scan(
        **problem, delta_softplus=True, return_last_state=True, seq_idx=index, backend=backend
    )
    assert out.abs().sum() == 0
    assert torch.equal(last, problem["initial_state"])
    last.sum().backward()
    assert torch.equal(problem["initial_state"].grad, torch.ones(2, 5, 3))
    assert problem["delta_bias"].grad is None or problem["delta_bias"].grad.abs().sum() == 0


@pytest.mark.parametrize("reverse", [False, True])
def test_every_step_its_own_sequence(isa, reverse):
    problem = scan_problem(2, 18, 40, 5)
    check_scan(problem, seq_idx=torch.arange(40, dtype=torch.int32).expand(2, -1), reverse=reverse)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["u", "delta", "z", "A", "D", "delta_bias", "initial_state"])
def test_broken_values_stay_in_their_channel(isa, where, bad):
    problem = scan_problem(2, 37, 40, 5)
    broken = {name: value.clone() for name, value in problem.items()}
    channel = 18
    if where in ("A", "D", "delta_bias"):
        broken[where][channel] = bad
    else:
        broken[where][:, channel] = bad
    clean, got = (run_scan(leaves(p), backend="cpu") for p in (problem, broken))
    others = torch.arange(37) != channel
    for name in ("out", "last", "du", "ddelta", "dz", "dinitial_state"):
        assert same_bits(got[name][:, others], clean[name][:, others]), name
    for name in ("dA", "dD", "ddelta_bias"):
        assert same_bits(got[name][others], clean[name][others]), name


@pytest.mark.parametrize("where", ["u", "delta", "z", "A", "initial_state"])
def test_nan_is_not_lost(isa, where):
    """With any payload: the narrow exponential adds to the exponent field and needs a canonical NaN."""
    problem = scan_problem(1, 5, 40, 3)
    value = torch.tensor([0x7F800001], dtype=torch.int32).view(torch.float32)
    problem[where] = problem[where].clone()
    problem[where][..., 2, :] = value
    out = bdam_fast.selective_scan(**problem, delta_softplus=True, backend="cpu")
    assert out[0, 2].isnan().all()
    assert out[0, [0, 1, 3, 4]].isfinite().all()


@pytest.mark.parametrize(("delta", "A", "softplus"), EXTREMES)
def test_extreme_steps_and_decays(isa, delta, A, softplus):
    problem = scan_problem(1, 18, 40, 3, absent=("delta_bias",))
    problem["delta"] = torch.full((1, 18, 40), delta) + 1e-3 * problem["delta"].abs()
    problem["A"] = torch.full((18, 3), A)
    check_scan(problem, delta_softplus=softplus)


def test_decay_reaches_zero_and_infinity(isa):
    """exp(dt A) for dt A of 89, 88, 0, -87, -88, -104 and beyond, seen through the state alone."""
    exponents = torch.tensor([200.0, 89.0, 88.0, 10.0, 0.0, -10.0, -87.0, -87.5, -88.5, -104.0, -200.0, -1e6])
    channels = len(exponents)
    ones = torch.ones(1, channels, 1)
    _, last = bdam_fast.selective_scan(
        *(torch.zeros_like(ones), ones, exponents[:, None], torch.ones(1, 1, 1), torch.ones(1, 1, 1)),
        return_last_state=True,
        initial_state=torch.ones(1, channels, 1),
        backend="cpu",
    )
    exact = torch.exp(exponents.double())
    got = last[0, :, 0].double()
    assert got[:2].isinf().all()
    torch.testing.assert_close(got[2:7], exact[2:7], rtol=1e-5, atol=0.0)
    assert (got[7:] - exact[7:]).abs().max() < 1e-37
    assert got[4] == 1


LARGEST = torch.finfo(torch.float32).max


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("A", [-LARGEST, -3e38, LARGEST], ids=str)
@pytest.mark.parametrize("delta", [0.0, 1e-30, 1.0])
def test_A_at_the_end_of_float32(isa, A, delta, backend):
    """A step of dt = 0 leaves the state alone, forward, backward and in a decoding step: no 0 times infinity."""
    if A > 0 and delta > 0:
        delta = 0.0  # the state would rightly overflow
    problem = {name: value.requires_grad_() for name, value in scan_problem(2, 6, 40, 4).items()}
    problem["A"] = torch.full((6, 4), A).requires_grad_()
    problem["delta"] = torch.full((2, 6, 40), delta).requires_grad_()
    del problem["delta_bias"]
    results = []
    for who, exact in ((backend, False), ("reference", True)):
        own = {n: v.detach().double().requires_grad_() if exact else v for n, v in problem.items()}
        out = bdam_fast.selective_scan(**own, return_last_state=True, backend=who)
        grads = torch.autograd.grad(out[0].sum() + out[1].sum(), [v for n, v in own.items() if n not in ("A", "delta")])
        results.append([*out, *grads])
    for got, exact in zip(*results, strict=True):
        torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-5)
    state, step = problem["initial_state"].detach().clone(), {n: problem[n].detach() for n in ("A", "D")}
    columns = {n: problem[n].detach()[..., 0] for n in ("u", "delta", "B", "C", "z")}
    bdam_fast.selective_state_update(
        *(state, columns["u"], columns["delta"], step["A"], columns["B"], columns["C"], step["D"], columns["z"]),
        backend=backend,
    )
    assert state.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("operator", ["selective_scan", "causal_conv1d"])
def test_an_index_of_int64_is_that_of_int32(operator, backend):
    index = packed_index(2, 20)
    scan, conv = scan_problem(2, 6, 20, 4), {"x": torch.randn(2, 6, 20), "weight": torch.randn(6, 4)}
    problem, call = (scan if operator == "selective_scan" else conv), getattr(bdam_fast, operator)
    assert torch.equal(
        call(**problem, seq_idx=index.long(), backend=backend), call(**problem, seq_idx=index, backend=backend)
    )
    with pytest.raises(TypeError, match=f"{operator}: seq_idx must be int32 or int64, got torch.int16"):
        call(**problem, seq_idx=index.short(), backend=backend)
