"""Complex states, VMamba's call, the names ending in _ref, and the modules that compat.install() provides."""

import importlib
import importlib.util
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

import bdam_fast
from bdam_fast import compat
from tests.support import ROOT
from tests.support.operators import leaves, packed_index
from tests.support.operators.causal_conv1d import conv_problem
from tests.support.operators.selective_scan import scan_problem
from tests.support.operators.updates import step_problem, update_problem

pytestmark = [pytest.mark.usefixtures("kernels"), pytest.mark.filterwarnings("ignore:.*running the slow reference")]


def written_out(u, delta, A, B, C, D, z):
    """The scan of complex states as a loop over the steps; B and C complex, (D, N) or (B, G, N, L)."""
    batch, channels, length = u.shape
    full = [t[None, :, :, None].expand(batch, -1, -1, length) if t.dim() == 2 else t for t in (B, C)]
    B, C = (t.repeat_interleave(channels // t.shape[1], 1) for t in full)
    dt, h, ys = F.softplus(delta), torch.zeros(batch, channels, A.shape[1], dtype=A.dtype), []
    for t in range(length):
        h = torch.exp(dt[:, :, t, None] * A) * h + (dt * u)[:, :, t, None] * B[..., t]
        ys.append(2 * (h * C[..., t]).sum(-1).real + D * u[:, :, t])
    return torch.stack(ys, 2) * F.silu(z), h


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("groups", [1, 3])
def test_complex_states(constant, groups):
    problem = scan_problem(2, 6, 7, 4, dtype=torch.float64, absent=("initial_state", "delta_bias"))
    A = torch.complex(problem["A"], torch.randn(6, 4, dtype=torch.float64))
    shape = (6, 4) if constant else (2, groups, 4, 7)
    B, C = (torch.randn(shape, dtype=torch.complex128) for _ in range(2))
    own = leaves({n: problem[n] for n in ("u", "delta", "D", "z")} | {"A": A, "B": B, "C": C})
    expected = written_out(*(own[n] for n in ("u", "delta", "A", "B", "C", "D", "z")))
    options = {"delta_softplus": True, "return_last_state": True}
    got = bdam_fast.selective_scan(**own, **options, backend="reference")
    torch.testing.assert_close(got, expected)
    assert not got[0].is_complex() and got[1].dtype == torch.complex128
    wanted = list(own.values())
    grads = [torch.autograd.grad(r[0].sum(), wanted, retain_graph=True) for r in (got, expected)]
    torch.testing.assert_close(*grads)
    # Existing code interleaves real and imaginary parts of B and C along the steps.
    mixed = [t if constant else torch.view_as_real(t).flatten(-2) for t in (B, C)]
    plain = compat.selective_scan_fn(problem["u"], problem["delta"], A, *mixed, problem["D"], problem["z"], None, True)
    torch.testing.assert_close(plain, expected[0], rtol=1e-5, atol=1e-5)


def test_complex_states_continue_reverse_and_reset():
    problem = scan_problem(2, 4, 9, 3, dtype=torch.float64)
    turn = torch.complex(torch.zeros(4, 3), torch.randn(4, 3)).to(torch.complex128)
    problem |= {"A": problem["A"] + turn, "initial_state": torch.randn(2, 4, 3, dtype=torch.complex128)}
    call = {"delta_softplus": True, "return_last_state": True, "backend": "reference"}
    out, last = bdam_fast.selective_scan(**problem, **call)
    parts, state = [], problem["initial_state"]
    for span in (slice(0, 4), slice(4, 9)):
        own = {n: v[..., span] if n in ("u", "delta", "z", "B", "C") else v for n, v in problem.items()}
        part, state = bdam_fast.selective_scan(**own | {"initial_state": state}, **call)
        parts.append(part)
    torch.testing.assert_close((torch.cat(parts, 2), state), (out, last))
    flipped = {n: v.flip(-1) if n in ("u", "delta", "z", "B", "C") else v for n, v in problem.items()}
    turned = bdam_fast.selective_scan(**flipped, **call, reverse=True)
    torch.testing.assert_close((turned[0].flip(-1), turned[1]), (out, last))
    index = packed_index(2, 9)
    assert (
        bdam_fast.selective_scan(**problem, **call, seq_idx=index)[0][index.lt(0)[:, None].expand(-1, 4, -1)].sum() == 0
    )


@pytest.mark.parametrize("backend", ["auto", "cpu", "cuda", "triton"])
def test_complex_states_elsewhere(backend):
    problem = scan_problem(2, 6, 8, 3)
    text = f'selective_scan: a complex A needs backend="reference", got backend="{backend}"'
    with pytest.raises(TypeError, match=text):
        bdam_fast.selective_scan(**problem | {"A": problem["A"].cfloat()}, backend=backend)
    with pytest.raises(ValueError, match=r"selective_scan: A must have shape \(6, 3\), got \(5, 3\)"):
        bdam_fast.selective_scan(**problem | {"A": problem["A"].cfloat()[:5]}, backend="reference")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["selective_scan_fn", "vmamba_selective_scan"])
def test_complex_states_in_a_graph(name, dtype, monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr("bdam_fast._backend._warned", set())
    problem = scan_problem(2, 6, 8, 3, dtype=dtype)
    A = torch.complex(problem["A"], torch.randn(6, 3, dtype=dtype))
    mixed = (torch.randn(2, 3, 16, dtype=dtype) for _ in range(2))
    arguments = leaves(dict(zip("uvABC", (problem["u"], problem["delta"], A, *mixed), strict=True)))
    compiled = torch.compile(getattr(compat, name), fullgraph=True, backend="aot_eager")
    with pytest.warns(RuntimeWarning, match=f"{name}: running the slow reference: A is complex, which no kernel takes"):
        results = [function(*arguments.values()) for function in (compiled, getattr(compat, name))]
    grads = [torch.autograd.grad(out.sum(), list(arguments.values())) for out in results]
    torch.testing.assert_close([results[0], *grads[0]], [results[1], *grads[1]])


def test_complex_states_of_vmamba():
    """B and C complex, or in real and imaginary parts; an explicit kernel is refused."""
    problem = scan_problem(2, 6, 7, 4, absent=("initial_state", "delta_bias"))
    A = torch.complex(problem["A"], torch.randn(6, 4))
    B, C = (torch.randn(2, 3, 4, 7, dtype=torch.complex64) for _ in range(2))
    first = problem["u"], problem["delta"], A
    gate = torch.ones(())
    expected = written_out(*first, B, C, problem["D"], gate)[0]
    mixed = [torch.view_as_real(t).flatten(-2) for t in (B, C)]
    for parts in ((B, C), mixed):
        got = compat.vmamba_selective_scan(*first, *parts, problem["D"], None, True)
        torch.testing.assert_close(F.silu(gate) * got, expected)
    with pytest.raises(TypeError, match='selective_scan: a complex A needs backend="reference", got backend="cpu"'):
        compat.vmamba_selective_scan(*first, B, C, backend="cpu")


def test_the_step_has_no_complex_states():
    with pytest.raises(TypeError, match="selective_state_update: A must be float32, bfloat16, float16 or float64, got"):
        compat.selective_state_update(**{**(problem := step_problem(2, 6, 3)), "A": problem["A"].cfloat()})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("oflex", [True, False])
def test_vmamba_call(dtype, oflex):
    problem = scan_problem(2, 12, 20, 1, dtype=dtype, groups=(4, 4), absent=("initial_state", "z"))
    own = leaves(problem)
    order = [own[n] for n in ("u", "delta", "A", "B", "C", "D", "delta_bias")]
    out = compat.vmamba_selective_scan(*order, True, 1, 1, oflex)
    assert out.dtype == (torch.float32 if oflex else dtype)
    exact = {n: v.detach().double().requires_grad_() for n, v in problem.items()}
    expected = bdam_fast.selective_scan(**exact, delta_softplus=True, backend="reference")
    bound = {torch.float32: 1e-5, torch.float16: 1e-5 if oflex else 2e-3, torch.bfloat16: 1e-5 if oflex else 2e-2}[
        dtype
    ]
    torch.testing.assert_close(out.double(), expected, rtol=bound, atol=bound)
    out.float().sum().backward()
    assert all(v.grad.dtype == v.dtype for v in own.values())


def test_names_ending_in_ref_run_the_reference():
    scan, step = scan_problem(2, 6, 9, 4, absent=("initial_state",)), step_problem(2, 6, 4)
    conv, update = conv_problem(2, 6, 9), update_problem(2, 6)
    calls = {
        "selective_scan": lambda f: f(**scan),
        "selective_state_update": lambda f: f(**step | {"state": step["state"].clone()}),
        "causal_conv1d": lambda f: f(**conv, activation="silu"),
        "causal_conv1d_update": lambda f: f(**update | {"conv_state": update["conv_state"].clone()}),
    }
    for name, call in calls.items():
        ours = f"{name}_fn" if hasattr(compat, f"{name}_fn") else name
        bdam_fast.reset_call_counts()
        torch.testing.assert_close(
            call(getattr(compat, f"{name}_ref")), call(getattr(compat, ours)), rtol=1e-4, atol=1e-5
        )
        counts = bdam_fast.call_counts()
        assert counts[f"{name}.reference.forward"] == counts[f"{name}.cpu.forward"] == 1


@pytest.fixture
def installed():
    """The modules, until the test has ended."""
    compat.install()
    yield
    compat.uninstall()


def test_install(installed):
    interface = importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    assert interface.selective_scan_fn is compat.selective_scan_fn and interface.mamba_inner_fn is compat.mamba_inner_fn
    conv = importlib.import_module("causal_conv1d")
    assert conv.causal_conv1d_fn is compat.causal_conv1d_fn and importlib.util.find_spec("causal_conv1d") is not None
    step = importlib.import_module("mamba_ssm.ops.triton.selective_state_update")
    assert step.selective_state_update is compat.selective_state_update
    varlen = importlib.import_module("causal_conv1d.causal_conv1d_varlen")
    assert varlen.causal_conv1d_varlen_states is compat.causal_conv1d_varlen_states
    assert importlib.import_module("mamba_ssm").Mamba is bdam_fast.nn.Mamba
    assert compat.install() == compat.install()
    with pytest.raises(ModuleNotFoundError, match=r"mamba_ssm\.modules\.mamba2"):
        importlib.import_module("mamba_ssm.modules.mamba2")


def test_uninstall():
    compat.install()
    compat.uninstall()
    assert not {"mamba_ssm", "causal_conv1d", "selective_scan_cuda_oflex"} & sys.modules.keys()
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("mamba_ssm")


def test_installed_packages_stay_unless_asked(tmp_path, monkeypatch):
    (tmp_path / "causal_conv1d.py").write_text("causal_conv1d_fn = 'theirs'\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        RuntimeError, match="compat.install: causal_conv1d must not be installed, but is; uninstall it, or"
    ):
        compat.install()
    assert "mamba_ssm" not in sys.modules
    theirs = importlib.import_module("causal_conv1d")
    compat.install(replace=True)
    assert importlib.import_module("causal_conv1d").causal_conv1d_fn is compat.causal_conv1d_fn
    compat.uninstall()
    assert importlib.import_module("causal_conv1d") is theirs
    del sys.modules["causal_conv1d"]


@pytest.mark.parametrize("name", ["selective_scan_cuda_oflex", "selective_scan_cuda_core"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_extension_of_vmamba(installed, name, dtype):
    """Its two functions, as VMamba's own autograd functions call them."""
    module = importlib.import_module(name)
    problem = scan_problem(2, 8, 40, 2, dtype=dtype, groups=(4, 4), absent=("initial_state", "z"))
    order = [problem[n] for n in ("u", "delta", "A", "B", "C", "D", "delta_bias")]
    oflex = (1, True) if name.endswith("oflex") else (1,)
    out, saved, *_ = module.fwd(*order, True, *oflex)
    own = leaves(problem)
    expected = compat.vmamba_selective_scan(
        *(own[n] for n in ("u", "delta", "A", "B", "C", "D", "delta_bias")), True, 1, 1
    )
    expected = expected if name.endswith("oflex") else expected.to(dtype)
    assert out.dtype == expected.dtype
    torch.testing.assert_close(out, expected, rtol=1e-3, atol=1e-3)
    upstream = torch.randn_like(out)
    grads = module.bwd(*order, upstream, saved, True, 1)
    wanted = torch.autograd.grad(expected, [own[n] for n in ("u", "delta", "A", "B", "C", "D", "delta_bias")], upstream)
    for got, exact in zip(grads, wanted, strict=True):
        torch.testing.assert_close(got, exact, rtol=1e-2, atol=1e-2)


def test_code_that_nobody_patched():
    """transformers finds the packages when its models are imported, and calls them."""
    pytest.importorskip("transformers")
    code = """
import bdam_fast
bdam_fast.compat.install()
import torch, transformers
sizes = dict(vocab_size=31, hidden_size=16, num_hidden_layers=1, state_size=4)
model = transformers.MambaForCausalLM(transformers.MambaConfig(**sizes)).eval()
model(torch.ones(1, 5, dtype=torch.long))
counts = bdam_fast.call_counts()
assert counts["selective_scan.cpu.forward"] == counts["causal_conv1d.cpu.forward"] == 1, counts
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
