"""The block between its projections as mamba_ssm and Vision Mamba call it, against PyTorch's own functions and a loop."""

import pytest
import torch
import torch.nn.functional as F

from bdam_fast import compat
from tests.support.operators import leaves

pytestmark = pytest.mark.usefixtures("kernels")


def inner_problem(channels=12, states=4, rank=3, width=4, d_model=10, length=9):
    """Tensor arguments of mamba_inner_fn."""
    return {
        "xz": torch.randn(2, 2 * channels, length),
        "conv1d_weight": torch.randn(channels, 1, width),
        "conv1d_bias": torch.randn(channels),
        "x_proj_weight": torch.randn(rank + 2 * states, channels) / 3,
        "delta_proj_weight": torch.randn(channels, rank) / 2,
        "out_proj_weight": torch.randn(d_model, channels) / 3,
        "out_proj_bias": torch.randn(d_model),
        "A": -torch.rand(channels, states),
        "D": torch.randn(channels),
        "delta_bias": torch.randn(channels),
    }


def inner_written_out(p, B=None, C=None, B_proj_bias=0, C_proj_bias=0, rms=(None, None, None), eps=1e-6):
    """The same from PyTorch's own functions and a loop over the steps."""
    channels, states, rank, length = p["A"].shape[0], p["A"].shape[1], p["delta_proj_weight"].shape[1], p["xz"].shape[2]
    x, z = p["xz"].chunk(2, 1)
    width = p["conv1d_weight"].shape[2]
    x = F.silu(F.conv1d(x, p["conv1d_weight"], p["conv1d_bias"], padding=width - 1, groups=channels)[..., :length])
    projected = x.transpose(1, 2) @ p["x_proj_weight"].T
    delta = projected[..., :rank] @ p["delta_proj_weight"].T
    given = [B, C]
    B, C = (v + bias for v, bias in zip(projected[..., rank:].chunk(2, -1), (B_proj_bias, C_proj_bias), strict=True))
    B, C, delta = (
        v if w is None else v / (v.square().mean(-1, keepdim=True) + eps).sqrt() * w
        for v, w in zip((B, C, delta), rms, strict=True)
    )
    if p["A"].is_complex():
        B, C = (torch.complex(v[..., ::2], v[..., 1::2]) for v in (B, C))
    B, C = (v[:, :, None] if g is None else g.expand(2, length, -1, -1) for v, g in zip((B, C), given, strict=True))
    dt, h, ys = F.softplus(delta + p["delta_bias"]), torch.zeros(2, channels, states, dtype=p["A"].dtype), []
    for t in range(length):
        h = torch.exp(dt[:, t, :, None] * p["A"]) * h + (dt[:, t] * x[:, :, t])[..., None] * B[:, t]
        y = (h * C[:, t]).sum(-1)
        ys.append((2 * y.real if y.is_complex() else y) + p["D"] * x[:, :, t])
    return F.linear(torch.stack(ys, 1) * F.silu(z).transpose(1, 2), p["out_proj_weight"], p["out_proj_bias"])


