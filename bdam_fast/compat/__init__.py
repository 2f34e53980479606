"""The names and signatures that existing code calls, on these operators.

`selective_scan_fn`, `mamba_inner_fn` and `selective_state_update` are those of mamba_ssm 2.2 and 2.3, `causal_conv1d_fn`,
`causal_conv1d_update` and `causal_conv1d_varlen_states` those of causal_conv1d 1.4 to 1.7, `mamba_inner_fn_no_out_proj` and
`bimamba_inner_fn` those of Vision Mamba, `vmamba_selective_scan` that of VMamba: same arguments in the same order, same
results in the same layout. All but `causal_conv1d_ref` and `causal_conv1d_varlen_states` take `backend` besides,
`selective_scan_fn` and `causal_conv1d_fn` also `cu_seqlens`. The names ending in `_ref` are the same on the reference.
What is not supported raises and names the argument.

`install()` lets `import mamba_ssm` and `import causal_conv1d` find these functions; `patch_transformers()` makes Hugging
Face's Mamba models run on the operators.
"""

from ..integrations.transformers.patch import patch_transformers, unpatch_transformers
from .conv import (
    causal_conv1d_fn,
    causal_conv1d_ref,
    causal_conv1d_update,
    causal_conv1d_update_ref,
    causal_conv1d_varlen_states,
    causal_conv1d_varlen_states_ref,
)
from .inner import (
    bimamba_inner_fn,
    bimamba_inner_ref,
    mamba_inner_fn,
    mamba_inner_fn_no_out_proj,
    mamba_inner_ref,
)
from .provider import install, uninstall
from .scan import (
    selective_scan_fn,
    selective_scan_ref,
    selective_state_update,
    selective_state_update_ref,
    vmamba_selective_scan,
)

__all__ = [
    "bimamba_inner_fn",
    "bimamba_inner_ref",
    "causal_conv1d_fn",
    "causal_conv1d_ref",
    "causal_conv1d_update",
    "causal_conv1d_update_ref",
    "causal_conv1d_varlen_states",
    "causal_conv1d_varlen_states_ref",
    "install",
    "mamba_inner_fn",
    "mamba_inner_fn_no_out_proj",
    "mamba_inner_ref",
    "patch_transformers",
    "selective_scan_fn",
    "selective_scan_ref",
    "selective_state_update",
    "selective_state_update_ref",
    "uninstall",
    "unpatch_transformers",
    "vmamba_selective_scan",
]
