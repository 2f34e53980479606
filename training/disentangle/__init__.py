"""How far identity and clothing came apart in a trained run: probes, dependence, retrieval in other clothes."""

from training.disentangle.run import ARRAYS, RESULT, disentangle

__all__ = ["ARRAYS", "RESULT", "disentangle"]