@pytest.mark.parametrize("case", ["plain", "biases", "constant", "norms", "level 0"])
def test_mamba_inner_fn(case):
    problem = inner_problem()
    constant = {"B": torch.randn(12, 4), "C": torch.randn(12, 4)}
    rms = (torch.rand(4), torch.rand(4), torch.rand(12))
    ours, written = {
        "plain": ({}, {}),
        "biases": ({"B_proj_bias": rms[0], "C_proj_bias": rms[1]},) * 2,
        "constant": (constant, constant),
        "norms": (
            {"b_rms_weight": rms[0], "c_rms_weight": rms[1], "dt_rms_weight": rms[2], "b_c_dt_rms_eps": 0.1},
            {"rms": rms, "eps": 0.1},
        ),
        "level 0": ({"checkpoint_lvl": 0}, {}),
    }[case]
    results = []
    for function in (lambda p: compat.mamba_inner_fn(**p, **ours), lambda p: inner_written_out(p, **written)):
        own = leaves({n: v.clone() for n, v in problem.items()})
        out = function(own)
        grads = torch.autograd.grad(out.square().sum(), list(own.values()), allow_unused=True)
        results.append([out, *(g for g in grads if g is not None)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def complex_problem():
    """Tensor arguments in float64 whose states are complex; x_proj_weight has rows for their real and imaginary parts."""
    problem = inner_problem() | {"x_proj_weight": torch.randn(3 + 4 * 4, 12) / 3}
    problem = {n: v.double() for n, v in problem.items()}
    return problem | {"A": torch.complex(problem["A"], torch.randn(12, 4, dtype=torch.float64))}


@pytest.mark.filterwarnings("ignore:.*running the slow reference")
@pytest.mark.parametrize("case", ["plain", "biases", "constant", "constant B", "norms"])
def test_complex_states(case):
    """mamba_ssm projects real and imaginary parts in turn; constant B and C are complex themselves."""
    problem = complex_problem()
    constant = {name: torch.randn(12, 4, dtype=torch.complex128) for name in "BC"}
    rms = tuple(torch.rand(n, dtype=torch.float64) for n in (8, 8, 12))
    ours, written = {
        "plain": ({}, {}),
        "biases": ({"B_proj_bias": rms[0], "C_proj_bias": rms[1]},) * 2,
        "constant": (constant, constant),
        "constant B": ({"B": constant["B"]},) * 2,
        "norms": (
            {"b_rms_weight": rms[0], "c_rms_weight": rms[1], "dt_rms_weight": rms[2], "b_c_dt_rms_eps": 0.1},
            {"rms": rms, "eps": 0.1},
        ),
    }[case]
    results = []
    for function in (lambda p: compat.mamba_inner_fn(**p, **ours), lambda p: inner_written_out(p, **written)):
        own = leaves({n: v.clone() for n, v in problem.items()})
        out = function(own)
        assert out.dtype == torch.float64
        results.append([out, *torch.autograd.grad(out.square().sum(), list(own.values()))])
    # The norms of Hugging Face's and mamba_ssm's blocks are float32.
    exact = {} if case != "norms" else {"rtol": 1e-4, "atol": 1e-5}
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, **exact)


@pytest.mark.filterwarnings("ignore:.*running the slow reference")
def test_complex_states_of_the_other_blocks():
    problem = complex_problem()
    weight, bias = problem["out_proj_weight"], problem["out_proj_bias"]
    inner = {n: v for n, v in problem.items() if not n.startswith("out_proj")}
    expected = inner_written_out(problem)
    out = compat.mamba_inner_fn_no_out_proj(**inner)
    torch.testing.assert_close(F.linear(out.transpose(1, 2), weight, bias), expected)
    A_b = torch.complex(-torch.rand(12, 4), torch.randn(12, 4)).to(torch.complex128)
    torch.testing.assert_close(compat.bimamba_inner_fn(**problem, A_b=A_b), both_written_out(problem, A_b))
    # A per-step B in real numbers holds real and imaginary parts in turn, in the last dimension.
    B = torch.randn(2, 1, 4, 9, dtype=torch.complex128)
    parts = torch.view_as_real(B).flatten(-2)
    torch.testing.assert_close(compat.mamba_inner_fn(**problem, B=parts), compat.mamba_inner_fn(**problem, B=B))


def test_mamba_inner_fn_norms_a_given_projection():
    problem, weight = inner_problem(), torch.rand(4)
    given = torch.randn(2, 1, 4, 9)
    normed = F.rms_norm(given.mT, (4,), weight, 1e-6).mT
    out = compat.mamba_inner_fn(**problem, B=given, b_rms_weight=weight)
    torch.testing.assert_close(out, compat.mamba_inner_fn(**problem, B=normed))


def test_mamba_inner_fn_in_mixed_precision():
    """A float32 bias beside bfloat16 weights, as Hugging Face's mixer passes it."""
    problem = inner_problem()
    low = {n: v.bfloat16() if n not in ("A", "D", "delta_bias", "out_proj_bias") else v for n, v in problem.items()}
    out = compat.mamba_inner_fn(**low)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), compat.mamba_inner_fn(**problem), rtol=0.1, atol=0.3)


