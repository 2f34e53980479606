"""The name below `torch.ops` where this copy of the package registers its operators; setup.py compiles it into the libraries.

Copies that one process loads need names of their own: an operator can be defined once.
"""

NAMESPACE = "bdam_fast"
