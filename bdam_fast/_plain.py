"""Which layers are their weights alone, so that an operator may read these in place of a call."""

from torch import nn


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """True if a call of `module` computes what its class says from its weights alone, so that these can be read instead.

    Hooks of all modules (`register_module_forward_hook`) do not count: `FlopCounterMode` and other observers set them, and
    what is observed must be the operators.
    """
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return type(module) is kind and "forward" not in vars(module) and not any(hooks)