@pytest.mark.parametrize("case", ["plain", "biases", "constant"])
def test_without_the_output_projection(case):
    problem, states = inner_problem(), {"B_proj_bias": torch.rand(4), "C_proj_bias": torch.rand(4)}
    constant = {"B": torch.randn(12, 4), "C": torch.randn(12, 4)}
    options = {"plain": {}, "biases": states, "constant": constant}[case]
    whole = compat.mamba_inner_fn(**problem, **options)
    weight, bias = problem.pop("out_proj_weight"), problem.pop("out_proj_bias")
    out = compat.mamba_inner_fn_no_out_proj(**problem, **options)
    assert out.shape == (2, 12, 9)
    torch.testing.assert_close(F.linear(out.transpose(1, 2), weight, bias), whole)


def test_both_directions():
    """The block written out forwards, plus backwards on sequences turned round: the convolution is that of the forward."""
    problem, A_b = inner_problem(), -torch.rand(12, 4)
    results = []
    for turned in (False, True):
        own = leaves({n: v.clone() for n, v in problem.items()} | {"A_b": A_b})
        if turned:
            out = both_written_out({n: v for n, v in own.items() if n != "A_b"}, own["A_b"])
        else:
            out = compat.bimamba_inner_fn(**own)
        results.append([out, *torch.autograd.grad(out.square().sum(), list(own.values()))])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def both_written_out(p, A_b):
    channels, states, rank, length = p["A"].shape[0], p["A"].shape[1], p["delta_proj_weight"].shape[1], p["xz"].shape[2]
    x, z = p["xz"].chunk(2, 1)
    x = F.silu(F.conv1d(x, p["conv1d_weight"], p["conv1d_bias"], padding=3, groups=channels)[..., :length])
    projected = x.transpose(1, 2) @ p["x_proj_weight"].T
    dt = F.softplus(projected[..., :rank] @ p["delta_proj_weight"].T + p["delta_bias"])
    B, C = projected[..., rank:].chunk(2, -1)
    if A_b.is_complex():
        B, C = (torch.complex(v[..., ::2], v[..., 1::2]) for v in (B, C))
    y = 0
    for A, order in ((p["A"], range(length)), (A_b, range(length - 1, -1, -1))):
        h, ys = torch.zeros(2, channels, states, dtype=A.dtype), [None] * length
        for t in order:
            h = torch.exp(dt[:, t, :, None] * A) * h + (dt[:, t] * x[:, :, t])[..., None] * B[:, t, None]
            ys[t] = (h * C[:, t, None]).sum(-1)
            ys[t] = (2 * ys[t].real if h.is_complex() else ys[t]) + p["D"] * x[:, :, t]
        y = y + torch.stack(ys, 1) * F.silu(z).transpose(1, 2)
    return F.linear(y, p["out_proj_weight"], p["out_proj_bias"])


def test_references_are_the_same_on_the_reference():
    problem, A_b = inner_problem(), -torch.rand(12, 4)
    torch.testing.assert_close(
        compat.mamba_inner_ref(**problem), compat.mamba_inner_fn(**problem), rtol=1e-3, atol=1e-4
    )
    both = [f(**problem, A_b=A_b) for f in (compat.bimamba_inner_ref, compat.bimamba_inner_fn)]
    torch.testing.assert_close(*both, rtol=1e-3, atol=1e-4)


# Of D = 12, N = 4, R = 3: wrong shapes, and how the error names them.
WRONG = {
    "xz": (torch.ones(2, 23, 9), r"xz must have 2 D = 24 channels for A's 12, got shape \(2, 23, 9\)"),
    "conv1d_weight": (torch.ones(12, 4), r"conv1d_weight must have shape \(D, 1, W\), got \(12, 4\)"),
    "conv1d_bias": (torch.ones(11), r"conv1d_bias must have shape \(12,\), got \(11,\)"),
    "x_proj_weight": (
        torch.ones(12, 12),
        r"x_proj_weight must have shape \(11, 12\), R \+ 2 N rows for R = 3 and N = 4, got",
    ),
    "delta_proj_weight": (torch.ones(11, 3), r"delta_proj_weight must have shape \(12, 3\), got \(11, 3\)"),
    "out_proj_weight": (torch.ones(10, 11), r"out_proj_weight must have shape \(10, 12\), got \(10, 11\)"),
    "out_proj_bias": (torch.ones(9), r"out_proj_bias must have shape \(10,\), got \(9,\)"),
    "A": (torch.ones(12), r"A must have shape \(D, N\), got \(12,\)"),
}


