"""GPU tests of the operators of whole sequences: a class of tests, which each operator's file inherits."""

import pytest

from tests.support.gpu import (
    DEVICE,
    ONLY_GPU,
    backends,
    check_autocast,
    check_compiled,
    check_graph,
    check_side_stream,
    on_device,
    with_broken_padding,
)
from tests.support.operators import leaves, packed_index, same_bits
from tests.support.operators.kernels import Kernel, Problem


class KernelTests:
    """Tests of the operator `kernel`, by every backend."""

    kernel: Kernel
    last: int  # the last size of a problem: states, or the width of the window
    steps: tuple[str, ...]  # tensors with an entry a step

    def problem(self, channels: int, length: int, batch: int = 2) -> Problem:
        """A problem on the device."""
        return on_device(self.kernel.problem(batch, channels, length, self.last))

    @backends
    @pytest.mark.parametrize("reverse", [False, True])
    def test_nothing_is_read_from_padding(self, reverse, backend):
        index = packed_index(2, 70, 0.3).to(DEVICE)
        clean = self.problem(36, 70)
        problems = (with_broken_padding(clean, self.steps, index), clean)
        options = {"backend": backend, "seq_idx": index, "reverse": reverse}
        got, expected = (self.kernel.run(leaves(problem), **options) for problem in problems)
        assert all(same_bits(got[name], expected[name]) for name in got)
        assert all(got[name].isfinite().all() for name in got)

    @backends
    def test_no_batch(self, backend):
        problem = self.problem(36, 9, batch=0)
        got = self.kernel.run(leaves(problem), backend=backend)
        assert got["out"].shape == (0, 36, 9)
        parameters = [name for name in problem if name not in self.steps and problem[name].numel()]
        assert parameters and all(got[f"d{name}"].abs().sum() == 0 for name in parameters)

    @ONLY_GPU
    @backends
    @pytest.mark.parametrize("packed", [False, True])
    def test_cuda_graph(self, packed, backend):
        index = packed_index(2, 77).to(DEVICE) if packed else None
        problems = [self.problem(64, 77) for _ in range(2)]
        check_graph(self.kernel.call(problems[0], backend, seq_idx=index), *problems)

    @backends
    def test_compile_with_any_length(self, backend):
        problems = [self.problem(36, length) for length in (40, 77, 130, 200)]
        check_compiled(self.kernel.call(problems[0], backend), problems)

    @backends
    def test_autocast_leaves_dtypes_alone(self, backend):
        problem = self.problem(36, 40)
        first = self.steps[0]
        for tensors in (problem, {**problem, first: problem[first].bfloat16()}):
            check_autocast(self.kernel.call(problem, backend), tensors)

    @ONLY_GPU
    @backends
    def test_side_stream(self, backend):
        problem = self.problem(64, 77)
        check_side_stream(self.kernel.call(problem, backend), problem)
