"""Operators: one schema, several sets of kernels, and one way to call them.

`bdam_fast::…` holds the compiled kernels, by device: the CPU's and the CUDA C++ ones. `bdam_fast_triton::…` holds the
same operators, with the same schemas, implemented by Triton kernels.
"""

import importlib
import inspect
import threading
from collections.abc import Callable
from functools import cache, partial
from types import ModuleType
from typing import Any, NamedTuple

import torch

from . import _autograd, _backend, _native, _tuning, profiling
from ._namespace import NAMESPACE

NAMESPACES = {"cpu": NAMESPACE, "cuda": NAMESPACE, "triton": f"{NAMESPACE}_triton"}
OPERATORS: dict[str, "Operator"] = {}
_registered: set[tuple[str, str]] = set()  # one namespace may serve two backends, by device
_registering = threading.Lock()  # PyTorch takes each registration once, whichever thread is first
_libraries: list[torch.library.Library] = []  # a registration lives as long as its Library object


@cache
def raw(namespace: str, name: str) -> Any:
    """The raw operator `namespace::name`, which must have been loaded; with a range around each call if those are on."""
    operator = getattr(getattr(torch.ops, namespace), name).default
    return profiling.ranged(f"{namespace}::{name}", operator)


def backend_of(namespace: str, device: torch.device) -> str:
    """The backend whose kernels an operator of `namespace` runs on `device`."""
    if namespace == NAMESPACES["triton"]:
        return "triton"
    return "cuda" if namespace != NAMESPACES["cpu"] or device.type == "cuda" else "cpu"


class Raw(NamedTuple):
    """A raw operator: the shapes of its results, and what its arguments must be."""

    # Makes results of the right shapes; its annotations are the schema of the Triton operator.
    fake: Callable[..., Any]
    # Takes the same arguments and raises where one is wrong. The compiled kernels check for themselves; Triton's do not,
    # so that this runs before each of their calls, from wherever it comes.
    check: Callable[..., None]
    # Results that differ between the kernels: `fake(namespace)` is then the function that makes them.
    by_namespace: bool = False


