"""The check that the functions of compat have in common: a tensor where a tensor belongs."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])


def takes_tensors(function: F) -> F:
    """`function` behind a check of the arguments that are annotated `Tensor` or `Tensor | None`.

    Raises (the function that is returned):
        TypeError: one of them is something else, a list for instance.
    """
    names = list(inspect.signature(function).parameters)
    optional = {n: a != Tensor for n, a in inspect.get_annotations(function).items() if a in (Tensor, Tensor | None)}

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        for name, value in (*zip(names, args, strict=False), *kwargs.items()):
            if isinstance(value, Tensor) or name not in optional or (value is None and optional[name]):
                continue
            raise TypeError(f"{function.__name__}: {name} must be a tensor, got {type(value).__name__}")
        return function(*args, **kwargs)

    return cast(F, checked)
