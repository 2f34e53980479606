"""Tiny language models of Hugging Face transformers with Mamba-1 mixers."""

import importlib

import pytest
import torch

from bdam_fast.integrations.transformers import patch as patching

transformers = pytest.importorskip("transformers")
# Config and model, the sizes by their own names, and the sum over layers of Mamba's mixers and of their heads.
ATTENTION = {"num_attention_heads": 4, "intermediate_size": 48, "mamba_d_state": 8}
ONE = {"num_hidden_layers": 2, "state_size": 8}
KINDS = {
    "mamba": (transformers.MambaConfig, transformers.MambaForCausalLM, ONE, 2, 2),
    "falcon": (transformers.FalconMambaConfig, transformers.FalconMambaForCausalLM, ONE, 2, 2),
    "jamba": (
        *(transformers.JambaConfig, transformers.JambaForCausalLM),
        ATTENTION
        | {"num_hidden_layers": 3, "num_key_value_heads": 2, "attn_layer_period": 3, "attn_layer_offset": 1}
        | {"expert_layer_period": 2, "expert_layer_offset": 1, "num_experts": 2, "num_experts_per_tok": 1},
        *(2, 2),
    ),
    "zamba": (
        *(transformers.ZambaConfig, transformers.ZambaForCausalLM),
        ATTENTION
        | {"num_hidden_layers": 4, "num_key_value_heads": 4, "n_mamba_heads": 2, "mamba_dt_rank": 2}
        | {"layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"]},
        *(4, 8),
    ),
}
# Mamba's and FalconMamba's own names for what the mixer may have.
PLAIN = ("mamba", "falcon")


def model(kind, dtype=torch.float32, **options):
    """A tiny model with random weights."""
    config, network, own, _, _ = KINDS[kind]
    sizes = {"vocab_size": 61, "hidden_size": 32} | own
    ends = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
    torch.manual_seed(0)
    made = network(config(**{**sizes, **ends, **options}))
    for name, parameter in made.named_parameters():
        if kind == "zamba" and "mamba" in name and "proj" in name:  # some are zero at first: then no state matters
            parameter.data.normal_(0, 0.2)
    return made.to(dtype).eval()


def batch(length=9):
    """Tokens (3, L), and the mask of a batch padded on the left."""
    ids, mask = torch.randint(1, 61, (3, length)), torch.ones(3, length, dtype=torch.long)
    mask[1, :4] = mask[2, :1] = 0
    return ids, mask


def attributes():
    """Everything that patching may touch: every attribute of the two modules and of their mixers."""
    found = {}
    for family, name in patching.MIXERS.items():
        module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
        for owner in (module, getattr(module, name)):
            found |= {(owner.__name__, n): v for n, v in vars(owner).items()}
    return found