class Operator:
    """Calls one operator by any backend's kernels, which are loaded, with their autograd formula, when first needed.

    Args:
        name: the operator; its Triton kernels are functions of `bdam_fast.ops.<name>.triton_impl`: `forward` and
            `backward`, or `update` where there is no backward.
        record: a call that autograd follows, `record((namespace, raw, *flags), *tensors)`: results of the raw operator if
            `raw`, else a tuple without the results that the caller did not ask for, since each costs 8 us.
        forward: the operator itself.
        backward: its derivative, which has none; without it `record` is made of other operators.
        writes: the argument that is updated in place, if any.
        reference: the same results of the same arguments in plain PyTorch, for what no kernel sees.
    """

    def __init__(
        self,
        name: str,
        record: Callable[..., Any],
        forward: Raw,
        backward: Raw | None = None,
        *,
        reference: Callable[..., Any],
        writes: str = "",
    ) -> None:
        self.name, self.record, self.check, self.writes = name, record, forward.check, writes
        self.reference = reference
        self.raws = {name: forward} if backward is None else {f"{name}_forward": forward, f"{name}_backward": backward}
        self.raw_name = next(iter(self.raws))
        self.place = list(inspect.signature(forward.fake).parameters).index(writes) if writes else -1
        self._loaded: dict[str, Any] = {}
        OPERATORS[name] = self

    def call(self, backend: str, tensors: tuple[Any, ...], flags: tuple[int, ...]) -> Any:
        """Runs the kernel; the arguments of the raw operator are `tensors` and `flags`.

        The compiled kernels check what `check` does, in C++; it then runs only to word the error of a refused call (5 us).

        Raises:
            TypeError, ValueError: `check` refuses an argument.
            RuntimeError: the kernels cannot be loaded.
        """
        if torch.compiler.is_compiling():
            return self._trace(backend, tensors, flags)
        if needs := _autograd.transform(tensors):
            self.check(*tensors, *flags)
            _backend.warn_reference(self.name, f"{needs} it")
            return self.reference(*tensors, *flags)
        kernel = self._loaded.get(backend) or self.raw(backend)
        try:
            if _autograd.needs_grad(tensors):
                return self._recorded(NAMESPACES[backend], False, tensors, flags)
            results = _autograd.below_autograd(kernel, (*tensors, *flags))
        except (RuntimeError, TypeError, ValueError):
            self.check(*tensors, *flags)
            raise
        if self.writes:
            _autograd.mark_written(tensors[self.place])
        return results

    def raw(self, backend: str = "cpu") -> Any:
        """The raw operator by a backend's kernels, loaded.

        Raises:
            RuntimeError: the extension that holds the kernels is not built, or does not load.
        """
        if backend not in self._loaded:
            self._loaded[backend] = self._load(backend)
        return self._loaded[backend]

    def fakes(self, namespace: str) -> dict[str, Callable[..., Any]]:
        """The raw operators in `namespace` by name, each as a function that makes results of the right shapes."""
        return {name: r.fake(namespace) if r.by_namespace else r.fake for name, r in self.raws.items()}

    def _trace(self, backend: str, tensors: tuple[Any, ...], flags: tuple[int, ...]) -> Any:
        """The call in a graph of `torch.compile`, which knows raw operators only."""
        self.check(*tensors, *flags)
        if needs := _autograd.transform(tensors):
            _autograd.warn_reference(self.name, f"{needs} it")
            return self.reference(*tensors, *flags)
        namespace = NAMESPACES[backend]
        if len(self.raws) == 1 and _autograd.needs_grad(tensors):
            return self.record((namespace, False, *flags), *tensors)
        _load_while_tracing(self.name, backend)
        return getattr(getattr(torch.ops, namespace), self.raw_name)(*tensors, *flags)

    def _recorded(self, namespace: str, raw_results: bool, tensors: tuple[Any, ...], flags: tuple[int, ...]) -> Any:
        if len(self.raws) == 1:  # no kernel sees all arguments
            self.check(*tensors, *flags)
        return self.record((namespace, raw_results, *flags), *tensors)

    def _autograd_kernel(self, namespace: str, *args: Any) -> Any:
        """A call of the raw operator as autograd sees it."""
        _autograd.refuse_transforms(self.name, args)
        if _autograd.needs_grad(args):
            flags = tuple(value for value in args if isinstance(value, int))
            return self._recorded(namespace, True, args[: len(args) - len(flags)], flags)
        results = _autograd.below_autograd(raw(namespace, self.raw_name), args)
        if self.writes:
            _autograd.mark_written(args[self.place])
        return results

    def _load(self, backend: str) -> Any:
        namespace = NAMESPACES[backend]
        if backend != "triton":
            _native.extension()
        if backend == "cuda":
            _tuning.apply(_native.cuda_extension())
        self.register(namespace)
        return raw(namespace, self.raw_name)

    def register(self, namespace: str) -> None:
        """Registers shapes and derivatives of the raw operators in `namespace`, and Triton's kernels in theirs, once."""
        with _registering:
            if (namespace, self.name) in _registered:
                return
            fakes = self.fakes(namespace)
            if namespace == NAMESPACES["triton"]:
                self._define(namespace, fakes)
            for name, fake in fakes.items():
                torch.library.register_fake(f"{namespace}::{name}", fake)
            _autograd.register(namespace, self.raw_name, partial(self._autograd_kernel, namespace))
            for name in fakes.keys() - {self.raw_name}:
                _autograd.register_once_differentiable(self.name, namespace, name)
            _registered.add((namespace, self.name))

    def _define(self, namespace: str, fakes: dict[str, Callable[..., Any]]) -> None:
        """Registers the Triton kernels, each behind the check of its arguments."""
        kernels = importlib.import_module(f".ops.{self.name}.triton_impl", __package__)
        library = torch.library.Library(namespace, "FRAGMENT")
        for name, fake in fakes.items():
            library.define(name + torch.library.infer_schema(fake, mutates_args={self.writes} if self.writes else ()))
            library.impl(name, self._checked(name, kernels), "CompositeExplicitAutograd")
        _libraries.append(library)

    def _checked(self, name: str, kernels: ModuleType) -> Callable[..., Any]:
        """A Triton kernel behind the check of its arguments; calls are counted as `selective_scan.triton.forward`."""
        kernel, check = getattr(kernels, name.rpartition("_")[2]), self.raws[name].check
        count = f"{self.name}.triton.{'backward' if name.endswith('_backward') else 'forward'}"

        def call(*args: Any) -> Any:
            check(*args)
            _native.count_call(count)
            return kernel(*args)

        return call


@_native.constant_in_graphs
def _load_while_tracing(name: str, backend: str) -> bool:
    return OPERATORS[name].raw(backend) is not None


def register_operators() -> None:
    """Registers every operator by all kernels that are here, with derivatives and shapes, as its first call would.

    For what names operators without calling their functions, such as a program that `torch.export.load` reads. Calling it
    again is free.

    Raises:
        RuntimeError: there are no kernels here, neither the compiled extension nor Triton.
    """
    has_triton = _native.triton_available()
    for operator in OPERATORS.values():
        if has_triton:
            operator.raw("triton")
        if _native.available() or not has_triton:
            operator.raw("cpu")
        if operator.name in _native.CUDA_OPERATORS and _native.cuda_available():
            operator.raw("cuda")


def _complete_library() -> None:
    for operator in OPERATORS.values():
        operator.register(NAMESPACE)


_native.when_loaded.append(_complete_library)