FUNCTIONS = ("mamba_inner_fn", "mamba_inner_fn_no_out_proj", "bimamba_inner_fn")
PAIRS = [(f, n) for f in FUNCTIONS for n in WRONG if f != FUNCTIONS[1] or not n.startswith("out_proj")]


@pytest.mark.parametrize(("function", "name"), PAIRS)
def test_wrong_shapes(function, name):
    value, text = WRONG[name]
    problem = inner_problem() | {name: value}
    if function == FUNCTIONS[1]:
        problem = {n: v for n, v in problem.items() if not n.startswith("out_proj")}
    problem |= {"A_b": problem["A"]} if function == FUNCTIONS[2] else {}
    with pytest.raises(ValueError, match=f"^{function}: {text}"):
        getattr(compat, function)(**problem)


def test_rows_for_what_is_given_may_be_absent():
    problem, constant = inner_problem(), {"B": torch.randn(12, 4), "C": torch.randn(12, 4)}
    expected = compat.mamba_inner_fn(**problem, **constant)
    problem["x_proj_weight"] = problem["x_proj_weight"][:3]
    torch.testing.assert_close(compat.mamba_inner_fn(**problem, **constant), expected)


def test_errors():
    problem = inner_problem()
    low = {n: v for n, v in problem.items() if not n.startswith("out_proj")}
    text = r"x_proj_weight must have shape \(19, 12\), R \+ 4 N rows for R = 3 and N = 4, got \(11, 12\)"
    with pytest.raises(ValueError, match=f"mamba_inner_fn: {text}"):
        compat.mamba_inner_fn(**problem | {"A": problem["A"].cfloat()})
    of_pairs = complex_problem()
    with pytest.raises(TypeError, match='selective_scan: a complex A needs backend="reference", got backend="cpu"'):
        compat.mamba_inner_fn(**of_pairs, backend="cpu")
    given = {"B": torch.randn(2, 1, 4, 18, dtype=torch.float64), "b_rms_weight": torch.ones(4)}
    with pytest.raises(TypeError, match="mamba_inner_fn: b_rms_weight must come without a B for a complex A"):
        compat.mamba_inner_fn(**of_pairs, **given)
    with pytest.raises(TypeError, match="bimamba_inner_fn: A_b must be real like A, got torch.complex64"):
        compat.bimamba_inner_fn(**problem, A_b=problem["A"].cfloat())
    with pytest.raises(TypeError, match="bimamba_inner_fn: A_b must be complex like A, got torch.float32"):
        compat.bimamba_inner_fn(**of_pairs, A_b=problem["A"])
    with pytest.raises(ValueError, match=r"bimamba_inner_fn: A_b must have shape \(12, 4\) like A, got \(12, 5\)"):
        compat.bimamba_inner_fn(**problem, A_b=torch.ones(12, 5))
    with pytest.raises(ValueError, match="mamba_inner_fn: checkpoint_lvl must be 0 or 1, got 2"):
        compat.mamba_inner_fn(**problem, checkpoint_lvl=2)
    with pytest.raises(ValueError, match="mamba_inner_fn_no_out_proj: checkpoint_lvl must be 0 or 1, got 2"):
        compat.mamba_inner_fn_no_out_proj(**low, checkpoint_lvl=2)
    constant = {"B": torch.randn(12, 4), "b_rms_weight": torch.ones(4)}
    with pytest.raises(ValueError, match=r"b_rms_weight must come with a B per step, got \(D, N\)"):
        compat.mamba_inner_fn(**problem, **constant)
