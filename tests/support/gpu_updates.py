"""GPU tests of the two operators that update a state in place: a class of tests, which each operator's file inherits."""

import torch

import bdam_fast
from tests.support.gpu import GPU, ONLY_GPU, backends, check_autocast, check_repeats, on_device
from tests.support.operators import leaves, same_bits
from tests.support.operators.updates import Update, copy_of


class UpdateTests:
    """Tests of the operator `update`, by every backend."""

    update: Update

    @backends
    def test_gradients_are_the_reference_s(self, backend):
        problem = on_device(self.update.problem(2, 18))
        results = []
        for who in (backend, "reference"):
            own = leaves({n: v.clone() for n, v in problem.items()})
            out, after = self.update.follow(who, 2, **own)
            (out.square().sum() + after.square().sum()).backward()
            results.append([out.detach(), after.detach(), *(v.grad for v in own.values())])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)

    @backends
    def test_same_bits_at_every_call(self, backend):
        problem = on_device(self.update.problem(9, 700))
        check_repeats(lambda: dict(zip(("out", "state"), self.update.run(problem, backend=backend), strict=True)))

    @backends
    def test_autocast_leaves_dtypes_alone(self, backend):
        problem = on_device(self.update.problem(2, 18))
        names = tuple(problem)
        check_autocast(lambda *t: self.update.follow(backend, **dict(zip(names, t, strict=True))), problem)

    @backends
    def test_compiled(self, backend):
        torch._dynamo.reset()
        function, flags, state = getattr(bdam_fast, self.update.name), self.update.options, self.update.state
        kind = "inductor" if GPU else "aot_eager"
        compiled = torch.compile(lambda **t: function(**t, **flags, backend=backend), fullgraph=True, backend=kind)
        for batch in (2, 3, 5):
            problem = on_device(self.update.problem(batch, 18))
            expected = self.update.run(problem, backend=backend)
            own = {**problem, state: copy_of(problem[state])}
            with torch.no_grad():
                out = compiled(**own)
            torch.testing.assert_close((out, own[state]), expected, rtol=1e-5, atol=1e-5)

    @ONLY_GPU
    @backends
    def test_cuda_graph(self, backend):
        """A captured step, replayed: the state moves on by one step each time."""
        problem, state = on_device(self.update.problem(2, 64)), self.update.state
        own = {**problem, state: problem[state].clone()}
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side), torch.no_grad():
            self.update.public(**own, backend=backend)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph), torch.no_grad():
            out = self.update.public(**own, backend=backend)
        own[state].copy_(problem[state])
        expected = dict(problem)
        for _ in range(3):
            graph.replay()
            y, expected[state] = self.update.run(expected, backend=backend)
            assert same_bits(out, y) and same_bits(own[state], expected[state])
